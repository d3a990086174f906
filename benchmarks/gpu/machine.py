"""The machine: its card, the versions of the libraries, and the rate at which the card multiplies matrices."""

from __future__ import annotations

import importlib.util
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from sizes import Sizes

from pefttools.device import device_name, device_type, precision_of

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "bitsandbytes", "liger-kernel", "trl",
             "flash-attn")  # fmt: skip
REPEATS = 9


def measure(sizes: Sizes, shared: Path, own: Path) -> dict[str, Any]:
    del shared, own
    kind = device_type()
    memory = torch.cuda.get_device_properties(0).total_memory if kind == "cuda" else None
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, **({"fp16": torch.float16} if kind == "cuda" else {})}
    return {
        "device": kind, "name": device_name(kind), "memory_bytes": memory, "system": platform.system(),
        "python": platform.python_version(), "cuda": torch.version.cuda, "precision": precision_of("auto"),
        "versions": {name: _version(name) for name in LIBRARIES},
        "tflops": {name: _rate(dtype, sizes.product_side, kind) for name, dtype in dtypes.items()},
    }  # fmt: skip


def _version(name: str) -> str | None:
    found = importlib.util.find_spec(name.replace("-", "_"))
    return metadata.version(name) if found else None


def _rate(dtype: torch.dtype, side: int, kind: str) -> float:
    """10¹² operations a second of a product of square matrices; the median of several."""
    one, other = (torch.randn(side, side, device=kind).to(dtype) for _ in range(2))

    def product() -> None:
        torch.mm(one, other)
        synchronize()

    def seconds() -> float:
        begun = time.perf_counter()
        product()
        return time.perf_counter() - begun

    product()
    return 2 * side**3 / statistics.median(seconds() for _ in range(REPEATS)) / 1e12


def synchronize() -> None:
    """Wait for the device's computations."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
