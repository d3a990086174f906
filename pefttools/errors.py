"""Errors that users can act on.

The command line reports a `UserError` on stderr without a traceback and exits with code 2; for an `EnvironmentFault`
the code is 3. Any other exception is a bug of ours and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A user's mistake. The messages name what is wrong and what to do.

    `problems` has one self-contained message for each problem; `str()` joins them by newlines.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


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


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to `name`, or None when none is similar."""
    matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """The message for an unknown name, with the most similar name and all known ones."""
    match = nearest(name, known)
    hint = f"; did you mean {match!r}?" if match else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known) or 'none'}"
