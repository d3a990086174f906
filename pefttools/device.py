"""The device that this machine trains on: its type, its precision, and the memory in use."""

from __future__ import annotations

import platform
import sys

try:
    import resource
except ImportError:  # Windows
    resource = None


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


def computes_in_bf16(precision: str) -> bool:
    """Whether steps compute in bf16 on this machine under this `train.precision`."""
    import torch

    on_cpu = not torch.accelerator.is_available()
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False)  # emulated, it is slower than fp32
        if torch.cuda.is_available()
        else on_cpu and torch.cpu._is_avx512_bf16_supported()
    )
    return precision == "bf16" or (precision == "auto" and native)


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
