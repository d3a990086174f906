"""Successive halving (Jamieson and Talwalkar 2016) planned for a budget of seconds.

Every candidate is tried with some learning rates for a ninth of the epochs, the better third goes on for a third of
them, and the best candidates are trained in full with several seeds. Each rung trains from the start, so that the
schedule of the learning rate is always whole. What a step of each candidate takes was measured before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pefttools.bench.suite import around

ETA = 3
"""A rung keeps one of so many, and trains them so many times longer."""
SAFETY = 1.15
"""Trials are planned to take so much longer than measured."""
SHAPES = (
    # learning rates, seeds, finalists, share of the epochs
    (3, 3, 3, 1.0), (3, 3, 2, 1.0), (2, 3, 2, 1.0), (2, 2, 2, 1.0), (2, 2, 2, 0.5), (1, 2, 2, 1.0), (1, 2, 2, 0.5),
    (1, 1, 2, 0.5), (1, 1, 2, 0.25), (1, 1, 1, 0.25),
)  # fmt: skip
SEVERAL = tuple(shape for shape in SHAPES if shape[1] > 1)
FEW = 3


@dataclass(frozen=True, eq=False)
class Candidate:
    """A strategy and what it costs."""

    label: str
    strategy: Mapping[str, Any]
    """As a recipe says it."""
    trainable: int
    default_lr: float
    lr_range: tuple[float, float]
    step_seconds: float
    eval_seconds: float
    """Of a look at the validation rows, one an epoch."""
    overhead_seconds: float
    """Of a trial of one epoch, beside its steps."""

    def rates(self, number: int) -> list[float]:
        """So many learning rates around the default."""
        if number == 1:
            return [self.default_lr]
        return list(around(self.default_lr, self.lr_range, number))

    def seconds(self, epochs: float, steps_per_epoch: int) -> float:
        """Of a trial."""
        steps, looks = max(1, round(epochs * steps_per_epoch)), max(0.0, epochs - 1)
        return SAFETY * (self.overhead_seconds + looks * self.eval_seconds + steps * self.step_seconds)


@dataclass(frozen=True)
class Halving:
    """What will be run."""

    candidates: tuple[Candidate, ...]
    rates: int
    seeds: int
    finalists: int
    epochs: float
    """Of the finals."""
    steps_per_epoch: int

    @property
    def rungs(self) -> list[tuple[float, int]]:
        """(epochs, how many go in) before the finals."""
        number = len(self.candidates) * self.rates
        if number <= self.finalists:
            return []
        found = [(self.epochs / ETA**2, number)]
        if math.ceil(number / ETA) > self.finalists:
            found.append((self.epochs / ETA, math.ceil(number / ETA)))
        return found

    @property
    def seconds(self) -> float:
        """Of all of it; who goes on is not known, so the dearest are taken to."""
        total = 0.0
        for place, (epochs, number) in enumerate(self.rungs):
            costs = sorted((c.seconds(epochs, self.steps_per_epoch) for c in self.candidates), reverse=True)
            each = [cost for cost in costs for _ in range(self.rates)]
            total += sum(each[:number]) if place else sum(each)
        return total + self.finals_seconds

    @property
    def finals_seconds(self) -> float:
        """Of the finals, if they are the dearest."""
        finals = sorted((c.seconds(self.epochs, self.steps_per_epoch) for c in self.candidates), reverse=True)
        return self.seeds * sum(finals[: self.finalists])

    @property
    def sentences(self) -> list[str]:
        """For the user, before it starts."""
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
    """The most thorough plan that fits; None where not one trial does.

    The dearest candidates go before several seeds do, and several seeds go before the last `FEW` candidates.
    """
    by_cost = sorted(candidates, key=lambda c: c.seconds(epochs, steps_per_epoch))
    few = min(FEW, len(by_cost))
    passes = ((SEVERAL, range(len(by_cost), few - 1, -1)), (SHAPES, range(few, 0, -1)))
    for shapes, numbers in passes:
        for rates, seeds, finalists, share in shapes:
            for number in numbers:
                kept = tuple(c for c in candidates if c in by_cost[:number])
                plan = Halving(kept, rates, seeds, min(finalists, number), share * epochs, steps_per_epoch)
                if plan.seconds <= budget:
                    return plan
    return None
