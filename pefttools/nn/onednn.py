"""fp32 products on a CPU by oneDNN, which torch otherwise leaves to a library that is slower on some processors.

torch hands fp32 products to oneDNN only where rounding to bf16 is allowed. oneDNN uses that leave on processors with
matrix units alone, so whether these products are still exact is tried, and not counted on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

mkldnn: Any = torch.backends.mkldnn

SIZE = 128
"""Rows and columns of the product that is tried: oneDNN leaves very small ones out."""
EXACT = 1e-5
"""Largest error of it, in parts of the largest number: fp32 makes 1e-6, bf16 3e-3."""


@contextmanager
def by_onednn() -> Iterator[None]:
    """Meanwhile fp32 products of this process are computed by oneDNN, if that is as exact as fp32."""
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
    """What torch may round inputs of fp32 products to at present."""
    return mkldnn.matmul.fp32_precision


@cache
def _exact() -> bool:
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(SIZE, SIZE, generator=draw) for _ in range(2))
    expected = one.double() @ other.double()
    with _allowed():
        error = (one @ other - expected).abs().max()
    return bool(error <= EXACT * expected.abs().max())
