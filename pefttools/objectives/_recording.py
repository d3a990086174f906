"""Record the hidden states and attention probabilities of a model's blocks while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pefttools.nn import module_paths

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Recorded:
    """What the blocks computed in one forward pass."""

    hidden: dict[int, Tensor] = field(default_factory=dict)
    """Number of a block, from 1 -> its output, (sequences, tokens, width); 0 -> the input of the first block."""
    attention: dict[int, Tensor] = field(default_factory=dict)
    """Number of a block -> its attention probabilities, (sequences, heads, tokens, tokens)."""


@contextmanager
def recording(model: nn.Module, blocks: Sequence[int]) -> Iterator[Recorded]:
    """Inside, a forward pass of the model fills the result.

    Args:
        blocks: numbers of the blocks to record, from 1; 0 for the input of the first block.
    """
    found, handles = Recorded(), []
    paths = module_paths.blocks(model)
    try:
        for number in blocks:
            block = model.get_submodule(paths[max(0, number - 1)])
            if number == 0:
                handles.append(block.register_forward_pre_hook(_keep_input(found), with_kwargs=True))
                continue
            handles.append(block.register_forward_hook(_keep_output(found, number)))
            handles += [
                module.register_forward_hook(_keep_attention(found, number))
                for module in block.modules()
                if "Attention" in type(module).__name__
            ]
        yield found
    finally:
        for handle in handles:
            handle.remove()


def compute_probabilities(model: nn.Module) -> None:
    """Make the model's attention return its probabilities, which faster kernels do not compute."""
    from transformers import PreTrainedModel

    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    inner.set_attn_implementation("eager")


def _keep_input(found: Recorded) -> Any:
    def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.hidden[0] = arguments[0] if arguments else named["hidden_states"]

    return hook


def _keep_output(found: Recorded, number: int) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        found.hidden[number] = output[0] if isinstance(output, tuple) else output

    return hook


def _keep_attention(found: Recorded, number: int) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        for one in output if isinstance(output, tuple) else ():
            if getattr(one, "ndim", 0) == 4:
                found.attention[number] = one

    return hook
