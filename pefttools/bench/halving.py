"""Successive halving (Jamieson and Talwalkar 2016) planned for a budget of seconds.

Every candidate is trained with some learning rates for a ninth of the epochs, the better third for a third of the
epochs, and the best candidates for all epochs with several seeds. Each rung trains from the start, so that the learning
rate always goes through its whole schedule. The time of each candidate's step was measured before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pefttools.bench.suite import around

ETA = 3
"""A rung continues with one of `ETA` configurations and trains them `ETA` times longer."""
SAFETY = 1.15
"""Factor by which planned times are longer than measured ones."""
SHAPES = (
    # learning rates, seeds, finalists, share of the epochs
    (3, 3, 3, 1.0), (3, 3, 2, 1.0), (2, 3, 2, 1.0), (2, 2, 2, 1.0), (2, 2, 2, 0.5), (1, 2, 2, 1.0), (1, 2, 2, 0.5),
    (1, 1, 2, 0.5), (1, 1, 2, 0.25), (1, 1, 1, 0.25),
)  # fmt: skip
SEVERAL = tuple(shape for shape in SHAPES if shape[1] > 1)
FEW = 3


@dataclass(frozen=True, eq=False)
class Candidate:
    """A strategy and its measured costs."""

    label: str
    strategy: Mapping[str, Any]
    """The section `strategy` of a recipe."""
    trainable: int
    default_lr: float
    lr_range: tuple[float, float]
    step_seconds: float
    eval_seconds: float
    """Time of an evaluation on the validation rows; there is one an epoch."""
    overhead_seconds: float
    """Time of a trial of one epoch without its steps."""

    def rates(self, number: int) -> list[float]:
        """`number` learning rates around the default."""
        if number == 1:
            return [self.default_lr]
        return list(around(self.default_lr, self.lr_range, number))

    def seconds(self, epochs: float, steps_per_epoch: int) -> float:
        """Planned time of a trial."""
        steps, more_evals = max(1, round(epochs * steps_per_epoch)), max(0.0, epochs - 1)
        return SAFETY * (self.overhead_seconds + more_evals * self.eval_seconds + steps * self.step_seconds)


@dataclass(frozen=True)
class Halving:
    """A plan of successive halving."""

    candidates: tuple[Candidate, ...]
    rates: int
    seeds: int
    finalists: int
    epochs: float
    """Epochs of the finals."""
    steps_per_epoch: int

    @property
    def rungs(self) -> list[tuple[float, int]]:
        """(epochs, number of configurations) of each rung before the finals."""
        number = len(self.candidates) * self.rates
        if number <= self.finalists:
            return []
        found = [(self.epochs / ETA**2, number)]
        if math.ceil(number / ETA) > self.finalists:
            found.append((self.epochs / ETA, math.ceil(number / ETA)))
        return found

    @property
    def seconds(self) -> float:
        """Planned time of everything, assuming that the slowest candidates always continue."""
        total = 0.0
        for place, (epochs, number) in enumerate(self.rungs):
            costs = sorted((c.seconds(epochs, self.steps_per_epoch) for c in self.candidates), reverse=True)
            each = [cost for cost in costs for _ in range(self.rates)]
            total += sum(each[:number]) if place else sum(each)
        return total + self.finals_seconds

    @property
    def finals_seconds(self) -> float:
        """Planned time of the finals, assuming that the slowest candidates reach them."""
        finals = sorted((c.seconds(self.epochs, self.steps_per_epoch) for c in self.candidates), reverse=True)
        return self.seeds * sum(finals[: self.finalists])

    @property
    def sentences(self) -> list[str]:
        """The plan in words, for the user."""
        names = ", ".join(c.label for c in self.candidates)
        first = f"{len(self.candidates)} candidates ({names})"
        found = [f"{first}, {self.rates} learning rate{'s' if self.rates > 1 else ''} each"]
        found += [f"{number} trials of {epochs:.2g} epochs" for epochs, number in self.rungs]
        few = min(self.finalists, len(self.candidates))
        return [
            *found,
            f"the best {few} with {self.seeds} seed{'s' if self.seeds > 1 else ''}, {self.epochs:.2g} epochs",
        ]


def planned(candidates: Sequence[Candidate], budget: float, epochs: float, steps_per_epoch: int) -> Halving | None:
    """The most thorough plan within the budget; None if there is no time for a single trial.

    To fit, a plan first drops the slowest candidates, then several seeds, and last the fastest `FEW` candidates.
    """
    by_cost = sorted(candidates, key=lambda c: c.seconds(epochs, steps_per_epoch))
    few = min(FEW, len(by_cost))
    passes = ((SEVERAL, range(len(by_cost), few - 1, -1)), (SHAPES, range(few, 0, -1)))
    for shapes, numbers in passes:
        for rates, seeds, finalists, share in shapes:
            for number in numbers:
                fastest = tuple(c for c in candidates if c in by_cost[:number])
                plan = Halving(fastest, rates, seeds, min(finalists, number), share * epochs, steps_per_epoch)
                if plan.seconds <= budget:
                    return plan
    return None
