"""How often a recommended method is truly worse than the best by more than the margin: planted scores, three rules.

    python benchmarks/recommendations.py               # 2,000 suites a setting; writes results/recommendations.md
    python benchmarks/recommendations.py --suites 50   # fewer

A suite has 16 methods, 3 seeds and 850 rows. A method is right on a row if a latent value lies below its threshold; the
value has parts that all methods, all seeds of a method, and nobody share. The true accuracies of the methods spread
around 0.9 with a standard deviation that is the setting, and a seed moves a method's accuracy by half a point. Rules:

- smallest of the tier: the fewest trained parameters among the methods that do not differ significantly from the best
  (what pefttools did up to 0.1)
- best mean: no more than that
- shown: `pefttools.bench.recommendation`, with a margin of 1 point
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pefttools.bench.recommendation import MARGIN, Judgement, judge

OUT = Path(__file__).parent / "results" / "recommendations"
METHODS, SEEDS, ROWS, MEAN = 16, 3, 850, 0.9
SPREADS = (0.0, 0.003, 0.01, 0.02, 0.04)
"""Standard deviations of the methods' true accuracies."""
SEED_SPREAD = 0.005
SHARED = 0.6
"""Share of a row's latent variance that all methods have in common; half of the rest belongs to the method."""

Tables = dict[str, NDArray[np.float64]]


def planted(draw: np.random.Generator, spread: float, rows: int = ROWS) -> tuple[Tables, dict[str, float]]:
    """The scores of a suite, and the true accuracy of every method."""
    truth = np.clip(MEAN + draw.normal(0, spread, METHODS), 0.02, 0.995)
    limit = stats.norm.ppf(truth)
    shared = np.sqrt(SHARED) * draw.normal(size=rows)
    tables = {}
    for number in range(METHODS):
        own = np.sqrt((1 - SHARED) / 2) * draw.normal(size=rows)
        alone = np.sqrt((1 - SHARED) / 2) * draw.normal(size=(SEEDS, rows))
        luck = draw.normal(0, SEED_SPREAD / stats.norm.pdf(limit[number]), (SEEDS, 1))
        tables[f"m{number}"] = (shared + own + alone < limit[number] + luck).astype(float)
    return tables, {f"m{number}": float(truth[number]) for number in range(METHODS)}


def chosen(found: Judgement, trainable: Mapping[str, int]) -> dict[str, str]:
    """Rule -> the method that it recommends."""
    best = found.recommendation.best
    tier = [name for name in found.means if found.tiers[name] == found.tiers[best]]
    return {
        "smallest of the tier": min(tier, key=lambda name: trainable[name]),
        "best mean": best,
        "shown": found.recommendation.method,
    }


def measured(spread: float, suites: int) -> dict[str, dict[str, float]]:
    """Rule -> share of suites in which it is wrong by more than the margin, and mean regret in points."""
    draw = np.random.default_rng(0)
    totals: defaultdict[str, list[tuple[bool, float, bool]]] = defaultdict(list)
    for _ in range(suites):
        tables, truth = planted(draw, spread)
        trainable = {name: int(size) for name, size in zip(tables, draw.permutation(METHODS), strict=True)}
        found = judge(tables, trainable)
        for rule, method in chosen(found, trainable).items():
            regret = max(truth.values()) - truth[method]
            totals[rule].append((regret > MARGIN, regret, method != found.recommendation.best))
    return {
        rule: {
            "wrong": float(np.mean([wrong for wrong, *_ in values])),
            "regret": 100 * float(np.mean([regret for _, regret, _ in values])),
            "smaller": float(np.mean([smaller for *_, smaller in values])),
        }
        for rule, values in totals.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", type=int, default=2000)
    suites = parser.parse_args().suites
    results = {f"{100 * spread:g}": measured(spread, suites) for spread in SPREADS}
    rules = list(next(iter(results.values())))
    lines = [
        f"# Planted scores: {suites:,} suites a line, {METHODS} methods, {SEEDS} seeds, {ROWS} rows",
        "",
        "`python benchmarks/recommendations.py`. Wrong: the recommended method is truly worse than the best one by more"
        f" than {100 * MARGIN:g} point. Regret: by how many points on average.",
        "",
        "| spread of the methods, points | " + " | ".join(f"{rule}: wrong | regret" for rule in rules) + " |",
        "|---:|" + "---:|" * (2 * len(rules)),
    ]
    for spread, found in results.items():
        cells = [f"{100 * found[rule]['wrong']:.1f}% | {found[rule]['regret']:.2f}" for rule in rules]
        lines.append(f"| {spread} | " + " | ".join(cells) + " |")
    means = [
        f"{100 * np.mean([found[rule]['wrong'] for found in results.values()]):.1f}%"
        f" | {np.mean([found[rule]['regret'] for found in results.values()]):.2f}"
        for rule in rules
    ]
    lines += ["| mean | " + " | ".join(means) + " |", ""]
    OUT.with_suffix(".md").write_text("\n".join(lines))
    OUT.with_suffix(".json").write_text(json.dumps({"suites": suites, "results": results}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
