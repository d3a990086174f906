"""Stop a hopeless trial of a search early, by Optuna's pruners, in a way that can be repeated.

What a trial is compared with is fixed when it begins: the curves of the trials that had ended by then. So the decision
is the same however many trials run side by side, and after a kill. Places on a curve are thousandths of a run, so that
trials of different lengths can be compared; an earlier trial counts with its last evaluation up to that place.

- `median`: its best score so far is below the median of the finished trials at the same place (Golovin et al. 2017)
- `hyperband`: successive halving with several smallest shares of a run (Li et al. 2018)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

PRUNERS = ("median", "hyperband", "none")
PLACES = 1000
"""A run has this many places for an evaluation."""
REDUCTION = 3
"""Hyperband's η: the share of trials that go on at a rung is 1/η."""

Curve = Sequence[Mapping[str, float]]
"""The evaluations of a run, as `trial.curve` returns them."""


@dataclass(frozen=True)
class Earlier:
    """A trial that ended before another one began."""

    number: int
    curve: Curve
    is_finished: bool
    """Whether it was trained to its end."""


@dataclass(frozen=True)
class Pruning:
    """Decides by Optuna's pruner `kind` whether trial `number` of a search is hopeless."""

    kind: str
    number: int
    earlier: tuple[Earlier, ...]
    lower_is_better: bool

    def is_hopeless(self, curve: Curve) -> bool:
        """Whether the trial should stop after the last of these evaluations; never at its end."""
        points = values(curve)
        if self.kind == "none" or not self.earlier or not points or max(points) >= PLACES:
            return False
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(
            study_name="search", direction="minimize" if self.lower_is_better else "maximize",
            sampler=optuna.samplers.RandomSampler(seed=0), pruner=_pruner(self.kind, min(points)),
        )  # fmt: skip
        by_number = {one.number: one for one in self.earlier}
        for number in range(self.number):  # a trial's number decides its bracket in Hyperband
            trial, one = study.ask(), by_number.get(number)
            reached = _at(values(one.curve), points) if one else {}
            for place, value in reached.items():
                trial.report(value, place)
                trial.should_prune()  # for the rungs that successive halving remembers
            if one and one.is_finished and reached:
                study.tell(trial, one.curve[-1]["score"])
            else:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED if reached else optuna.trial.TrialState.FAIL)
        trial, decision = study.ask(), False
        for place, value in points.items():
            trial.report(value, place)
            decision = trial.should_prune()
        return decision


def values(curve: Curve) -> dict[int, float]:
    """Place -> score of each evaluation."""
    return {round(PLACES * one["progress"]): one["score"] for one in curve}


def _at(curve: Mapping[int, float], places: Mapping[int, Any]) -> dict[int, float]:
    """The last score of an earlier trial up to each of these places, as far as it was trained."""
    found = {}
    for place in places:
        before = [one for one in curve if one <= place]
        if before and place <= max(curve):
            found[place] = curve[max(before)]
    return found


def _pruner(kind: str, first: int) -> BasePruner:
    """Optuna's pruner.

    Args:
        first: the place of a run's first evaluation, the smallest share after which a trial may stop.
    """
    import optuna

    if kind == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=PLACES, reduction_factor=REDUCTION)
    return optuna.pruners.MedianPruner()
