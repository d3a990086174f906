"""The device that a plan is for: this machine's, or one that is described, such as `cuda:16GB,t4`.

Memory of cards as their manufacturer states it. A described device computes in the precision that such a card
multiplies natively: bf16 from compute capability 8.0 on, else fp16.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pefttools.device import Precision, device_type, precision_of
from pefttools.errors import UserError, shown, unknown
from pefttools.recipe.train_settings import in_bytes

if TYPE_CHECKING:
    from pefttools.recipe.train_settings import TrainSettings

GIB = 1 << 30
GROUPS = Path("/sys/fs/cgroup")
CARDS: dict[str, tuple[int, bool]] = {
    "p100": (16, False), "v100": (16, False), "v100-32gb": (32, False), "t4": (15, False), "rtx2080ti": (11, False),
    "a100": (40, True), "a100-80gb": (80, True), "a10": (24, True), "a10g": (24, True), "a40": (48, True),
    "a6000": (48, True), "rtx3060": (12, True), "rtx3080": (10, True), "rtx3090": (24, True), "rtx4060": (8, True),
    "rtx4070": (12, True), "rtx4080": (16, True), "rtx4090": (24, True), "rtx5090": (32, True), "l4": (24, True),
    "l40s": (48, True), "h100": (80, True), "h200": (141, True), "b200": (180, True),
}  # fmt: skip
"""Card -> its memory in GiB, and whether it multiplies bf16 natively."""
CONTEXT = 600 << 20
"""Bytes that a CUDA context and the libraries' workspaces take of a card's memory before any tensor."""
FRAGMENTS = 0.05
"""Share of a card's memory that is left for gaps between the blocks of torch's allocator."""
FORM = "write cuda:16GB, cuda:t4, cuda:24GB,a10 or cpu:8GB"


@dataclass(frozen=True)
class Target:
    """A device to plan for."""

    type: str
    """`cuda`, `cpu`, `mps` …"""
    memory: int
    """Its memory in bytes; of a CPU, that of the machine or of the container."""
    name: str
    """As the user writes it; `this machine` for the device that is here."""
    native_bf16: bool = True
    """Whether it multiplies bf16 natively; not read for the device that is here."""
    is_here: bool = False

    @property
    def usable(self) -> int:
        """Bytes that a plan's peak may take."""
        return int((1 - FRAGMENTS) * self.memory) - CONTEXT if self.type == "cuda" else self.memory

    @property
    def traced(self) -> str:
        """The type of device on which shapes are computed; a CPU's build of torch has no CUDA tensors, even without
        data."""
        return self.type if self.is_here else "cpu"

    def precision(self, setting: str) -> Precision:
        """The number format of steps under this `train.precision`. Raises UserError for fp16 without CUDA."""
        if self.is_here:
            return precision_of(setting)
        if setting == "fp16" and self.type != "cuda":
            raise UserError(f"train.precision: fp16 needs a CUDA GPU, but the plan is for {self.name}")
        if setting != "auto":
            assert setting in ("fp32", "bf16", "fp16"), setting
            return setting
        half: Precision = "fp16" if self.type == "cuda" else "fp32"
        return "bf16" if self.native_bf16 else half


def here() -> Target:
    """The device of this machine, with the memory that is free now."""
    kind = device_type()
    if kind == "cuda":
        import torch

        return Target(kind, torch.cuda.mem_get_info()[0], "this machine", is_here=True)
    return Target(kind, free_memory(), "this machine", is_here=True)


def free_memory() -> int:
    """Bytes of main memory that this process can have: what is free in the machine or its container, and its own."""
    import psutil

    own = psutil.Process().memory_info().rss
    return min(psutil.virtual_memory().available, *_containers_free(psutil.virtual_memory().total)) + own


def _containers_free(total: int) -> list[int]:
    """The bytes that the control groups of a container leave, with files in their cache counted as free."""
    found = [total]
    for limit, usage, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            values = [(GROUPS / name).read_text("utf-8").strip() for name in (limit, usage, stat)]
            cached = re.search(r"^(?:total_)?inactive_file (\d+)$", values[2], re.MULTILINE)
            found.append(int(values[0]) - int(values[1]) + (int(cached[1]) if cached else 0))
        except (OSError, ValueError):  # no such group, or no limit
            continue
    return [max(0, number) for number in found]


def parse(text: str) -> Target:
    """The device that a text like `cuda:16GB,t4` describes. Raises UserError."""
    kind, _, described = text.strip().lower().partition(":")
    if kind not in ("cuda", "cpu"):
        raise UserError(f"--device: {shown(text)} is neither a CUDA GPU nor a CPU; {FORM}")
    memory, card = None, None
    for word in filter(None, (part.strip() for part in described.split(","))):
        if (size := in_bytes(word)) is not None:
            memory = size
        elif kind == "cuda" and word in CARDS:
            card = word
        elif kind == "cuda" and not word[0].isdigit():
            raise UserError(f"--device: {unknown('card', word, sorted(CARDS))}; or write its memory: cuda:16GB")
        else:
            raise UserError(f"--device: {shown(word)} is not a size of memory; {FORM}")
    memory = memory if memory is not None else CARDS[card][0] * GIB if card else 0
    if memory <= 0:
        raise UserError(f"--device: {shown(text)} does not say how much memory the device has; {FORM}")
    return Target(kind, memory, text, CARDS[card][1] if card else kind == "cuda")


def limited(settings: TrainSettings) -> Target:
    """The device of this machine with the memory that `train.memory` allows: what is free, or so many bytes of it."""
    target = here()
    size = in_bytes(settings.memory or "")
    return target if size is None else replace(target, memory=size)
