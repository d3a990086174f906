"""fp32 matrix products by oneDNN where that is as exact as the default.

torch multiplies fp32 matrices with MKL, which is half as fast as oneDNN on processors that are not Intel's. torch hands
products to oneDNN when they may be computed in bf16; oneDNN then takes bf16 units where they are worth it (AMX), and
plain fp32 elsewhere. Which of the two happens is measured, once a process.
"""

from __future__ import annotations

from functools import cache

import torch

SIDE = 256
"""Of the matrices that are multiplied to find out."""
MUCH = 8.0
"""Times the default's error that still is fp32: another order of summation gives 1-4, bf16 some 10,000."""


@cache
def use_onednn() -> bool:
    """Let oneDNN compute fp32 products from now on, if it does so in fp32; answers whether it does.

    Left alone where there is an accelerator, for which the same setting means something else.
    """
    if torch.accelerator.is_available() or not torch.backends.mkldnn.is_available():
        return False
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIDE, SIDE, generator=draw) for _ in range(2))
    exact = left.double() @ right.double()
    before, default = torch.get_float32_matmul_precision(), _error(left, right, exact)
    torch.set_float32_matmul_precision("medium")
    if _error(left, right, exact) <= MUCH * default:
        return True
    torch.set_float32_matmul_precision(before)
    return False


def _error(left: torch.Tensor, right: torch.Tensor, exact: torch.Tensor) -> float:
    return (left @ right - exact).abs().max().item()
