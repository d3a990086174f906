"""The points that a search tries, drawn by Optuna's samplers in a way that can be repeated.

Point n is drawn from the results of the trials up to n − `LAG` and from the points of those between, whose results it
does not wait for. So up to `LAG` trials run side by side, and the points are the same however many do, on which
machine, and after a kill. The first point is the recipe's defaults, if they lie in the space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttools.bench import pruning
from pefttools.bench.space import Space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

SAMPLERS = ("tpe", "random", "gp", "grid")
LAG = 4
"""Number of trials that can run side by side."""
STARTUP = 10
"""Points that TPE and the Gaussian process draw at random before they use results."""
ATTEMPTS = 20
"""Draws of a point until it is new and valid."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Proposal:
    """A point to try, or one that was tried."""

    number: int
    texts: Mapping[str, str]
    digest: str


def draw(
    space: Space, sampler: str, number: int, attempt: int, proposals: Sequence[Proposal], records: Mapping[str, Record]
) -> dict[str, str]:
    """Draw point `number`.

    Args:
        proposals: all points before it.
        records: digest -> record, of trials up to `number - LAG`.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="minimize" if space.defaults.task.lower_is_better else "maximize",
        sampler=_sampler(sampler, _seed(space.seed, number, attempt)),
    )
    study.add_trials([frozen(space, one, records.get(one.digest)) for one in proposals])
    return space.draw(study.ask())


def frozen(space: Space, proposal: Proposal, record: Record | None) -> FrozenTrial:
    """A trial as Optuna's: running without a record; one that failed counts as worse than all pruned ones."""
    from optuna.trial import TrialState, create_trial

    params = space.params(proposal.texts)
    curve: Any = record.get("curve", ()) if record else ()
    state = TrialState.RUNNING if record is None else TrialState.PRUNED
    if record and record["status"] == "done":
        state = TrialState.COMPLETE
    return create_trial(
        state=state,
        value=record["validation"][record["metric"]] if record and state == TrialState.COMPLETE else None,
        params={name: value for name, (value, _) in params.items()},
        distributions={name: kind for name, (_, kind) in params.items()},
        intermediate_values=pruning.values(curve),
    )


def _sampler(name: str, seed: int) -> BaseSampler:
    import optuna

    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)


def _seed(*parts: int) -> int:
    """A seed of its own for each draw."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4])
