"""Limits of the server, so that no client can exhaust its memory or block others."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pefttools.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What one request, and all that wait, may take."""

    body_bytes: int = 8 << 20
    """Bytes of a request's body; longer ones get the status 413."""
    all_bytes: int = 256 << 20
    """Bytes of all bodies that are being read or answered; beyond that, requests get the status 503."""
    drained_bytes: int = 128 << 20
    """Bytes of a body that is too long which are read and thrown away, so that its client can read the answer."""
    row_characters: int = 200_000
    """Characters of a row; with more, the request gets the status 413, because tokenising it would delay all others."""
    rows: int = 4096
    """Rows of a request; with more, it gets the status 413."""
    waiting: int = 16384
    """Rows that wait; beyond that, requests get the status 503 with Retry-After."""
    replies: int = 64
    """Replies of language models that wait, one of which is generated; beyond that, the status is 503, too."""
    pass_rows: int = 512
    """Rows that are computed together."""
    pass_tokens: int = 16384
    """Tokens that are computed together, estimated from the number of characters."""
    delay: float = 0.002
    """Seconds that the first waiting row waits for others, if the model has nothing to do."""
    timeout: float = 60.0
    """Seconds after which a request gets the status 504, or 408 if its body has not arrived."""

    def __post_init__(self) -> None:
        problems = [
            f"--{field.name.replace('_', '-')}: must be above 0, got {getattr(self, field.name):g}"
            for field in fields(self)
            if getattr(self, field.name) <= 0 and field.name != "delay"
        ]
        if self.delay < 0:
            problems.append(f"--delay: must be at least 0, got {self.delay:g}")
        if problems:
            raise UserError(*problems)


class Overloaded(Exception):
    """Too much waits; `args[0]` is the number of seconds after which a client may try again."""
