"""Compute fp32 matrix products on a CPU with oneDNN; torch's default library is slower on some processors.

torch uses oneDNN for fp32 products only if rounding to bf16 is allowed. oneDNN rounds only on processors with matrix
units. So a test product checks that results are still exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

mkldnn: Any = torch.backends.mkldnn

SIZE = 128
"""Rows and columns of the test product; oneDNN does not compute very small ones."""
EXACT = 1e-5
"""Largest accepted error of the test product, relative to its largest number: fp32 has 1e-6, bf16 3e-3."""


@contextmanager
def by_onednn() -> Iterator[None]:
    """A context in which this process computes fp32 products with oneDNN, if that is as exact as fp32."""
    if not (mkldnn.is_available() and _exact()):
        yield
        return
    with _allowed():
        yield


@contextmanager
def _allowed() -> Iterator[None]:
    former = mkldnn.matmul.fp32_precision
    mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        mkldnn.matmul.fp32_precision = former


def allowance() -> str:
    """The current precision to which torch may round inputs of fp32 products."""
    return mkldnn.matmul.fp32_precision


@cache
def _exact() -> bool:
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(SIZE, SIZE, generator=draw) for _ in range(2))
    expected = one.double() @ other.double()
    with _allowed():
        error = (one @ other - expected).abs().max()
    return bool(error <= EXACT * expected.abs().max())
