"""Faster imports of heavy libraries, without a change in what they can do.

Short commands spend most of their time importing four thousand modules. Two parts of that are unnecessary: garbage
collection while there is no garbage, and bitsandbytes, which peft imports wherever it is installed, and which imports
torch's compiler.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

BITSANDBYTES = "bitsandbytes"


@contextmanager
def without_collection() -> Iterator[None]:
    """Turn garbage collection off inside: imports and models create a million objects, none of which is garbage."""
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
    """Turn garbage collection off inside, and exclude the imported modules from later collections.

    A pass over the half a million objects of torch and transformers takes 0.4 s, and a command made several.
    """
    known = len(sys.modules)
    with without_collection():
        yield
    if len(sys.modules) > known:
        gc.freeze()


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """Hide bitsandbytes from peft inside, unless it is already imported; then a model may have layers of it.

    Loading a quantised model imports bitsandbytes, and peft finds it from then on.
    """
    if BITSANDBYTES in sys.modules:
        yield
        return
    from transformers.utils import is_bitsandbytes_available

    is_bitsandbytes_available()  # transformers caches its first result, which must be the true one
    sys.modules[BITSANDBYTES] = None  # type: ignore[assignment]  # marks a module that cannot be imported
    try:
        yield
    finally:
        del sys.modules[BITSANDBYTES]
        _clear_caches()


def import_peft() -> None:
    """Import peft, and bitsandbytes with it only if it was imported before."""
    if "peft" not in sys.modules:
        with importing(), without_bitsandbytes():
            import_module("peft")


def _clear_caches() -> None:
    """Make peft search for bitsandbytes again."""
    if "peft" not in sys.modules:
        return
    from peft import helpers, import_utils

    import_utils.is_bnb_available.cache_clear()
    import_utils.is_bnb_4bit_available.cache_clear()
    has_it = not hasattr(helpers, "bnb") or helpers.bnb is not None  # before 0.20, helpers does not use it
    if not has_it and find_spec(BITSANDBYTES):
        helpers.bnb = _OnDemand(BITSANDBYTES)


class _OnDemand(ModuleType):
    """A module that is imported when one of its attributes is first needed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)
