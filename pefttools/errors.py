"""Errors that users can act on.

The command line reports a `UserError` on stderr without a traceback and exits with code 2; for an `EnvironmentFault`
the code is 3. Any other exception is a bug of ours and shows its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LONGEST = 200
"""Length of a value in a message from which on it is shortened."""

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that would move a terminal's cursor or end a line."""

LONG_WORD = re.compile(r"(\S{250})\S{100,}(\S{50})")
"""A word of more than 400 characters, with its start and its end; paths and commands are shorter."""


class UserError(Exception):
    """A user's mistake. The messages name what is wrong and what to do.

    `problems` has one self-contained message for each problem, on one line and with shortened words, whatever names it
    repeats from a file; `str()` joins them by newlines.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(CONTROL.sub(lambda found: repr(found[0])[1:-1], one) for one in map(_short, problems))
        super().__init__("\n".join(self.problems))


class UnreadableLine(UserError):
    """A line of a file from which no row can be read; the lines after it can still be read."""


class EnvironmentFault(Exception):
    """A fault of the machine, such as a full disk; `args[0]` is the message."""


class Interrupted(Exception):
    """The user stopped a run, which can be resumed; `args[0]` is the command for it."""


class Paused(Interrupted):
    """A run stopped after the number of steps that its caller asked for; it can be resumed."""

    def __init__(self, message: str, step_seconds: float) -> None:
        super().__init__(message)
        self.step_seconds = step_seconds
        """Time that the steps took so far."""


def _short(problem: str) -> str:
    """The lines of a message as one line, and its longest words without their middle."""
    if "\n" in problem:
        problem = "; ".join(line for line in problem.split("\n") if line.strip())
    return LONG_WORD.sub(lambda found: f"{found[1]}…{found[2]}", problem)


@contextmanager
def damage_of(file: Path | str, advice: str = "restore it from a copy, or write it again") -> Iterator[None]:
    """Turn errors inside into a UserError of one sentence that names the file; a UserError passes unchanged.

    Only calls that read the file belong inside: libraries raise many classes of errors for damaged bytes, so all count.
    """
    try:
        yield
    except (UserError, EnvironmentFault, Interrupted):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{file}: cannot be read, so it is damaged or of another kind ({reason}); {advice}") from error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to `name`, or None when none is similar."""
    matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """The message for an unknown name, with the most similar name and all known ones."""
    match = nearest(name, known)
    hint = f"; did you mean {match!r}?" if match else "."
    return f"unknown {kind} {shown(name)}{hint} Known: {', '.join(known) or 'none'}"


def shown(value: object) -> str:
    """A value for a message: its notation in Python, shortened if it is long."""
    notation = repr(value)
    return notation if len(notation) <= LONGEST else f"{notation[: LONGEST - 1]}…"
