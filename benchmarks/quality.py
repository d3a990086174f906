"""Test accuracy of every strategy at its default settings, averaged over seeds.

    python benchmarks/quality.py                       # everything: hours on two cores
    python benchmarks/quality.py --rows lora bitfit --seeds 0 --data question-types

Each trial is one `pefttools train`. Finished trials are not repeated, and killed ones continue. The table and the
results are written to benchmarks/results/quality.{md,json}; they contain the finished trials.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trials import RESULTS, Trial, add_arguments, run_all

from pefttools.recipe import recipes
from pefttools.strategies import strategies

DATA = {
    "question-types": ("question-type-lora", []),
    "movie-sentiment": ("sentiment-lora", ["train.epochs=1"]),
}
"""Name -> recipe and overrides; the strategy is a further override."""
FEWER_ROWS = {
    "movie-sentiment": ("full", "top_layers", "lora", "adapter", "adapter-houlsby", "adapter-parallel", "bitfit")
}
"""Data with long trials -> the only rows that are run on it."""
CLOSE_TO_FULL = (
    "lora", "adapter", "adapter-houlsby", "adapter-parallel", "bitfit", "low_rank", "adalora", "lora-dora", "galore",
)  # fmt: skip
ABOVE_HEAD = ("vera", "ia3", "prefix", "layer_norm")


def rows() -> dict[str, list[str]]:
    """Row -> overrides, for every strategy and each of its variants."""
    made = {}
    for name in strategies.names():
        for variant in ("", *strategies.get(name).variants):
            settings = strategies.get(name).variants[variant] if variant else {}
            overrides = [f"strategy.{key}={json.dumps(value)}" for key, value in settings.items()]
            made["-".join(filter(None, (name, variant)))] = [f"strategy={name}", *overrides]
    return made


def trials(arguments: argparse.Namespace) -> Iterator[Trial]:
    for seed in arguments.seeds:
        for data in arguments.data:
            base, common = DATA[data]
            for row in arguments.rows:
                if row in FEWER_ROWS.get(data, (row,)):
                    overrides = (*common, *rows()[row], f"seed={seed}", "train.trackers=[]")
                    yield Trial(data, row, seed, (base, *overrides), arguments.out / data / f"{row}-{seed}")


def collect(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of finished trials."""
    found = []
    for trial in trials(arguments):
        if (result := trial.result) is None:
            continue
        rate = recipes.load(trial.command[0], trial.command[1:]).recipe.train.learning_rate
        found.append(
            {
                "data": trial.data, "row": trial.row, "seed": trial.seed,
                "command": " ".join(["pefttools train", *trial.command]),
                "digest": result["digest"], "learning_rate": rate,
                "params": result["params"], "validation": result["validation"]["accuracy"],
                "test": result["test"]["accuracy"], "f1": result["test"]["f1"], "rows": result["data"]["rows"],
                "steps": result["train"]["steps"], "best_step": result["train"]["best_step"],
                "precision": result["train"]["precision"], "versions": result["versions"],
            }
        )  # fmt: skip
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The results in Markdown: a table for each data set, with limits."""
    about = "`python benchmarks/quality.py`; all-MiniLM-L6, test accuracy, mean over seeds (the seeds' in brackets)."
    text = ["# Every strategy at its default settings", "", about]
    for data in DATA:
        by_row: dict[str, list[dict[str, Any]]] = {}
        for trial in (t for t in found if t["data"] == data):
            by_row.setdefault(trial["row"], []).append(trial)
        if not by_row:
            continue
        means = {row: statistics.mean(t["test"] for t in ts) for row, ts in by_row.items()}
        full, head = means.get("full"), means.get("top_layers")
        test_rows = next(iter(by_row.values()))[0]["rows"]["test"]
        text += [
            "",
            f"## {data}",
            "",
            f"{test_rows} test rows; `pefttools train {' '.join([DATA[data][0], *DATA[data][1]])} strategy=…`",
            "",
        ]
        text += [
            "| strategy | learning rate | adapter | head | test accuracy | against full | bar | met |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in sorted(by_row, key=lambda row: -means[row]):
            ts = by_row[row]
            bar, met = "", ""
            if full is not None and row in CLOSE_TO_FULL:
                bar, met = "full - 1.5", "yes" if means[row] >= full - 0.015 else "**no**"
            elif head is not None and row in ABOVE_HEAD:
                bar, met = "head + 5", "yes" if means[row] >= head + 0.05 else "**no**"
            seeds = " ".join(f"{t['test']:.4f}" for t in ts)
            against = "" if full is None else f"{100 * (means[row] - full):+.1f}"
            text.append(
                f"| {row} | {ts[0]['learning_rate']:g} | {ts[0]['params']['adapter']:,} | {ts[0]['params']['head']:,} |"
                f" {means[row]:.4f} ({seeds}) | {against} | {bar} | {met} |"
            )
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(rows()), default=list(rows()), metavar="ROW")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="where the runs go")
    add_arguments(parser)
    arguments = parser.parse_args()
    if not arguments.collect:
        run_all(list(trials(arguments)), arguments)
    arguments.rows, arguments.seeds, arguments.data = list(rows()), [0, 1, 2], list(DATA)
    found = collect(arguments)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quality.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "quality.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
