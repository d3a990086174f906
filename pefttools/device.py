"""The device that this machine trains on: its type, its precision, and the memory in use."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Literal

from pefttools.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]


def device_type() -> str:
    """The type of device that this machine trains on: `cuda`, `mps`, `cpu` …"""
    import torch

    return str(torch.accelerator.current_accelerator().type) if torch.accelerator.is_available() else "cpu"  # type: ignore[union-attr]


def device_name(kind: str) -> str:
    """The name of the device of this type, or of the processor."""
    import torch

    if kind == "cuda":
        return torch.cuda.get_device_name()
    known = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch have no such function
    return str(known.get("cpu_name") or platform.processor())


def precision_of(setting: str) -> Precision:
    """The number format that steps compute in on this machine under this `train.precision`.

    `auto` means bf16 where the device multiplies it natively, fp16 on other CUDA devices, else fp32.

    Raises:
        UserError: fp16 is set, but there is no CUDA device.
    """
    import torch

    on_cuda = torch.cuda.is_available()
    if setting == "fp16" and not on_cuda:
        raise UserError(
            f"train.precision: fp16 needs a CUDA GPU, but this machine computes on {device_type()}; set auto, bf16 or"
            " fp32"
        )
    if setting != "auto":
        assert setting in ("fp32", "bf16", "fp16"), setting
        return setting
    if on_cuda:  # emulated, bf16 is slower than fp32
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if not torch.accelerator.is_available() and torch.cpu._is_avx512_bf16_supported() else "fp32"


def half_type(precision: Precision) -> torch.dtype | None:
    """The 16-bit type that matrices are multiplied in; None in fp32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; a copy to a GPU starts from pinned memory, so that it waits for no computation."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the machine has no memory left."""
    import torch

    texts = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))


def release_memory() -> None:
    """Give memory that torch holds but does not use back to the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_bytes() -> int:
    """Peak memory of this process in bytes: on the GPU where there is one, else resident memory.

    On Windows it is psutil's peak of the working set; where psutil has no peak either, the resident memory now.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Resident memory of this process now, in bytes."""
    import psutil

    return psutil.Process().memory_info().rss
