"""What a run that goes on from earlier runs has forgotten: every earlier test set scored before and after training.

R[t][i] is the score on the test rows of run i after run t. With T runs, backward transfer is the mean over i < T of
R[T][i] − R[i][i] (Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory", eq. 3), and forgetting is the mean over i < T
of max over t < T of R[t][i], minus R[T][i] (Chaudhry et al. 2018, "Riemannian Walk", eq. 3). Where lower scores are
better (perplexity), the differences change their sign, so that positive forgetting is always a loss.

A classifier chooses among all classes that it has so far, as `predict` does; the rows of run i have only the classes of
that run and those before it. `own` has the scores if it chooses among the classes of run i's rows alone, which tells
lost knowledge from a preference for the newest classes. Rows are encoded as run i encoded them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pefttools.data.encoding import encode
from pefttools.data.rows import Row, key, labels_of
from pefttools.reporter import Reporter
from pefttools.training.evaluation import Evaluator
from pefttools.training.own_rows import own_rows
from pefttools.training.replay import lineage
from pefttools.training.run import Run

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pefttools.tasks.base import Prediction, Task
    from pefttools.training.earlier import Earlier
    from pefttools.training.preparation import Prepared

KEY = "earlier runs"
"""Where `Progress.before` keeps the scores before training."""
TOLERANCE = 0.005
"""Difference from a recorded score above which the start is not the model that was recorded."""


@dataclass(frozen=True)
class EarlierTests:
    """The test rows of all runs before a run."""

    runs: list[Run]
    rows: list[Sequence[Row]]
    tasks: list[Task]
    """Each run's own task, with the classes of the present head."""

    @classmethod
    def of(cls, earlier: Earlier | None, now: Task, training: Sequence[Row], reporter: Reporter) -> EarlierTests:
        """The test rows of the runs before this one; none where training goes on from no run, or with a new head.

        Args:
            now: the fitted task of this run.
            training: its training rows.

        Raises:
            UserError: a run is gone, damaged, or was changed.
        """
        has_new_head = earlier is not None and earlier.new_head and now.has_class_head
        runs = lineage(Run.open(earlier.run.path)) if earlier and earlier.run and not has_new_head else []
        if runs:  # those before a new head or a merge are not in the ledger
            runs = runs[-len((runs[-1].result().get("ledger") or {"runs": [None]})["runs"]) :]
        tasks = [run.recipe().task for run in runs]
        if now.has_class_head:
            tasks = [task.with_values(labels=now.labels) for task in tasks]  # type: ignore[attr-defined]
        rows = [own_rows(run, task).rows for run, task in zip(runs, tasks, strict=True)]
        known = {key(row, now) for row in training} if runs else set()
        for run, tested in zip(runs, rows, strict=True):
            if number := sum(key(row, now) in known for row in tested):
                reporter.warn(
                    f"{number} of the {len(tested)} rows that {run.path.name} was scored on are now training rows; its"
                    " score after training is too optimistic"
                )
        return cls(runs, rows, tasks)

    def scores(self, prepared: Prepared, accelerator: Accelerator, reporter: Reporter, when: str) -> dict[str, Any]:
        """The scores of the model with its present weights: `all`, and `own` where the task has classes."""
        found: dict[str, Any] = {"all": [], "own": []}
        for run, rows, task in zip(self.runs, self.rows, self.tasks, strict=True):
            evaluator = Evaluator(prepared.model, task, prepared.base.tokenizer, accelerator, reporter)
            encoded = encode(rows, task, prepared.base, "test", reporter)
            scored = evaluator.score(encoded, rows, f"{run.path.name}, {when}", generate=True)
            found["all"].append(scored.metrics[task.primary])
            found["own"].append(_own(task, scored.predictions, rows))
        return found

    def ledger(
        self, task: Task, before: dict[str, Any], after: dict[str, Any], own: dict[str, Any], reporter: Reporter
    ) -> dict[str, Any]:
        """The entry `ledger` of result.json.

        Args:
            task: the new run's task.
            before: the scores before training.
            after: the scores after training.
            own: the new run's score on its own test rows, in the same form.
        """
        previous = self.runs[-1].result()
        former = previous.get("ledger") or _of_first(self.runs[-1], self.rows[0], self.tasks[0])
        sign = -1 if task.lower_is_better else 1
        entry: dict[str, Any] = {
            "metric": task.primary,
            "runs": [
                *({"name": run.path.name, "path": str(run.path), "rows": len(rows)}
                  for run, rows in zip(self.runs, self.rows, strict=True)),
                {"name": "this run", "path": None, "rows": own["rows"]},
            ],
            "before": before,
        }  # fmt: skip
        for kind in ("all", "own"):
            last = [*after[kind], own[kind]]
            if any(score is None for score in (*last, *before[kind])):
                continue
            matrix = [*former[kind]["scores"], last]
            entry[kind] = {"scores": matrix, **summary(matrix, sign)}
        self._compare(former, before, reporter)
        return entry

    def _compare(self, former: dict[str, Any], before: dict[str, Any], reporter: Reporter) -> None:
        """Warn if the model before training does not score what the last run recorded."""
        kind = "own" if "own" in former and None not in before["own"] else "all"
        for run, was, now in zip(self.runs, former[kind]["scores"][-1], before[kind], strict=True):
            if abs(was - now) > TOLERANCE * max(1.0, abs(was)):
                reporter.warn(
                    f"before training, the model scores {now:.4f} on the rows of {run.path.name}, but {was:.4f} was"
                    f" recorded in {self.runs[-1].path.name}; was that on another machine?"
                )


def own_score(
    task: Task, metrics: dict[str, Any], predictions: Sequence[Prediction], rows: Sequence[Row]
) -> dict[str, Any]:
    """The new run's score on its own rows, in the form of `EarlierTests.scores` for one run, and their number."""
    return {"all": metrics[task.primary], "own": _own(task, predictions, rows), "rows": len(rows)}


def _own(task: Task, predictions: Sequence[Prediction], rows: Sequence[Row]) -> float | None:
    """The score if the model chooses among the classes of these rows alone; None for other tasks than of classes."""
    classes = {label for row in rows for label in labels_of(row)}
    chosen = task.among(predictions, classes)
    return None if chosen is None else task.metrics(chosen, [task.reference(row) for row in rows])[task.primary]


def _of_first(run: Run, rows: Sequence[Row], task: Task) -> dict[str, Any]:
    """The ledger of a run without earlier ones."""
    result = run.result()
    score = (result["test"] or result["validation"])[task.primary]
    found: dict[str, Any] = {"all": {"scores": [[score]]}}
    own = run.recipe().task
    _, _, predictions = run.predictions()
    shown = [_with_names(prediction, own.class_names) for prediction in predictions]
    if (alone := _own(own, shown, rows)) is not None:
        found["own"] = {"scores": [[alone]]}
    return found


def _with_names(prediction: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A prediction of predictions.parquet with its probabilities by class."""
    shares = prediction.get("probabilities")
    return {**prediction, "probabilities": dict(zip(names, shares, strict=True))} if shares is not None else prediction


def summary(matrix: Sequence[Sequence[float]], sign: int = 1) -> dict[str, float]:
    """Forgetting and backward transfer, from the scores after every run.

    Args:
        sign: -1 where lower scores are better.
    """
    *former, last = matrix
    earlier = range(len(former))
    best: Callable[[Sequence[float]], float] = max if sign > 0 else min
    peaks = [best([row[i] for row in former if i < len(row)]) for i in earlier]
    return {
        "forgetting": fmean(sign * (peaks[i] - last[i]) for i in earlier),
        "backward_transfer": fmean(sign * (last[i] - former[i][i]) for i in earlier),
    }
