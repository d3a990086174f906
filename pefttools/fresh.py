"""Processes that nothing was done in yet, forked from a server that has imported the libraries: they start at once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = ["pefttools.preload"]


def process(target: Callable[..., None], *args: Any) -> BaseProcess:
    """A process that is still to start, and will run `target(*args)` where this one is; it dies with it."""
    return _context().Process(target=_in, args=(dict(os.environ), Path.cwd(), target, args), daemon=True)


@cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _in(environment: dict[str, str], folder: Path, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """The server may be older than the environment and the working folder."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    target(*args)
