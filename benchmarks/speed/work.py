"""How much there is to compute, and how fast this processor multiplies matrices: what a rate is a share of.

Counted are the products of weights with tokens: 2 operations a weight and token forward, 2 for the gradient of the
input in every block from the lowest trained one up, 2 for the gradient of a trained weight. That is 2·weights·tokens
times 1 forward and 0 (a head alone), 1 (LoRA) or 2 (full) backward. Attention's own products, embeddings, norms, the
head of a classifier (once a row) and padding are left out. It is the work of a plain run: who computes a frozen part
once instead of every epoch may exceed 100%.
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
"""Of the square matrices whose product is timed, and how often."""


def operations_per_token(recipe: Recipe, task: Task, training: bool = True) -> int:
    """Operations a token of these steps, or of a forward alone; counted on a model without weights."""
    base = task.load(recipe.base, empty=True)
    if training:
        recipe.strategy.wrap(base)
    parts: list[nn.Module] = [base.model.get_submodule(path) for path in module_paths.blocks(base.model)]
    if (table := base.model.get_output_embeddings()) is not None:  # a language model's, which every token meets
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
    """How long a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
