"""Calibration on test rows before and after, and how often conformal sets contain the right class.

    pefttools train question-type-lora --out RUN      # any runs with validation and test rows
    python benchmarks/calibration.py RUN RUN …        # -> results/calibration.{md,json}

The temperature comes from validation rows, and the errors are those of test rows. For the coverage, validation and test
rows are put together and split at random 20 times into as many for the errors of conformal prediction and as many to
judge. The runs stay as they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from pefttools import atomic
from pefttools.bases.loading import prepare_libraries
from pefttools.inference import calibration, conformal
from pefttools.training.own_rows import own_rows, validation_rows
from pefttools.training.run import Run, load

RESULTS = Path(__file__).parent / "results"
SPLITS = 20
RATES = (0.2, 0.1, 0.05)


def measured(path: Path) -> dict[str, Any]:
    """The figures of one run."""
    run = Run.open(path)
    trained = load(path, is_calibrated=False)
    _, rows = validation_rows(run, trained.task)
    validation = calibration.outputs_on(trained, rows, "validation")
    test = calibration.outputs_on(trained, own_rows(run, trained.task).rows, "test")
    assert validation.logits is not None
    assert test.logits is not None
    temperature = calibration.best_temperature(validation.logits, validation.right)
    scaled = [conformal.with_temperature(trained.task, one.predictions, temperature) for one in (validation, test)]
    predictions, references = [*scaled[0], *scaled[1]], [*validation.references, *test.references]
    return {
        "recipe": run.recipe().name,
        "data": Path(str(run.recipe().data.train.source if run.recipe().data.train else "")).name,
        "strategy": run.recipe().strategy.name,
        "seed": run.recipe().seed,
        "rows": {"validation": len(rows), "test": len(test.references)},
        "temperature": temperature,
        "before": calibration.scores(test.logits, test.right),
        "after": calibration.scores(test.logits / temperature, test.right),
        "coverage": {str(rate): coverage(trained.task, predictions, references, len(rows), rate) for rate in RATES},
    }


def coverage(task: Any, predictions: list[Any], references: list[Any], number: int, rate: float) -> dict[str, float]:
    """The mean and the standard deviation over random splits of the coverage, and the mean shares of rows."""
    draw, found = np.random.default_rng(0), []
    for _ in range(SPLITS):
        order = draw.permutation(len(predictions)).tolist()
        known, judged = order[:number], order[number:]
        errors = conformal.errors(task, [predictions[i] for i in known], [references[i] for i in known])
        found.append(
            conformal.coverage(task, errors, rate, [predictions[i] for i in judged], [references[i] for i in judged])
        )
    means = {name: statistics.fmean(one[name] for one in found) for name in found[0]}
    return {**means, "sd": statistics.stdev(one["coverage"] for one in found)}


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "# Calibration",
        "",
        "`python benchmarks/calibration.py RUN …`: figures of test rows; the temperature is from validation rows. ECE"
        " over 15 bins with equally many rows. `coverage` is how often the right class is within the quantile"
        " (sets also have the predicted class, so they contain it at least as often), the mean"
        f" and the standard deviation over {SPLITS} random splits; `unsure` the share of marked rows, and `wrong` that"
        " of rows with a wrong class and no mark.",
        "",
        "| recipe | strategy | seed | validation | test | T | ECE before | after | Brier before | after |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        before, after = one["before"], one["after"]
        lines.append(
            f"| {one['recipe']} ({one['data']}) | {one['strategy']} | {one['seed']} | {one['rows']['validation']} |"
            f" {one['rows']['test']} | {one['temperature']:.3f} | {before['ece']:.4f} | {after['ece']:.4f} |"
            f" {before['brier']:.4f} | {after['brier']:.4f} |"
        )
    lines += ["", "| recipe | seed | wanted error rate | coverage | unsure | wrong |", "|---|---:|---:|---|---:|---:|"]
    lines += [
        f"| {one['recipe']} ({one['data']}) | {one['seed']} | {rate} | {of['coverage']:.4f} ± {of['sd']:.4f} |"
        f" {of['unsure']:.4f} | {of['wrong']:.4f} |"
        for one in found
        for rate, of in one["coverage"].items()
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    arguments = parser.parse_args()
    prepare_libraries()
    found = []
    for path in arguments.runs:
        found.append(measured(path))
        print(json.dumps(found[-1]), flush=True)
    atomic.write_json(RESULTS / "calibration.json", found)
    atomic.write_text(RESULTS / "calibration.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
