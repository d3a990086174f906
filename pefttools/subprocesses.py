"""Worker processes that start clean and fast: a server that has imported the libraries forks them.

With CUDA they are spawned instead, because CUDA cannot be used in a fork of a process that has initialized it; so they
are on Windows, which cannot fork.
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
    """Start a daemon process that runs `target(*args)` with this process's environment and working folder.

    It does not import this process's script, because one without `if __name__ == "__main__"` would run again.
    """
    process = _context().Process(target=_run, args=(dict(os.environ), Path.cwd(), target, args), daemon=True)
    with _without_main():
        process.start()
    return process


def begin(modules: Sequence[str]) -> None:
    """Start the server in the background with these modules imported, instead of `PRELOADED`.

    A server that already runs is left as it is.
    """
    context = _context()
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        context.set_forkserver_preload(list(modules))
        with _without_main():
            forkserver.ensure_running()


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide from multiprocessing, inside, which file the main module was loaded from."""
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

    if torch.cuda.is_available() or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _run(environment: dict[str, str], folder: Path, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Run `target` in the environment and folder of the process that started this one; the server's may be older.

    A terminal sends Ctrl-C to every process. This one ignores it, because the starting process handles it.
    """
    signals.install()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with suppress(KeyboardInterrupt):
        target(*args)
