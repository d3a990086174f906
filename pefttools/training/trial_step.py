"""A trial step on a few rows before anything is written, so that a method that does not fit its base fails early.

Signatures do not show whether a model takes past keys or mixes precisions, so the model is run: one evaluation in fp32,
one generated text where the task generates, one training step and one evaluation in the run's precision, all with the
run's speedups. Afterwards gradients and random states are as before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttools.data.batching import pad_multiple, step_multiple
from pefttools.device import Precision, precision_of
from pefttools.errors import UserError
from pefttools.nn.input_embeddings import substituted
from pefttools.nn.sharding import without_gradients
from pefttools.objectives._composition import Composed, need_plain_autograd
from pefttools.objectives.base import Batch
from pefttools.strategies.base import trained
from pefttools.training import optimizer_setup, speedups
from pefttools.training.micro_batches import collated
from pefttools.training.process import forward
from pefttools.training.step import MicroBatch, StepGradients

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

    from pefttools.bases.loading import Base
    from pefttools.data.splitting import Row
    from pefttools.nn.first_token import LastBlock
    from pefttools.nn.frozen import Frozen
    from pefttools.nn.output_layer import OutputLayer
    from pefttools.recipe.recipe import Recipe

FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""Errors that torch, transformers and peft raise where a method does not fit a model."""
NEW_TOKENS = 2
"""Number of tokens to generate where the task generates text."""
SEARCHED = 200
"""Number of rows among which the shortest are searched."""


@dataclass(frozen=True)
class FirstStep:
    """A run's first step on its two shortest rows of different lengths."""

    recipe: Recipe
    base: Base
    model: nn.Module
    objectives: Composed
    rows: Dataset
    """Encoded rows to train on."""
    scored: Dataset
    """Encoded rows to evaluate on; a task that draws its targets at random has no targets in `rows`."""
    device: str
    frozen: Frozen
    last: LastBlock | None
    layer: OutputLayer | None = None

    def take(self, to_answer: Sequence[Row] = ()) -> None:
        """Run every kind of pass of a run once.

        Args:
            to_answer: rows for which a run would generate text; only the first is used.

        Raises:
            UserError: a pass fails; the message suggests fp32 where that works.
        """
        precision = precision_of(self.recipe.train.precision)
        with _random_states_restored():
            try:
                with refusal(self.recipe, self.base, precision):
                    self._passes(precision, to_answer)
            except UserError as error:
                if precision != "fp32" and self._fits_in_fp32(to_answer):
                    raise UserError(f"{error.problems[0].partition(CURE)[0]}; train.precision=fp32 works") from error
                raise

    def _fits_in_fp32(self, to_answer: Sequence[Row]) -> bool:
        try:
            self._passes("fp32", to_answer)
        except (*FAILURES, UserError):
            return False
        return True

    def _passes(self, precision: Precision, to_answer: Sequence[Row]) -> None:
        recipe, model, task = self.recipe, self.model, self.recipe.task
        was_training = model.training
        try:
            self._evaluate("fp32")
            if to_answer and task.generates:
                short = {"max_new_tokens": NEW_TOKENS} if "max_new_tokens" in type(task).model_fields else {}
                list(task.with_values(**short).generate(model, to_answer[:1], self.base.tokenizer))
            if recipe.strategy.trains:
                optimizer_setup.build(model, recipe.strategy, recipe.train)
                settings = recipe.train.model_copy(update={"compile": False})
                plain = need_plain_autograd(recipe.objectives)
                with (
                    self.frozen.in_eval_mode(),
                    speedups.steps(model, settings, self.device, precision, self.last, plain),
                ):
                    self._train(precision)
                    self._evaluate(precision)
        finally:
            for parameter in model.parameters():
                parameter.grad = None
            model.train(was_training)

    def _evaluate(self, precision: Precision) -> None:

        task = self.recipe.task
        batch = self._batch(task.collate(_shortest(self.scored), self.base.tokenizer, pad_multiple(self.device)))
        self.model.eval()
        with without_gradients(self.model):
            task.predict(forward(self.model, task.inputs_of(batch), self.device, precision, self.layer), batch)

    def _train(self, precision: Precision) -> None:
        import torch

        task, strategy = self.recipe.task, self.recipe.strategy
        multiple = step_multiple(self.recipe.train.pad_multiple, self.device)
        batch = self._batch(collated(task, _shortest(self.rows), self.base.tokenizer, multiple))
        before = self.objectives.state()

        def run(batch: Batch, embeddings: Tensor | None = None) -> Any:
            with substituted(self.model, batch["input_ids"], embeddings):
                return forward(self.model, task.inputs_of(batch), self.device, precision, self.layer)

        self.model.train()
        self.objectives.add_gradients(run, batch, StepGradients(MicroBatch(batch, run), 1, torch.Tensor.backward))
        self.objectives.load_state(before)
        if (penalty := strategy.penalty(self.model)) is not None:
            penalty.backward()
        if all(parameter.grad is None for parameter in trained(self.model).values()):
            raise RuntimeError("no trained parameter gets a gradient")

    def _batch(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}


def _shortest(rows: Dataset) -> Any:
    """The columns of the two shortest rows of different lengths."""
    lengths = rows["length"][:SEARCHED]
    shortest = min(range(len(lengths)), key=lengths.__getitem__)
    others = [row for row, length in enumerate(lengths) if length > lengths[shortest]] or [shortest]
    return rows[sorted({shortest, min(others, key=lengths.__getitem__)})]


CURE = "; `pefttools list strategies` shows"


@contextmanager
def refusal(recipe: Recipe, base: Base, precision: Precision) -> Iterator[None]:
    """Turn the `FAILURES` of a model inside into one message; errors about memory are raised unchanged.

    Raises:
        UserError: the model raised one of `FAILURES`.
    """
    import torch

    try:
        yield
    except FAILURES as error:
        if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
            raise
        why = str(error).strip().partition("\n")[0]
        where = "" if precision == "fp32" else f" in {precision}"
        raise UserError(
            f"strategy: {recipe.strategy.title} cannot take a step on {base.source} ({type(base.model).__name__})"
            f"{where}: {type(error).__name__}: {why}{CURE} what works on which kind of model"
        ) from error


@contextmanager
def _random_states_restored() -> Iterator[None]:
    """Restore all random states at the end."""
    import numpy
    import torch

    python, numbers = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    numpy.random.set_state(numbers)
