"""Signal handlers with which Ctrl-C ends a command with one line, whatever it is doing.

An interrupt inside an import would leave a half-imported library behind, which raises errors of its own; and Python
drops exceptions inside a finalizer. An interrupt is therefore delayed until the import or finalizer is over.
"""

from __future__ import annotations

import signal
from types import FrameType

AGAIN_SECONDS = 0.05
came: list[int] = []
"""Numbers of the signals that raised KeyboardInterrupt; the training loop reads them in case a library caught it."""


def install() -> None:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt, so that an interrupted command can clean up."""
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
