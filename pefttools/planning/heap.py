"""Peak size of glibc's heap under a sequence of allocations, which are made for real but never written to.

A heap needs more memory than its live blocks: glibc cannot reuse the hole of an aligned block for an equal one
(sourceware bug 14581), and torch aligns every tensor. The cost depends on the order of the allocations, so they are
replayed in a new process (`python -IS heap.py`), whose heap is empty at first. It inherits `MALLOC_MMAP_THRESHOLD_` and
malloc's other environment variables. Small tensors are not replayed: in a run they lie in the holes that imports and
loading left, while in an empty heap those that outlive a pass (gradients, losses) would split the space of the next.
Without glibc (macOS, musl) the result is 0.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence

Event = tuple[int, int]
"""A block's number and its size in bytes; size 0 frees it."""

ALIGNMENT = 64
"""Alignment of every tensor on a CPU in bytes (c10/core/alignment.h)."""
BOOKKEEPING = (24, 32, 40, 48, 64, 80, 112, 208, 300)
"""Bytes of the small objects that live as long as a tensor: the tensor object, its storage, the graph's node, and
vectors of sizes. They fill the holes; these sizes fit the measurements of benchmarks/results/memory.md."""
SMALL = 1 << 16
"""Size of the largest tensors in bytes that lie in old holes."""
REPEATS = 4
"""Number of steps after which the heap no longer grows."""


def heap_peak_bytes(begin: Sequence[Event], step: Sequence[Event]) -> int:
    """Peak size of the heap in bytes after `begin` once and `step` repeatedly; 0 where it cannot be measured."""
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
    def total(self) -> int:
        """`arena` and `hblkhd`: bytes from sbrk, and bytes in blocks that were mapped singly."""
        return self.field0 + self.field4


def _replay(begin: Sequence[Event], step: Sequence[Event]) -> int:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _Info
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]

    def heap_bytes() -> int:
        return libc.mallinfo2().total

    alive: dict[int, list[int | None]] = {}
    block, start, peak = ctypes.c_void_p(), heap_bytes(), 0
    for number, size in [*begin, *(event for _ in range(REPEATS) for event in step)]:
        for address in alive.pop(number, ()):
            libc.free(address)
        if size > SMALL:
            alive[number] = [libc.malloc(small) for small in BOOKKEEPING]
            if libc.posix_memalign(ctypes.byref(block), ALIGNMENT, size):
                return 0  # the machine cannot reserve so much memory
            alive[number].append(block.value)
            peak = max(peak, heap_bytes() - start)
    return peak


if __name__ == "__main__":
    sys.stdout.write(str(_replay(*json.load(sys.stdin))))
