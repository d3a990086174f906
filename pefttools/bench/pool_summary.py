"""Comparisons of methods as plain values: of one problem, and of all test sets together."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pefttools.bench.pooling import Pool, ScoredSet, pool
from pefttools.bench.recommendation import Judgement


def judged(found: Judgement | None) -> dict[str, Any]:
    """The comparison of methods as plain values."""
    if found is None:
        return {
            "smallest_difference": None, "margin": None, "is_coarse": False, "recommended": None, "shown": [],
            "comparisons": [], "verdict": "nothing to compare yet",
        }  # fmt: skip
    advice = found.recommendation
    return {
        "smallest_difference": found.smallest_difference,
        "margin": found.margin,
        "is_coarse": found.is_coarse,
        "recommended": advice.method if advice.is_supported else None,
        "shown": list(advice.shown),
        "comparisons": [{**vars(pair), "differs": pair.differs} for pair in found.comparisons],
        "verdict": advice.verdict,
    }


def pooled(
    setting: str, sets: Sequence[ScoredSet], problems: Sequence[Mapping[str, Any]], margin: float
) -> dict[str, Any] | None:
    """The comparison over all test sets whose trials have finished, as plain values; None for too few sets."""
    open_ = {one["name"] for one in problems if any(row["status"] == "unfinished" for row in one["methods"])}
    found = pool([one for one in sets if one.name not in open_], margin)
    if found is None:
        return None
    best = found.judgement.recommendation.best
    rows: dict[str, list[Mapping[str, Any]]] = {name: [] for name in found.by_set}
    for one in problems:
        for row in one["methods"] if one["name"] in found.sets else ():
            if row["method"] in rows:
                rows[row["method"]].append(row)
    return {
        "name": setting,
        "sets": list(found.sets),
        "metrics": list(found.metrics),
        "left_out": {**found.left_out, **dict.fromkeys(sorted(open_), "has unfinished trials")},
        "smallest_on_these": found.visible_on_these,
        "methods": [_pooled_row(found, name, best, rows[name]) for name in found.best_first()],
        **judged(found.judgement),
    }


def _pooled_row(found: Pool, name: str, best: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of a method over all sets: scores as means over sets, costs as medians."""
    gap = found.differences[name, best] if name != best else None
    low, high = gap.interval() if gap else (None, None)
    lost = [row["forgetting"]["after"] - row["forgetting"]["before"] for row in rows if row["forgetting"]]
    return {
        "method": name, "tier": found.judgement.tiers[name], "mean": found.judgement.means[name],
        "gap": gap.value if gap else 0.0, "gap_low": low, "gap_high": high, "by_set": dict(found.by_set[name]),
        "trainable": found.trainable[name], "seconds": statistics.median(row["seconds"] for row in rows),
        "peak_bytes": statistics.median(row["peak_bytes"] for row in rows),
        "forgetting": statistics.fmean(lost) if lost else None,
    }  # fmt: skip
