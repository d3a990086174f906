"""Everything that the page of one run shows, as plain values, from the run's folder alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pefttools.analysis import bins, calibration, intervals, mistakes
from pefttools.analysis.comparison import class_tables
from pefttools.analysis.curves import curve
from pefttools.analysis.scored_run import ScoredRows, ScoredRun, open_run
from pefttools.inference import conformal
from pefttools.inference.columns import lengths
from pefttools.reporter import SILENT, Reporter
from pefttools.training import calibrated

COPIED = (
    "recipe", "task", "strategy", "regularizers", "objectives", "augmentations", "seed", "base", "data", "params",
    "facts", "ledger", "train", "files", "versions", "hardware",
)  # fmt: skip
"""Keys of result.json that the report repeats."""
WORST = 50
"""Number of mistakes on the page."""
PARTS = 8
"""Number of groups of rows by length."""


def report(path: Path, reporter: Reporter = SILENT, texts: bool = True) -> dict[str, Any]:
    """The scores, curves, classes, confusions, calibration and mistakes of a finished run.

    Args:
        texts: whether mistakes have their texts.

    Raises:
        UserError: there is no finished run, its files are damaged, or it has no predictions.
    """
    run = open_run(path, reporter)
    scored, result = run.scored, run.result
    return {
        "name": run.name,
        "folder": str(run.run.path),
        **{key: result.get(key) for key in COPIED},
        "metric": run.task.primary,
        "lower_is_better": run.task.lower_is_better,
        "scored_on": run.scored_on,
        "rows": len(scored.rows),
        "scores": _scores(run),
        "curve": curve(run.run, run.task.primary),
        "classes": class_tables([run]),
        "confusions": mistakes.confusions(scored),
        "calibration": calibration.reliability(scored),
        "calibrated": _calibrated(run),
        "mistakes": mistakes.worst(scored, WORST, texts),
        "lengths": by_length(scored),
        "settings": run.run.recipe().settings(),
    }


def _calibrated(run: ScoredRun) -> dict[str, Any] | None:
    """The calibration of the predictions at the temperature that `calibrate` found, with the `temperature`."""
    found = calibrated.read(run.run.path, run.run.adapter)
    if found is None or found.temperature == 1.0:
        return None
    stored = [
        {**one, "probabilities": dict(enumerate(calibration.probabilities(one, run.task.class_names) or []))}
        for one in run.scored.predictions
    ]
    predictions = conformal.with_temperature(run.task, stored, found.temperature)
    after = calibration.reliability(replace(run.scored, predictions=predictions))
    return after and {**after, "temperature": found.temperature}


def _scores(run: ScoredRun) -> dict[str, dict[str, Any]]:
    """Metric -> its value with its interval, and its values before training, of the majority class, on validation."""
    result, scored = run.result, run.scored
    found = intervals.of_metrics(scored)
    own = result[run.scored_on]
    before = result.get("before") or {}
    values = {}
    for name, value in own.items():
        if not isinstance(value, (int, float)):
            continue
        low, high = found.get(name) or (None, None)
        values[name] = {
            "value": value, "low": low, "high": high, "before": before.get(name),
            "majority": before.get("majority", {}).get(name), "validation": (result["validation"] or {}).get(name),
        }  # fmt: skip
    return values


def by_length(scored: ScoredRows) -> dict[str, Any] | None:
    """The mean error of rows of similar length, with intervals; None if no row has an error, or all have one length.

    `are_wrong` says whether errors are shares of wrong rows.
    """
    known = [(i, error) for i, error in enumerate(scored.errors()) if error is not None]
    sizes = lengths([scored.rows[i] for i, _ in known], scored.task)
    if len({*sizes}) < 2:
        return None
    names, places = bins.equal_sized(sizes, PARTS)
    right = scored.right()
    are_wrong = all(right[i] is not None for i, _ in known)
    groups = []
    for number, name in enumerate(names):
        inside = [one for one, place in zip(known, places, strict=True) if place == number]
        chosen = [float(not right[i]) if are_wrong else error for i, error in inside]
        mean = sum(chosen) / len(chosen)
        low, high = intervals.of_values(chosen, mean, len(chosen), (0.0, 1.0) if are_wrong else None) or (mean, mean)
        groups.append({"length": name, "rows": len(chosen), "error": mean, "low": max(0.0, low), "high": high})
    return {"are_wrong": are_wrong, "groups": groups}
