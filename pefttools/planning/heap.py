"""What glibc's heap grows to under a sequence of allocations: they are made for real, but never written to.

A heap holds more than what is alive: glibc cannot put an aligned block into the hole that an equal one left
(sourceware bug 14581), and torch aligns every tensor. How much that costs depends on the order of the allocations,
so they are replayed, in a fresh process (`python -IS heap.py`) whose heap starts empty like a training run's.
It knows `MALLOC_MMAP_THRESHOLD_` and what else the environment tells malloc. Elsewhere (macOS, musl) the answer is 0.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence

Event = tuple[int, int]
"""A block's number and its bytes; 0 bytes frees it."""

ALIGNMENT = 64
"""Of every tensor on a CPU (c10/core/alignment.h)."""
BOOKKEEPING = (24, 32, 40, 48, 64, 80, 112, 208, 300)
"""Bytes of the small objects that live as long as a tensor: its and its storage's record, the node of the graph, their
vectors of sizes. They settle in the holes; these sizes fit the measurements of benchmarks/results/memory.md."""
REPEATS = 4
"""Steps after which the heap has settled."""


def heap_peak_bytes(begin: Sequence[Event], step: Sequence[Event]) -> int:
    """The most the heap holds when `begin` happens once and `step` again and again; 0 where that is not known."""
    if not sys.platform.startswith("linux"):
        return 0
    done = subprocess.run(
        [sys.executable, "-IS", __file__], input=json.dumps([begin, step]), capture_output=True, text=True, check=True
    )
    return int(done.stdout)


class _Info(ctypes.Structure):
    """mallinfo2(3)."""

    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(10)]

    @property
    def held(self) -> int:
        """`arena` and `hblkhd`: what came from sbrk, and what was mapped block by block."""
        return self.field0 + self.field4


def _replay(begin: Sequence[Event], step: Sequence[Event]) -> int:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _Info
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]

    def held_bytes() -> int:
        return libc.mallinfo2().held

    alive: dict[int, list[int | None]] = {}
    block, start, peak = ctypes.c_void_p(), held_bytes(), 0
    for number, size in [*begin, *(event for _ in range(REPEATS) for event in step)]:
        for address in alive.pop(number, ()):
            libc.free(address)
        if size:
            alive[number] = [libc.malloc(small) for small in BOOKKEEPING]
            if libc.posix_memalign(ctypes.byref(block), ALIGNMENT, size):
                return 0  # more than this machine can even promise
            alive[number].append(block.value)
            peak = max(peak, held_bytes() - start)
    return peak


if __name__ == "__main__":
    sys.stdout.write(str(_replay(*json.load(sys.stdin))))
