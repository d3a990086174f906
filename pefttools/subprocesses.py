"""Processes that nothing was done in yet, forked from a server that has imported the libraries: they start at once.

Where there is CUDA, which does not survive a fork once a library has looked at it, they start anew.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pefttools import signals

PRELOADED = ["pefttools.bench.preload"]


def started(target: Callable[..., None], *args: Any) -> BaseProcess:
    """A process that runs `target(*args)` where this one is, and dies with it.

    It does not see the script that this process runs: a script without `if __name__ == "__main__"` would begin again.
    """
    process = _context().Process(target=_in, args=(dict(os.environ), Path.cwd(), target, args), daemon=True)
    with _without_main():
        process.start()
    return process


def begin(modules: Sequence[str]) -> None:
    """Let the server import these modules instead, from now on, while this process goes on with its own work.

    A server that runs already has imported what it needs.
    """
    from multiprocessing import forkserver

    context = _context()
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(list(modules))
        with _without_main():
            forkserver.ensure_running()


@contextmanager
def _without_main() -> Iterator[None]:
    """Meanwhile nothing tells multiprocessing where the main module came from."""
    main = sys.modules["__main__"]
    former = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update({"__spec__": None, **former})


@cache
def _context() -> Any:
    import torch

    if torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _in(environment: dict[str, str], folder: Path, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """The server may be older than the environment and the working folder.

    Ctrl-C, which a terminal sends to every process, is the starting process's to handle: it ends this one.
    """
    signals.install()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with suppress(KeyboardInterrupt):
        target(*args)
