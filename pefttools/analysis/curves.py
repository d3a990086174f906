"""The curves of a run's training, from its metrics.jsonl."""

from __future__ import annotations

from typing import Any

from pefttools.bench.trial import curve as evaluations
from pefttools.training.run import Run

MOST = 300
"""Upper limit of points of the training loss; more are averaged in groups of neighbors."""


def curve(run: Run, metric: str) -> dict[str, list[dict[str, float]]]:
    """`validation`: `step`, `score` and `loss` of every evaluation; `train`: `step` and `loss`, averaged if many."""
    found = [{"step": one["step"], "score": one["score"], "loss": one["loss"]} for one in evaluations(run, metric)]
    lines = run.lines() if run.metrics_file.is_file() else []
    losses = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    size = -(-len(losses) // MOST) or 1
    groups = [losses[start : start + size] for start in range(0, len(losses), size)]
    train = [{"step": group[-1][0], "loss": sum(loss for _, loss in group) / len(group)} for group in groups]
    return {"validation": found, "train": train}


def steps(curves: dict[str, Any]) -> list[float]:
    """The steps of all points."""
    return [point["step"] for points in curves.values() for point in points]
