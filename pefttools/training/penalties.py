"""Penalties: the gradients of the recipe's regularizers and of the strategy's own penalty.

They depend on the weights only, so they are added once a step, whatever the batches, and alike on every process.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

from pefttools.data.encoding import encode_once
from pefttools.data.settings import FileSettings
from pefttools.data.splitting import Row, load_rows
from pefttools.errors import UserError
from pefttools.recipe.recipe import Recipe
from pefttools.regularizers.base import Penalty
from pefttools.reporter import SILENT, Reporter
from pefttools.strategies.base import Strategy, trained
from pefttools.training.replay import some_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pefttools.bases.loading import Base
    from pefttools.training.run import Run


class Penalties:
    """All penalties of a run, bound to its model."""

    def __init__(self, strategy: Strategy, model: nn.Module, bound: Sequence[Penalty] = (), digest: str = "") -> None:
        self.strategy, self.model, self.bound = strategy, model, bound
        self.parameters = list(trained(model).values())
        self.digest = digest
        """Digest of the rows that penalties were computed from (EWC)."""

    @classmethod
    def bind(
        cls,
        recipe: Recipe,
        base: Base,
        model: nn.Module,
        reporter: Reporter = SILENT,
        earlier: Run | None = None,
    ) -> Self:
        """The penalties of a recipe. Raises UserError where one would affect no parameter.

        Args:
            earlier: the run that training goes on from, whose rows are the old data where a penalty names none.
        """
        seen = hashlib.sha256()

        def row_losses(file: FileSettings | None, number: int) -> Iterator[Tensor]:
            rows = _old_rows(recipe, file, number, earlier, reporter)
            return _row_losses(recipe, base, model, rows, seen, reporter)

        bound = [r.bind(model, base.new, row_losses) for r in recipe.regularizers.values()]
        return cls(recipe.strategy, model, bound, seen.hexdigest())

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Context of a step's passes, inside which penalties may change the weights (mixout)."""
        with ExitStack() as stack:
            for penalty in self.bound:
                stack.enter_context(penalty.perturbed())
            yield

    def add_gradients(self) -> torch.Tensor | float:
        """Add the penalties' gradients to those of the loss; returns the sum of the penalties, shape ()."""
        import torch

        from pefttools.nn.sharding import whole

        values = [self.strategy.penalty(self.model), *(penalty.value() for penalty in self.bound)]
        terms = [value for value in values if value is not None]
        if not terms:
            return 0.0
        total = torch.stack(terms).sum()
        # not backward(): a data-parallel wrapper would treat that as a second backward pass
        for parameter, gradient in zip(
            self.parameters, torch.autograd.grad(total, self.parameters, allow_unused=True), strict=True
        ):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return whole(total.detach())


def mark_pretrained(base: Base) -> None:
    """Mark the base's pretrained parameters, before a strategy adds others; those of a new head are not pretrained."""
    new = tuple(f"{path}." for path in base.new)
    for name, parameter in base.model.named_parameters():
        parameter.pretrained = not name.startswith(new)  # type: ignore[attr-defined]


def _old_rows(
    recipe: Recipe, file: FileSettings | None, number: int, earlier: Run | None, reporter: Reporter
) -> Sequence[Row]:
    """The first rows of a file, or rows of the earlier run and the runs before it. Raises UserError without either."""
    if file is not None:
        settings = recipe.data.model_copy(update={"test": file})
        return load_rows("test", settings, recipe.task, Counter(), reporter)[:number]
    if earlier is None:
        raise UserError(
            "regularizers.ewc.data: is required, because training goes on from no run (--from) whose rows could be used"
        )
    return some_rows(earlier, number, "regularizers.ewc")


def _row_losses(
    recipe: Recipe, base: Base, model: nn.Module, rows: Sequence[Row], seen: Any, reporter: Reporter
) -> Iterator[Tensor]:
    """The loss of each row, with its graph, computed in evaluation mode."""
    task = recipe.task
    task.check_scorable("regularizers.ewc.data", rows)
    seen.update(json.dumps([*rows], sort_keys=True).encode())
    encoded = encode_once(rows, task, base, "penalty", reporter, training=True)
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        for i in range(len(encoded)):
            columns: Any = encoded[i : i + 1]
            batch = {k: v.to(device) for k, v in task.collate_training(columns, base.tokenizer, 1).items()}
            yield task.loss(model(**task.inputs_of(batch)), batch)
    finally:
        model.train(was_training)
