"""Resident memory of this process: what a stretch of work takes beyond what was there before it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

from pefttools.device import peak_bytes, resident_bytes

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def begin() -> int:
    """Bytes held now, from which the peak is counted anew.

    What was freed goes back to the system first, and every weight that is alive is read once: weights that are mapped
    from a file take no memory until then. Where the kernel does not forget a peak (macOS), it stays the process's.
    """
    gc.collect()
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.nn.Parameter) and not thing.is_meta:
            thing.detach().sum()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    if CLEAR.exists():
        CLEAR.write_text("5")
    return resident_bytes()


def peak() -> int:
    """The most bytes held since `begin`."""
    if not STATUS.exists():
        return peak_bytes()
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
