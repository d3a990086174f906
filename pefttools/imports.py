"""Heavy libraries imported in less time, without a change to what they can do.

Most of the time of a short command is the import of four thousand modules. Two parts of it are for nothing: collections
of garbage while no garbage is made, and bitsandbytes, which peft imports wherever it is installed, and which imports
torch's compiler.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

BITSANDBYTES = "bitsandbytes"


@contextmanager
def without_collection() -> Iterator[None]:
    """Meanwhile no garbage is collected: imports and models make a million objects that all stay."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """Meanwhile no garbage is collected; what modules hold stays, and no later collection looks through it.

    One look at the half a million objects of torch and transformers takes 0.4 s, and a command made several.
    """
    known = len(sys.modules)
    with without_collection():
        yield
    if len(sys.modules) > known:
        gc.freeze()


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """Meanwhile peft finds no bitsandbytes, unless it was imported: without it, no layer of a model can be one of its.

    Whoever loads a quantised model imports it, and peft finds it from then on.
    """
    if BITSANDBYTES in sys.modules:
        yield
        return
    from transformers.utils import is_bitsandbytes_available

    is_bitsandbytes_available()  # transformers remembers its first answer, which must be the true one
    sys.modules[BITSANDBYTES] = None  # type: ignore[assignment]  # Python's own mark of what cannot be imported
    try:
        yield
    finally:
        del sys.modules[BITSANDBYTES]
        _forget_answers()


def import_peft() -> None:
    """Import peft, and bitsandbytes with it only if it was imported before."""
    if "peft" not in sys.modules:
        with importing(), without_bitsandbytes():
            import_module("peft")


def _forget_answers() -> None:
    """Let peft look for bitsandbytes again."""
    if "peft" not in sys.modules:
        return
    from peft import helpers, import_utils

    import_utils.is_bnb_available.cache_clear()
    import_utils.is_bnb_4bit_available.cache_clear()
    if helpers.bnb is None:
        helpers.bnb = _OnDemand(BITSANDBYTES)


class _OnDemand(ModuleType):
    """Stands for a module, and imports it when it is first needed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)
