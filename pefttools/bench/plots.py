"""The Pareto plot of a suite as PNG and SVG: score against parameters, memory and seconds, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttools import atomic

COSTS = (
    ("trained parameters", lambda row: row["params"]["trainable"], True),
    ("peak memory (MB)", lambda row: row["peak_bytes"] / 2**20, False),
    ("training seconds", lambda row: row["seconds"], False),
)
"""(axis title, the value of a method, whether the axis is logarithmic)."""
FORMATS = ("png", "svg")


def write(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `pareto.png` and `pareto.svg`; writes nothing where no trial has finished."""
    problems = [p for p in summary["problems"] if any("mean" in row for row in p["methods"])]
    if not problems:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = summary["digest"]  # makes the file reproducible
    figure, axes = pyplot.subplots(
        len(problems), len(COSTS), figsize=(15, 4.6 * len(problems)), squeeze=False, layout="constrained", sharey="row"
    )
    for problem, line in zip(problems, axes, strict=True):
        _draw(problem, line)
    files = []
    for kind in FORMATS:
        path = folder / f"pareto.{kind}"
        with atomic.new_file(path) as part:
            figure.savefig(part, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else {"Software": None})
        files.append(path)
    pyplot.close(figure)
    return files


def _draw(problem: Mapping[str, Any], axes: Sequence[Any]) -> None:
    from matplotlib import colormaps

    rows = [row for row in problem["methods"] if "mean" in row]
    colours = colormaps["viridis_r"]
    worst = max((row["tier"] or 1) for row in rows)
    for axis, (title, cost, logarithmic) in zip(axes, COSTS, strict=True):
        for row in rows:
            error = None if row["low"] is None else [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            colour = colours(0.15 + 0.75 * (((row["tier"] or 1) - 1) / max(1, worst - 1)))
            axis.errorbar(cost(row), row["mean"], yerr=error, fmt="o", color=colour, capsize=3, markersize=6)
            axis.annotate(row["method"], (cost(row), row["mean"]), (5, 4), textcoords="offset points", fontsize=8)
        best = front([(cost(row), row["mean"]) for row in rows], problem["lower_is_better"])
        axis.plot(*zip(*best, strict=True), drawstyle="steps-post", color="grey", linewidth=1, zorder=0)
        axis.set_xlabel(title)
        axis.grid(alpha=0.25)
        if logarithmic:
            axis.set_xscale("log")
    _set_limits(axes[0], rows)
    axes[0].set_ylabel(problem["metric"])
    axes[0].set_title(problem["name"], loc="left")


def _set_limits(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Set the axis limits by the means, not by the widest interval."""
    means = [row["mean"] for row in rows]
    margin = 0.15 * (max(means) - min(means)) or 0.01
    axis.set_ylim(min(means) - margin, max(means) + margin)


def front(points: Sequence[tuple[float, float]], lower_is_better: bool = False) -> list[tuple[float, float]]:
    """The Pareto front: the points that no other one beats in both cost and score, by rising cost."""
    sign = -1 if lower_is_better else 1
    found: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not found or sign * score > sign * found[-1][1]:
            found.append((cost, score))
    return found
