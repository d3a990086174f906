"""Smaller students: a model that keeps only some of the blocks of its base, as DistilBERT was initialised.

Of an encoder-decoder, both stacks keep the blocks with these indices. The result is a plain model of the same class
with a configuration of its own, so it is saved, exported and loaded like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pefttools.bases.folders import COUNTS
from pefttools.errors import UserError
from pefttools.nn import module_paths

if TYPE_CHECKING:
    from torch import nn


def keep_blocks(model: nn.Module, layers: Sequence[int], source: str) -> None:
    """Remove all blocks but those with these indices, in this order, and adapt the configuration.

    Raises:
        UserError: an index is beyond the blocks, or the smaller model cannot be rebuilt from its configuration.
    """
    import torch

    stacks: dict[str, int] = {}
    for path in module_paths.blocks(model):
        stack = path.rpartition(".")[0]
        stacks[stack] = stacks.get(stack, 0) + 1
    for stack, number in stacks.items():
        if beyond := [i for i in layers if i >= number]:
            raise UserError(
                f"base.layers: {source} has {number} blocks in {stack}, numbered from 0, so there is no {beyond[0]}"
            )
    for stack in stacks:
        kept = [model.get_submodule(stack)[i] for i in layers]  # type: ignore[index]
        parent, _, name = stack.rpartition(".")
        setattr(model.get_submodule(parent), name, torch.nn.ModuleList(kept))
        for place, block in enumerate(kept):
            _renumber(block, place)
    config: Any = model.config
    for number in set(stacks.values()):
        _shorten(config, number, layers)
    _refuse_unless_rebuilt(model, source)


def _renumber(block: nn.Module, place: int) -> None:
    """Decoder blocks know their index, by which they find their part of the key-value cache."""
    for module in block.modules():
        for name in ("layer_idx", "layer_id", "layer_number"):
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, place)


def _shorten(config: Any, number: int, layers: Sequence[int]) -> None:
    """Set the counts that were `number`, and keep the values of the kept blocks in lists with one value a block."""
    for name, value in config.to_dict().items():
        if name in COUNTS and value == number:
            setattr(config, name, len(layers))
        elif isinstance(value, (list, tuple)) and len(value) == number and name != "architectures":
            setattr(config, name, [value[i] for i in layers])


def _refuse_unless_rebuilt(model: Any, source: str) -> None:
    """Raises UserError unless the configuration gives a model with weights of the same names and shapes."""
    import torch

    wanted = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    try:
        with torch.device("meta"):
            again = type(model)(model.config)
        found = {name: tuple(weight.shape) for name, weight in again.state_dict().items()}
    except (ValueError, TypeError, IndexError, KeyError) as error:
        found = {"": (str(error),)}
    if found != wanted:
        strange = sorted(set(wanted.items()) ^ set(found.items()))[0][0]
        raise UserError(
            f"base.layers: a model of the type {model.config.model_type!r} from {source} cannot be made smaller"
            f" ({strange or 'its configuration is refused'}); remove base.layers"
        )
