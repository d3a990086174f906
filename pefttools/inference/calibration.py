"""Calibration of a finished run on its validation rows: temperature, thresholds, and errors for conformal prediction.

The temperature T minimises the negative log-likelihood of softmax(z / T) (Guo et al. 2017), where z are the logits on
validation rows; predictions stay the same. With several labels a row, each class of each row is one of two classes. The
expected calibration error (ECE) is Σ n/N · |accuracy − confidence| over 15 bins with equally many predictions.
Validation rows chose the checkpoint, too; so the figures that count are those on test rows, which choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pefttools.bases.loading import prepare_libraries
from pefttools.data.encoding import encode
from pefttools.errors import UserError
from pefttools.inference import conformal
from pefttools.inference.thresholds import Wanted, thresholds
from pefttools.nn import temperature as scaling
from pefttools.reporter import SILENT, Reporter
from pefttools.training import calibrated
from pefttools.training.calibrated import Calibration
from pefttools.training.evaluation import Evaluator, aggregated
from pefttools.training.own_rows import own_rows, validation_rows
from pefttools.training.run import Run, Trained, load

if TYPE_CHECKING:
    from pefttools.data.rows import Row
    from pefttools.tasks.base import Prediction, Task

Array = np.ndarray[Any, np.dtype[Any]]
BINS = 15
LOWEST, HIGHEST = 0.02, 50.0
"""Limits of the temperature."""
FEW = 100
"""Number of validation rows below which a warning says that they are few."""
EXACT = 1e-4
"""Allowed relative difference of divided logits, which are computed in fp32."""
RATES = (0.1, 0.05)
"""Error rates for which the coverage of test rows is shown."""


@dataclass(frozen=True)
class Outputs:
    """A model's outputs on labelled rows."""

    logits: Array | None
    """In float64, shape (targets, classes); None where a temperature does not apply."""
    right: Array
    """The right class of each target, shape (targets,)."""
    predictions: list[Prediction]
    references: list[Any]


def calibrate_run(path: Path, wanted: Wanted | None = None, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Calibrate a finished run on its validation rows and store the result in its folder.

    Args:
        wanted: the precision or the recall that thresholds must reach; without it, only tasks with several labels a row
            get thresholds, those with the best F1.

    Returns:
        `temperature`, `thresholds`, `rows`; and for `validation` and `test` the ECE, the Brier score and the negative
        log-likelihood `before` and `after`, and the metrics; and the coverage of conformal prediction on test rows.

    Raises:
        UserError: the run is not finished, its rows cannot be read, or its task has no probabilities of classes and
            predicts no numbers.
    """
    prepare_libraries()
    run = Run.open(path)
    task = run.recipe().task
    _refuse(task, wanted)
    _, rows = validation_rows(run, task, reporter)
    if not rows:
        raise UserError(f"{path}: the run has no validation rows, on which a temperature could be found")
    if len(rows) < FEW:
        reporter.warn(f"{len(rows)} validation rows are few; with other rows the temperature would be another")
    trained = load(path, reporter, is_calibrated=False)
    validation = outputs_on(trained, rows, "validation", reporter)
    temperature = 1.0 if validation.logits is None else best_temperature(validation.logits, validation.right)
    found = Calibration(temperature, rows=len(rows))
    own = own_rows(run, trained.task, reporter)
    held_out = None if own.split == "validation" else outputs_on(trained, own.rows, "test", reporter)
    _refuse_unless_divided(trained, found, rows, validation)
    scaled = conformal.with_temperature(trained.task, validation.predictions, temperature)
    lowest, missed = thresholds(trained.task, scaled, validation.references, wanted)
    for name, reason in missed.items():
        reporter.warn(f"{name!r} has no threshold of its own: {reason}")
    lowest = {**_moved(trained.task, temperature), **lowest}
    errors = conformal.errors(trained.task, scaled, validation.references)
    found = Calibration(temperature, lowest, errors, len(rows))
    found.write(run.path, run.adapter)
    values = {"validation": _values(trained, found, validation), "test": None}
    if held_out:
        values["test"] = _values(trained, found, held_out)
    return {"folder": str(run.path), "temperature": temperature, "thresholds": lowest, "rows": len(rows), **values}


def _moved(task: Any, temperature: float) -> dict[str, float]:
    """The recipe's thresholds for probabilities at a temperature, σ(logit(t)/T); those of 0.5 stay and are left out."""
    own: dict[str, Any] = dict(getattr(task, "thresholds", {}))
    if getattr(task, "multi_label", False):
        own = {name: own.get(name, task.threshold) for name in task.class_names}
    inner = {name: t for name, t in own.items() if 0 < t < 1 and t != 0.5}
    return own and {name: 1 / (1 + (1 / t - 1) ** (1 / temperature)) for name, t in inner.items()}


def remove(path: Path) -> bool:
    """Remove a run's calibration; returns whether there was one."""
    file = Run.open(path).path / calibrated.FILE
    exists = file.exists()
    file.unlink(missing_ok=True)
    return exists


def best_temperature(logits: Array, right: Array) -> float:
    """The temperature with the smallest negative log-likelihood, between `LOWEST` and `HIGHEST`.

    As in Platt's scaling (1999), of n targets one n+2nd is taken to be of the other classes; else T would go to 0 where
    all validation rows are right, and every prediction would claim to be certain.

    Args:
        logits: shape (targets, classes); −inf for classes that do not exist.
        right: the index of each target's class.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    targets = np.isfinite(logits).astype(float)
    targets[np.arange(len(right)), right] = 0
    targets /= np.maximum(targets.sum(1, keepdims=True), 1) * (len(right) + 2)
    targets[np.arange(len(right)), right] = 1 - targets.sum(1)
    finite = np.where(np.isfinite(logits), logits, -1e30)

    def loss(log_t: float) -> float:
        return -float((targets * log_softmax(finite / math.exp(log_t), axis=1)).sum(1).mean())

    bounds = math.log(LOWEST), math.log(HIGHEST)
    result = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    return float(math.exp(result.x))


def nll(logits: Array, right: Array) -> float:
    """The mean negative log-likelihood of the right classes."""
    from scipy.special import log_softmax

    return -float(log_softmax(logits, axis=1)[np.arange(len(right)), right].mean())


def calibration_error(confidence: Array, is_right: Array) -> float:
    """The expected calibration error over `BINS` bins with equally many predictions.

    Args:
        confidence: the probability of each prediction, shape (targets,).
        is_right: whether it is right, shape (targets,).
    """
    order = np.argsort(confidence, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    gaps = [len(part) * abs(confidence[part].mean() - is_right[part].mean()) for part in bins]
    return float(sum(gaps) / len(confidence))


def scores(logits: Array, right: Array) -> dict[str, float]:
    """`ece` of the likeliest class, `brier` (the squared error of the probabilities, summed over classes), `nll`."""
    from scipy.special import softmax

    shares = softmax(logits, axis=1)
    best = shares.argmax(1)
    indicators = np.eye(shares.shape[1])[right]
    return {
        "ece": calibration_error(shares.max(1), best == right),
        "brier": float(((shares - indicators) ** 2).sum(1).mean()),
        "nll": nll(logits, right),
    }


def _refuse(task: Task, wanted: Wanted | None) -> None:
    """Raises UserError when the task cannot be calibrated, or not with these wishes."""
    if task.num_calibrated is None and task.answer_kind is None:
        raise UserError(
            f"calibrate: {task.name} predicts neither one of several classes nor a number, so there is nothing to"
            " calibrate"
        )
    if wanted:
        wanted.check(task)


def outputs_on(trained: Trained, rows: Sequence[Row], title: str, reporter: Reporter = SILENT) -> Outputs:
    """The uncalibrated model's outputs on rows."""
    task = trained.task
    encoded = encode([*rows], task, trained.base, title, reporter)
    evaluator = Evaluator(trained.model, task, trained.base.tokenizer, reporter=reporter)
    references = [task.reference(row) for row in rows]
    if task.num_calibrated is None:
        predictions, _ = evaluator.predictions(encoded, rows, title)
        logits, right = _of_probabilities(task, predictions, references)
        return Outputs(logits, right, predictions, references)
    parts: dict[int, Prediction] = {}
    of_targets: list[list[float]] = []
    classes: list[int] = []
    everything = range(len(encoded["length"]))
    with reporter.bar(title, len(everything), "rows") as bar:
        for indices, batch, outputs in evaluator.outputs(encoded, everything):
            parts |= zip(indices, task.predict(outputs, batch), strict=True)
            found, wanted = task.calibration_logits(outputs, batch)
            of_targets += found.double().cpu().numpy().tolist()
            classes += wanted.tolist()
            bar.advance(len(indices))
    width = max(map(len, of_targets))
    padded = [row + [-math.inf] * (width - len(row)) for row in of_targets]  # rows may have fewer choices than others
    return Outputs(np.array(padded), np.array(classes), aggregated(task, rows, encoded, parts), references)


def _of_probabilities(
    task: Task, predictions: Sequence[Prediction], references: Sequence[Any]
) -> tuple[Array | None, Array]:
    """Log-probabilities as logits, for tasks whose probabilities are not those of a head."""
    if task.answer_kind != "class":
        return None, np.zeros(0, int)
    shares = np.array([[one["probabilities"][name] for name in task.class_names] for one in predictions])
    right = np.array([task.class_names.index(name) for name in references])
    return np.log(np.maximum(shares, np.finfo(float).tiny)), right


def _refuse_unless_divided(trained: Trained, found: Calibration, rows: Sequence[Row], before: Outputs) -> None:
    """Divide the model's logits by the temperature; raises UserError when they are not those divided by it."""
    if before.logits is None or trained.task.num_calibrated is None:
        return
    first = list(rows[: min(len(rows), 64)])
    plain = outputs_on(trained, first, "validation", SILENT).logits
    layers = calibrated.layers(trained.model, trained.base.head, trained.task)
    scaling.divide(layers, found.temperature)
    after = outputs_on(trained, first, "validation", SILENT).logits
    assert plain is not None
    assert after is not None
    exist = np.isfinite(plain)
    plain, after = (one - one.max(1, keepdims=True) for one in (plain, after))  # a constant does not change the softmax
    largest = max(1.0, float(np.abs(plain[exist]).max()))
    if not np.abs(after[exist] * found.temperature - plain[exist]).max() <= EXACT * largest:
        raise UserError(
            f"calibrate: the logits of this head ({', '.join(trained.base.head)}) cannot be divided by a temperature,"
            " because they are not linear in its last layer"
        )


def _values(trained: Trained, found: Calibration, outputs: Outputs) -> dict[str, Any]:
    """Scores before and after calibration; the metrics, which thresholds change; and the coverage of sets."""
    task = trained.task
    values: dict[str, Any] = {"rows": len(outputs.references)}
    if outputs.logits is not None:
        values["before"] = scores(outputs.logits, outputs.right)
        values["after"] = scores(outputs.logits / found.temperature, outputs.right)
    scaled = conformal.with_temperature(task, outputs.predictions, found.temperature)
    chosen = scaled
    if found.thresholds:
        with_thresholds: Any = task.with_values(thresholds=found.thresholds)
        chosen = [with_thresholds.by_thresholds(one) for one in scaled]
        for name, predicted in (("metrics_before", outputs.predictions), ("metrics_after", chosen)):
            metrics = task.metrics(predicted, outputs.references)
            values[name] = {key: value for key, value in metrics.items() if isinstance(value, float)}
        values["classes"] = {name: metrics["per_class"][name] for name in found.thresholds}
    if found.errors:
        values["conformal"] = [
            {"error_rate": rate, **conformal.coverage(task, found.errors, rate, chosen, outputs.references)}
            for rate in RATES
        ]
    return values
