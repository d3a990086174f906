"""How far training moved the base's weights, and in how many directions.

The change is ‖W − W₀‖_F: of each transformer block, and of all blocks together also divided by ‖W₀‖_F. The effective
rank of a matrix's change is exp of the entropy of its normalized singular values (Roy and Vetterli 2007); the mean over
matrices is reported. A method that can be merged is merged first. A method that cannot (prompt tuning) adds parameters
instead of changing the base's, so its change is 0 unless it also trains weights of the base.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pefttools.nn import module_paths
from pefttools.reporter import SILENT
from pefttools.training import stack

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.training.run import Trained

TINY = 1e-6
"""A change below this share of a matrix's norm is rounding from the merge."""


def moved(trained: Trained) -> dict[str, Any]:
    """The change of the weights; may modify the trained model in place.

    Returns:
        `blocks` (the norm for each block, from the lowest), `elsewhere`, `relative`, `effective_rank` (the mean over
        the changed matrices of the blocks; None where none changed) and `merged`.
    """
    recipe = trained.recipe
    start = stack.load_base(recipe, trained.path, SILENT)
    model: Any = trained.model
    merged = recipe.strategy.mergeable
    if merged:
        model = recipe.strategy.merge(model)
    after = dict(model.named_parameters())
    blocks, head = module_paths.blocks(start.model), tuple(f"{path}." for path in start.head)
    squares, ranks = [0.0] * len(blocks), []
    elsewhere = size = 0.0
    for name, before in start.model.named_parameters():
        if name.startswith(head):
            continue
        block = next((i for i, path in enumerate(blocks) if name.startswith(f"{path}.")), None)
        size += _square(before) if block is not None else 0.0
        now = _now(name, after)
        if now is None or now.shape != before.shape:
            continue
        change = (now.detach() - before.detach()).double()
        square = _square(change)
        if square <= (TINY**2 if merged else 0.0) * _square(before):
            continue
        if block is None:
            elsewhere += square
            continue
        squares[block] += square
        if change.ndim == 2:
            ranks.append(effective_rank(change))
    return {
        "blocks": [math.sqrt(square) for square in squares],
        "elsewhere": math.sqrt(elsewhere),
        "relative": math.sqrt(sum(squares) / size) if size else 0.0,
        "effective_rank": sum(ranks) / len(ranks) if ranks else None,
        "merged": merged,
    }


def effective_rank(change: Tensor) -> float:
    """exp(−Σ p ln p), where p are the singular values divided by their sum; at most min(m, n) for a matrix (m, n)."""
    import torch

    thin = change if change.shape[0] >= change.shape[1] else change.T
    values = torch.linalg.eigvalsh(thin.T @ thin).clamp(min=0).sqrt()
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def _square(x: Tensor) -> float:
    return float(x.detach().double().square().sum())


def _now(name: str, after: dict[str, nn.Parameter]) -> nn.Parameter | None:
    """The parameter of that name in a trained model; peft's prefixes are tried too."""
    path, _, last = name.rpartition(".")
    forms = (
        name, f"base_model.model.{name}", f"base_model.{name}",
        f"base_model.model.{path}.modules_to_save.default.{last}",
    )  # fmt: skip
    return next((after[form] for form in forms if form in after), None)
