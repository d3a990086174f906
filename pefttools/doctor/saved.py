"""What a run saved, compared with how it started: a head that is missing, and tensors that never moved.

The start is computed again from the seed of the run: the base, its new head and the wrapped strategy draw the same
random numbers as they did before training. If another version of a library draws others, equal tensors are no longer
found, so the check finds nothing rather than something wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.data.encoding import Encoded, columns_of
from pefttools.errors import UserError
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import Finding, Reporter
from pefttools.strategies.base import WEIGHTS, read, trained
from pefttools.training import wrapping
from pefttools.training.run import Run, Trained, load

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.bases.loading import Base
    from pefttools.data.rows import Row

ROWS = 64
"""Number of rows on which models are compared."""
SHOWN = 3
MAY_RETURN = ("lora_E",)
"""Parameters that start at zero and may end there: AdaLoRA sets the singular values that it prunes to zero."""


@dataclass(frozen=True)
class Start:
    """A run's model before its training."""

    base: Base
    model: nn.Module
    of_base: frozenset[str]
    """Names of the base's parameters, before it was wrapped."""


@dataclass(frozen=True)
class RunToCheck:
    """A finished run; what its checks need is loaded once, when the first of them asks for it."""

    run: Run
    reporter: Reporter

    @cached_property
    def recipe(self) -> Recipe:
        return self.run.recipe()

    @cached_property
    def result(self) -> dict[str, Any]:
        return self.run.result()

    @cached_property
    def start(self) -> Start:
        """The wrapped base with its initial weights. Raises UserError when the base cannot be loaded."""
        from accelerate.utils import set_seed

        set_seed(self.recipe.seed)
        base = wrapping.load_base(self.recipe, self.reporter)
        names = frozenset(name for name, _ in base.model.named_parameters())
        return Start(base, wrapping.wrap(self.recipe, base).eval(), names)

    @cached_property
    def trained(self) -> Trained:
        """The trained model. Raises UserError when it cannot be loaded."""
        return load(self.run.path, self.reporter, is_calibrated=False)

    @cached_property
    def rows(self) -> Sequence[Row]:
        """The first of the rows that the run was scored on; empty for a run that did not save them."""
        scored = self.run.scored_rows()
        return scored.rows[:ROWS] if scored else []

    @cached_property
    def encoded(self) -> Encoded:
        """The encoded `rows`."""
        return Encoded(columns_of(self.rows, self.recipe.task, self.start.base.tokenizer))

    def is_of_head(self, name: str) -> bool:
        """Whether a parameter of the wrapped model belongs to the head."""
        plain = f".{unwrapped(name)}"
        return any(f".{path}." in f"{plain}." for path in self.start.base.head)


def unwrapped(name: str) -> str:
    """A parameter's name without what peft adds to it: `base_model.model.score.modules_to_save.default.weight`."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "").replace(".default", "")


def loads(subject: RunToCheck) -> str | None:
    """The reason why the run's trained model cannot be compared with its start, or None."""
    if not subject.recipe.strategy.trains:
        return "the strategy trains nothing"
    try:
        names = {name for name, _ in subject.trained.model.named_parameters()}
        return None if names & {*trained(subject.start.model)} else "the model has no tensor of those at its start"
    except UserError as error:
        return error.problems[0]


def missing_head(subject: RunToCheck) -> Iterator[Finding]:
    """A finding if tensors of the head are not among those that were saved."""
    expected = [name for name in trained(subject.start.model) if subject.is_of_head(name)]
    file = subject.run.adapter / WEIGHTS
    present = {unwrapped(name) for name in read(subject.run.adapter)} if file.is_file() else set()
    lost = [unwrapped(name) for name in expected if unwrapped(name) not in present]
    if not lost:
        return
    yield Finding(
        "head missing",
        "the saved adapter lacks the head, so whoever loads it predicts with random weights",
        f"{len(lost)} of {len(expected)} tensors of the head are not among the {len(present)} in {file.name}:"
        f" {', '.join(lost[:SHOWN])}",
        _again(subject.run.path),
    )


def never_moved(subject: RunToCheck) -> Iterator[Finding]:
    """A finding if trained tensors still have the values that they started with."""
    now = dict(subject.trained.model.named_parameters())
    before = {name: p for name, p in trained(subject.start.model).items() if not any(n in name for n in MAY_RETURN)}
    compared = {name: value for name, value in before.items() if name in now and now[name].shape == value.shape}
    still = [name for name, value in compared.items() if _equal(value, now[name])]
    if not still:
        return
    yield Finding(
        "tensors that never moved",
        "training did not change tensors that it should have trained",
        f"{len(still)} of {len(compared)} trained tensors equal their starting values after"
        f" {subject.result['train'].get('steps', 0)} steps: {', '.join(map(unwrapped, still[:SHOWN]))}",
        _again(subject.run.path, f" train.learning_rate={subject.recipe.strategy.start_lr():g}"),
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    import torch

    return torch.equal(one.detach().cpu(), other.detach().cpu())


def _again(path: Path, more: str = "") -> str:
    return f"pefttools train {path / 'recipe.yaml'}{more} --out NEW_RUN"
