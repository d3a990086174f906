"""The memory of a process that shares its weights with others (`train.shard`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pefttools.errors import UserError
from pefttools.nn.sharding import unit_paths

if TYPE_CHECKING:
    from torch import nn

    from pefttools.recipe.train_settings import TrainSettings


def refuse_alone(settings: TrainSettings, processes: int) -> None:
    """Raises UserError when a plan with `train.shard` is for one process."""
    if settings.shard and processes == 1:
        raise UserError("train.shard: the weights are shared by several processes; say by how many with --processes N")


def per_process(parts: Mapping[str, int], model: nn.Module, processes: int) -> dict[str, int]:
    """A plan's parts for each of the processes that share weights, gradients and the optimizer's state.

    `gathered` is what a process has of other shares while it computes: the weights outside of the blocks, and those of
    the largest block. Weights of the data type that steps compute in are not kept, and no features are cached.

    Args:
        parts: those of a process that shares nothing.
    """
    parameters = {id(p): p for p in model.parameters()}.values()
    share = sum(_bytes(p, processes) for p in parameters)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    trained = [p for p in parameters if p.requires_grad]
    factor = sum(_bytes(p, processes) for p in trained) / max(1, sum(_bytes(p, 1) for p in trained))
    return {
        **parts,
        "weights": share + buffers,
        "gradients": round(parts["gradients"] * factor),
        "optimizer": round(parts["optimizer"] * factor),
        "gathered": _largest_unit(model),
        "features": 0,
    }


def _bytes(parameter: nn.Parameter, processes: int) -> int:
    """Bytes of the largest share of a parameter, whose rows are divided."""
    rows = -(-parameter.shape[0] // processes) if parameter.shape else 1
    return rows * parameter.shape[1:].numel() * parameter.element_size()


def _largest_unit(model: nn.Module) -> int:
    """Bytes of the weights outside of the blocks and of the largest block."""
    blocks = [model.get_submodule(path) for path in unit_paths(model)]
    inside = {id(p) for block in blocks for p in block.parameters()}
    rest = {id(p): p for p in model.parameters() if id(p) not in inside}.values()
    return sum(_bytes(p, 1) for p in rest) + max(
        (sum(_bytes(p, 1) for p in block.parameters()) for block in blocks), default=0
    )
