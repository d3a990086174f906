"""What predictions say about how sure they are: the likeliest classes, sets of classes, and a mark for unsure rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pefttools.errors import UserError
from pefttools.inference import conformal
from pefttools.inference.predictor import is_artifact
from pefttools.training import calibrated
from pefttools.training.run import Run

if TYPE_CHECKING:
    from pefttools.tasks.base import Prediction, Task
    from pefttools.training.calibrated import Calibration

Change = Callable[["Prediction"], "Prediction"]


@dataclass(frozen=True)
class Confidence:
    """The options of `predict` on confidence."""

    top_k: int | None = None
    """Show this many of the likeliest classes, as `top`, instead of all probabilities."""
    threshold: float | None = None
    """Mark rows as `unsure` whose class is less probable; with several labels a row, predict labels from here on."""
    error_rate: float | None = None
    """Mark rows as `unsure` so that at most this share of all rows has a wrong answer without a mark."""

    def __post_init__(self) -> None:
        problems = []
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"--top-k: {self.top_k} is not a number of classes; it must be at least 1")
        for name, value in (("threshold", self.threshold), ("error-rate", self.error_rate)):
            if value is not None and not 0 < value < 1:
                problems.append(f"--{name}: {value:g} is not above 0 and below 1")
        if self.threshold is not None and self.error_rate is not None:
            problems.append("--threshold, --error-rate: give one of the two; an error rate chooses the threshold")
        if problems:
            raise UserError(*problems)

    def change(self, path: Path, task: Task, calibration: Calibration | None) -> Change:
        """What these options change in the predictions of a run or an artifact.

        Args:
            calibration: that of the model in memory, from `calibration_of`; only an error rate needs it.

        Raises:
            UserError: the task has no probabilities of classes, the run is not calibrated, or it has too few validation
                rows for the error rate.
        """
        has_classes = task.answer_kind == "class" or getattr(task, "multi_label", False)
        if (self.top_k is not None or self.threshold is not None) and not has_classes:
            option = "--top-k" if self.top_k is not None else "--threshold"
            raise UserError(f"{option}: {task.name} does not predict classes of rows with probabilities")
        q = math.nan if self.error_rate is None else _quantile(path, task, self.error_rate, calibration)
        return lambda prediction: self._changed(task, prediction, q)

    def _changed(self, task: Task, prediction: Prediction, q: float) -> Prediction:
        found = dict(prediction)
        if self.error_rate is not None:
            found |= conformal.answer(task, prediction, q)
        if self.threshold is not None:
            probabilities = prediction["probabilities"]
            if task.answer_kind == "class":
                found["unsure"] = probabilities[conformal.predicted(prediction)] < self.threshold
            else:
                found["prediction"] = [name for name, p in probabilities.items() if p >= self.threshold]
        if self.top_k is not None:
            likeliest = conformal.by_probability(found.pop("probabilities"))[: self.top_k]
            found["top"] = [{"class": name, "probability": p} for name, p in likeliest]
        return found


def calibration_of(path: Path) -> Calibration | None:
    """The calibration of a run or an artifact; None if there is none. Raises UserError when it is damaged."""
    run = Run(path.absolute())
    return calibrated.read(run.path, None if is_artifact(path) else run.adapter)


def _quantile(path: Path, task: Task, error_rate: float, known: Calibration | None) -> float:
    """The quantile of the errors of a run's or an artifact's validation rows. Raises UserError when there is none."""
    if task.answer_kind is None:
        raise UserError(
            f"--error-rate: {task.name} predicts neither one of several classes nor a number for a row, so no error"
            " rate can be kept"
        )
    if known is None or not known.errors:
        again = "; then export it again" if is_artifact(path) else ""
        name = "RUN" if is_artifact(path) else str(path)
        raise UserError(f"--error-rate: {path} is not calibrated; run `pefttools calibrate {name}` first{again}")
    q = conformal.quantile(known.errors, error_rate)
    if math.isinf(q):
        raise UserError(
            f"--error-rate: {error_rate:g} needs at least {conformal.num_needed(error_rate)} validation rows, but the"
            f" run has {known.rows}; give a higher rate, or train with more validation rows"
        )
    return q
