"""Writes pefttools/bench/priors.json, by which `advise` orders its candidates, from the records of a finished suite.

python benchmarks/priors.py                                   # from the suite zoo
python benchmarks/priors.py my-suite.yaml --results runs/mine
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from pefttools import atomic
from pefttools.bench import priors
from pefttools.bench.adviser import num_classes
from pefttools.bench.suite import Cell, load
from pefttools.bench.summary import scored, seconds
from pefttools.bench.sweep import Sweep
from pefttools.data.splitting import load_splits
from pefttools.reporter import SILENT
from pefttools.training import class_order

HERE = Path(__file__).parent


def measured(sweep: Sweep, problem: str) -> dict[str, Any] | None:
    """The entry of one test set; None where its metric has no bounds, or a trial is missing."""
    cells = [cell for cell in sweep.cells if cell.problem == problem and cell.labels.get("penalties", "none") == "none"]
    tables = scored(sweep, problem, cells)
    if tables.score_range is None or any(not sweep.finished(cell) for cell in cells):
        return None
    shares, methods = tables.standardised(), {}
    for cell in cells:
        records = [sweep.records[job.digest] for job in sweep.finals(cell)]
        if cell.method in shares:
            methods[priors.key(_strategy(cell))] = {
                "score": round(float(shares[cell.method].mean()), 5),
                "seconds": round(statistics.median(map(seconds, records)), 2),
            }
    recipe = cells[0].recipe(sweep.suite.tuning.seed)
    splits = load_splits(recipe.data, recipe.task)
    task = class_order.fitted(recipe.task, recipe.base, splits, SILENT)
    return {"name": problem, "rows": len(splits.train), "classes": num_classes(task), "methods": methods}


def _strategy(cell: Cell) -> dict[str, Any]:
    """The section `strategy` of a recipe, as the suite's file writes it."""
    chosen = cell.suite.axes["strategies"][cell.labels["strategies"]]
    return dict(chosen["strategy"]) if isinstance(chosen["strategy"], dict) else {"name": chosen["strategy"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", default="zoo")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "zoo")
    arguments = parser.parse_args()
    sweep = Sweep(load(arguments.suite), arguments.results)
    problems = dict.fromkeys(cell.problem for cell in sweep.cells)
    sets = [found for name in problems if (found := measured(sweep, name))]
    versions = next(iter(sweep.records.values()))["versions"]
    atomic.write_json(priors.FILE, {"suite": sweep.suite.name, "versions": versions, "sets": sets})
    print(f"{len(sets)} of {len(problems)} sets -> {priors.FILE.name}")


if __name__ == "__main__":
    main()
