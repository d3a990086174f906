"""Test accuracy after a recipe's full number of epochs, as mean over seeds, to check that speed costs no accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import summary
from cases import CASES, TRAINING, Order
from store import Measured


def orders(cases: Sequence[str], seeds: Sequence[int], folder: str, smoke: bool) -> list[Order]:
    """All trials, with the contenders of a seed one after another."""
    return [
        Order(case, contender, seed, folder, rows=0, smoke=smoke, full=True)
        for case in cases
        if CASES[case].accuracy
        for seed in seeds
        for contender in CASES[case].contenders
    ]


def figures(measures: Sequence[Measured]) -> list[dict[str, Any]]:
    """For each contender of a case: the seeds' test accuracies, their mean, and the mean difference from Trainer.

    The difference is a fraction, over the seeds that both have; None where there are none.
    """
    made = []
    for case in CASES:
        plain = _scores(measures, case, TRAINING[0])
        for contender in CASES[case].contenders:
            if not (scores := _scores(measures, case, contender)):
                continue
            both = scores.keys() & plain.keys()
            made.append(
                {
                    "case": case, "contender": contender, "scores": scores, "mean": statistics.mean(scores.values()),
                    "difference": statistics.mean(scores[seed] - plain[seed] for seed in both) if both else None,
                }
            )  # fmt: skip
    return made


def _scores(measures: Sequence[Measured], case: str, contender: str) -> dict[int, float]:
    return {seed: m["score"] for seed, m in summary.of(measures, case, contender, full=True).items()}


def table(measures: Sequence[Measured]) -> list[str]:
    """The section on test accuracy in Markdown."""
    rows = figures(measures)
    if not rows:
        return []
    text = [
        "## Test accuracy at the recipe's full number of epochs",
        "",
        "Mean over seeds, with the seeds' values in brackets. The last weights are scored; no contender selects weights"
        " on validation rows.",
        "",
        "| case | contender | test accuracy | points compared with trainer |",
        "|---|---|---|---:|",
    ]
    for row in rows:
        each = " ".join(f"{score:.4f}" for _, score in sorted(row["scores"].items()))
        against = "" if row["difference"] is None else f"{100 * row['difference']:+.2f}"
        text.append(f"| {row['case']} | {row['contender']} | {row['mean']:.4f} ({each}) | {against} |")
    return [*text, ""]
