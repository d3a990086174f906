"""What is added to the loss beside the task's: the recipe's penalties and the strategy's own term, as gradients.

They depend on the weights alone, so they are added once a step, apart from the batches and alike on every process.
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
from pefttools.data.splitting import load_rows
from pefttools.recipe.recipe import Recipe
from pefttools.regularizers.base import Penalty
from pefttools.reporter import SILENT, Reporter
from pefttools.strategies.base import Strategy, trained

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pefttools.bases.loading import Base


class Penalties:
    """Every penalty of a run, bound to its model at the start."""

    def __init__(self, strategy: Strategy, model: nn.Module, bound: Sequence[Penalty] = (), digest: str = "") -> None:
        self.strategy, self.model, self.bound = strategy, model, bound
        self.parameters = list(trained(model).values())
        self.digest = digest
        """Of the rows that penalties looked at."""

    @classmethod
    def bind(cls, recipe: Recipe, base: Base, model: nn.Module, reporter: Reporter = SILENT) -> Self:
        """Those of a recipe. Raises UserError where one would touch nothing."""
        seen = hashlib.sha256()

        def row_losses(file: FileSettings, number: int) -> Iterator[Tensor]:
            return _row_losses(recipe, base, model, file, number, seen, reporter)

        bound = [r.bind(model, base.new, row_losses) for r in recipe.regularizers.values()]
        return cls(recipe.strategy, model, bound, seen.hexdigest())

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Around a step's passes: inside, weights may be mixed (mixout)."""
        with ExitStack() as stack:
            for penalty in self.bound:
                stack.enter_context(penalty.perturbed())
            yield

    def add_gradients(self) -> torch.Tensor | float:
        """Add the penalties' gradients to those of the loss; the answer is their sum, shape ()."""
        import torch

        values = [self.strategy.penalty(self.model), *(penalty.value() for penalty in self.bound)]
        terms = [value for value in values if value is not None]
        if not terms:
            return 0.0
        total = torch.stack(terms).sum()
        # not backward(): a data-parallel wrapper would take that for a second pass
        for parameter, gradient in zip(
            self.parameters, torch.autograd.grad(total, self.parameters, allow_unused=True), strict=True
        ):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return total.detach()


def mark_pretrained(base: Base) -> None:
    """Tell the base's own weights from what a strategy is about to add, and from a new head."""
    new = tuple(f"{path}." for path in base.new)
    for name, parameter in base.model.named_parameters():
        parameter.pretrained = not name.startswith(new)  # type: ignore[attr-defined]


def _row_losses(
    recipe: Recipe, base: Base, model: nn.Module, file: FileSettings, number: int, seen: Any, reporter: Reporter
) -> Iterator[Tensor]:
    """The loss of each of a file's first rows, with its graph, the model in evaluation mode."""
    task = recipe.task
    settings = recipe.data.model_copy(update={"test": file})
    rows = load_rows("test", settings, task, Counter(), reporter)[:number]
    task.refuse_strange("regularizers.ewc.data", rows)
    seen.update(json.dumps(rows, sort_keys=True).encode())
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
