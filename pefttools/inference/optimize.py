"""Optimizing a trained model for predictions: merged, and in bf16 where the processor multiplies that natively.

Where the head reads one token only, the last block computes that token only. All weights are converted once, except
the head's, which stay in fp32 so that logits are not rounded to the three digits of bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pefttools.device import precision_of
from pefttools.strategies.base import is_quantised
from pefttools.training.run import Trained

if TYPE_CHECKING:
    from torch import nn

    from pefttools.tasks.base import Task

Precision = Literal["auto", "bf16", "fp32"]
TOKENS = 8
"""Length of the example rows."""


def optimized(trained: Trained, precision: Precision, merge: bool = True, whole_outputs: bool = False) -> nn.Module:
    """The optimized model; consumes `trained`.

    Quantised weights are neither merged, which would round them again, nor converted.

    Args:
        merge: whether to merge the trained change into the weights, where the strategy can.
        whole_outputs: see `optimize_for_inference`.
    """
    model, strategy = trained.model, trained.recipe.strategy
    if merge and strategy.mergeable and not is_quantised(model):
        model = strategy.merge(model).eval()
    return optimize_for_inference(model, trained.task, trained.base.new, precision, whole_outputs)


def optimize_for_inference(
    model: nn.Module, task: Task, new: Sequence[str], precision: Precision, whole_outputs: bool = False
) -> nn.Module:
    """The model, changed in place: in bf16 where that is native, and with a last block for the one token that is read.

    Args:
        new: paths of the head, which stays in fp32.
        whole_outputs: whether the last block computes all tokens, although the head reads one.
    """
    from pefttools.nn import attention, first_token, fused_blocks

    if is_quantised(model):
        return model
    if not whole_outputs and task.own_head and (last := first_token.last_block(model, _any_rows(model))):
        last.use()
    if precision == "auto" and not task.takes_rounding:
        return model
    if precision_of(precision) == "bf16":
        to_bf16(model, new)
        if task.own_head:
            attention.use(model)
            fused_blocks.use(model)
    return model


def _any_rows(model: nn.Module) -> dict[str, Any]:
    """Two rows of arbitrary tokens."""
    import torch

    config: Any = model.config
    ids = torch.arange(2 * TOKENS, device=next(model.parameters()).device).view(2, TOKENS)
    return {"input_ids": ids % config.get_text_config().vocab_size}


def to_bf16(model: nn.Module, head: Sequence[str]) -> None:
    """Convert all parameters except those of the head's modules to bf16.

    Buffers stay as they are, because rotary angles need their precision.
    """
    import torch

    inside = [m for name, m in model.named_modules() if any(f".{name}".endswith(f".{path}") for path in head)]
    in_head = {id(p) for module in inside for p in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in in_head:
            parameter.data = parameter.data.to(torch.bfloat16)
    for module in inside:
        module.register_forward_pre_hook(_in_fp32, with_kwargs=True)


def _in_fp32(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    del module
    return tuple(map(_fp32, args)), {name: _fp32(value) for name, value in kwargs.items()}


def _fp32(value: Any) -> Any:
    import torch

    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
