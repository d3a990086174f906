"""Ctrl-C ends a command with one line, wherever it is.

An interrupt inside an import leaves a half-imported library behind, which answers with errors of its own, and Python
drops what is raised inside a finalizer. It is put off until either is over.
"""

from __future__ import annotations

import signal
from types import FrameType

AGAIN_SECONDS = 0.05
came: list[int] = []
"""The numbers of the signals that raised KeyboardInterrupt: a library may have caught it, and the run goes on."""


def install() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt, so that whoever ends a command politely leaves nothing behind."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _must_wait(frame) and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        return
    came.append(number)
    raise KeyboardInterrupt


def _must_wait(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
