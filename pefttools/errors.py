"""What a user can act on.

A `UserError` is one message on stderr, exit code 2, no traceback; an `EnvironmentFault` likewise, with exit code 3.
Anything else that escapes is our bug and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A user's mistake: what is wrong and what to do, every problem at once.

    `problems` holds one self-contained sentence a problem; `str()` joins them.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class UnreadableLine(UserError):
    """A line of a file from which no row can be read; those behind it can."""


class EnvironmentFault(Exception):
    """The machine's fault (a full disk): `args[0]` is what happened, and what to do."""


class Interrupted(Exception):
    """A run was stopped by the user and can be resumed; `args[0]` says how."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is close."""
    matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """The sentence for an unknown name: what was given, the nearest match and everything that exists."""
    match = nearest(name, known)
    hint = f"; did you mean {match!r}?" if match else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known) or 'none'}"
