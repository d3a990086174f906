"""How often the pooled interval of a difference covers the true one: planted scores, for new sets like those drawn.

    python benchmarks/pooling.py               # 2,000 suites a cell; writes results/pooling.{md,json}
    python benchmarks/pooling.py --suites 100  # fewer

A suite has two methods, 3 seeds and 400 rows a set. A method's gain varies from set to set with a standard deviation
that is the setting, a seed moves it by a point, and rows differ in how easy they are, for all methods and for each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from pefttools.bench.pooling import ScoredSet, pool

OUT = Path(__file__).parent / "results" / "pooling"
SETS = (3, 5, 7, 9)
SPREADS = (0.0, 0.005, 0.02, 0.05)
"""Standard deviations over sets of a method's gain."""
GAIN, SEEDS, ROWS = 0.02, 3, 400
TRAINABLE = {"a": 1, "b": 2}


def planted(draw: np.random.Generator, sets: int, spread: float) -> list[ScoredSet]:
    """The scores of a suite."""
    found = []
    for number in range(sets):
        level, easy, tables = draw.uniform(0.5, 0.85), draw.normal(0.0, 0.1, ROWS), {}
        for name, gain in (("a", GAIN), ("b", 0.0)):
            chance = level + gain + draw.normal(0.0, spread) + easy + draw.normal(0.0, 0.05, ROWS)
            chance = chance + draw.normal(0.0, 0.01, (SEEDS, 1))
            tables[name] = (draw.random((SEEDS, ROWS)) < np.clip(chance, 0, 1)).astype(float)
        found.append(ScoredSet(str(number), "accuracy", tables, TRAINABLE))
    return found


def coverage(sets: int, spread: float, suites: int) -> float:
    draw, covered = np.random.default_rng(0), 0
    for _ in range(suites):
        found = pool(planted(draw, sets, spread))
        assert found is not None
        low, high = found.differences["a", "b"].interval()
        covered += low <= GAIN <= high
    return covered / suites


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", type=int, default=2000)
    suites = parser.parse_args().suites
    results = {f"{100 * spread:g}": {str(sets): coverage(sets, spread, suites) for sets in SETS} for spread in SPREADS}
    lines = [
        f"# Coverage of the pooled 95% intervals: {suites:,} suites a cell",
        "",
        "`python benchmarks/pooling.py`. A cell is the share of suites whose interval contains the true difference.",
        "",
        "| spread over sets, points | " + " | ".join(f"{sets} sets" for sets in SETS) + " |",
        "|---:|" + "---:|" * len(SETS),
        *(
            f"| {spread} | " + " | ".join(f"{100 * share:.1f}%" for share in found.values()) + " |"
            for spread, found in results.items()
        ),
        "",
    ]
    OUT.with_suffix(".md").write_text("\n".join(lines))
    OUT.with_suffix(".json").write_text(json.dumps({"suites": suites, "results": results}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
