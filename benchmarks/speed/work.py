"""The number of operations of a training run, and the rate at which this processor multiplies matrices.

Only products of weights with tokens count: for each weight and token 2 operations in the forward pass, 2 for the
gradient of the input in every block from the lowest trained one up, and 2 for the gradient of a trained weight. That is
2·weights·tokens, times 1 forward and 0 (head alone), 1 (LoRA) or 2 (full fine-tuning) backward. Attention's own
products, embeddings, norms, a classifier's head (once a row) and padding do not count. The number assumes that frozen
parts are computed in every epoch; a run that computes them once may exceed 100%.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pefttools.nn import module_paths
from pefttools.recipe.recipe import Recipe
from pefttools.tasks.base import Task

SIDE, REPEATS = 1024, 9
"""Size of the square matrices whose product is timed, and the number of repetitions."""


def operations_per_token(recipe: Recipe, task: Task, training: bool = True) -> int:
    """Operations for each token of a step, or of a forward pass alone; counted on a model without weights."""
    base = task.load(recipe.base, empty=True)
    if training:
        recipe.strategy.wrap(base)
    parts: list[nn.Module] = [base.model.get_submodule(path) for path in module_paths.blocks(base.model)]
    if (table := base.model.get_output_embeddings()) is not None:  # of a language model, computed for every token
        parts.append(table)
    learning = [any(p.requires_grad for p in part.parameters()) for part in parts]
    lowest = learning.index(True) if any(learning) else len(parts)
    counted = 0
    for depth, part in enumerate(parts):
        for matrix in (module for module in part.modules() if isinstance(module, nn.Linear)):
            passes = 1 + (depth >= lowest) + matrix.weight.requires_grad if training else 1
            counted += 2 * passes * matrix.weight.numel()
    return counted


def product_rates() -> dict[str, float]:
    """Operations a second of `torch.mm` on square matrices, by precision; medians."""
    return {name: _rate(dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}


def _rate(dtype: torch.dtype) -> float:
    one, other = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    torch.mm(one, other)
    return 2 * SIDE**3 / statistics.median(seconds(lambda: torch.mm(one, other)) for _ in range(REPEATS))


def seconds(call: Callable[[], Any]) -> float:
    """Duration of a call in seconds."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
