"""Resident memory of this process: the peak since a starting point."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

from pefttools.device import peak_bytes, resident_bytes

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def begin() -> int:
    """Reset the peak; returns the resident bytes now.

    Freed memory is returned to the system first, and every weight is read once, because weights mapped from a file need
    no memory until then. Where the kernel cannot reset the peak (macOS), it remains that of the whole process.
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
    """The peak of resident bytes since `begin`."""
    if not STATUS.exists():
        return peak_bytes()
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
