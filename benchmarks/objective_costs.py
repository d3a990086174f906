"""What a step costs with each objective, as a multiple of a plain step.

    python benchmarks/objective_costs.py TEACHER    # a run of question-type-full; -> results/objective_costs.{md,json}

Each trial is one `pefttools train` of question-type-lora on 640 rows, one epoch, in fp32 without feature cache, on one
thread; the seconds are those of its steps. Rounds go through all objectives in turn, and ratios are those of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pefttools import atomic

RESULTS = Path(__file__).parent / "results"
PLAIN = "none"
ROWS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "label_smoothing": ("objectives=label_smoothing",),
    "class_weights": ("objectives=class_weights",),
    "focal": ("objectives=focal",),
    "mixup": ("objectives=mixup",),
    "neftune": ("objectives=neftune",),
    "distillation": ("objectives.distillation.teacher=@",),
    "r_drop": ("objectives=r_drop",),
    "sam": ("objectives=sam",),
    "fgm": ("objectives=fgm",),
    "smart": ("objectives=smart",),
    "freelb": ("objectives=freelb",),
    "pgd": ("objectives=pgd",),
}
TWO_PASSES = ("r_drop", "sam", "fgm")
BAR = 2.2
COMMON = (
    "question-type-lora", "data.train_rows=640", "train.epochs=1", "train.precision=fp32", "train.feature_cache=off",
    "train.trackers=[]",
)  # fmt: skip


def seconds(words: tuple[str, ...], teacher: Path) -> float:
    """The seconds of a trial's steps."""
    chosen = [word.replace("@", str(teacher.absolute())) for word in words]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pefttools", "train", *COMMON, *chosen, "--out", f"{scratch}/run", "--json"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if process.returncode:
            raise RuntimeError(process.stderr[-500:])
        return json.loads(process.stdout)["train"]["step_seconds"]


def table(found: dict[str, list[float]]) -> str:
    lines = [
        "# Costs of objectives",
        "",
        "`python benchmarks/objective_costs.py TEACHER`: seconds of the steps as a multiple of those without objective,"
        f" median of {len(found[PLAIN])} rounds (smallest to largest). Objectives that make two passes:"
        f" {', '.join(TWO_PASSES)}; the bar for these is {BAR}.",
        "",
        "| objective | of a plain step |",
        "|---|---|",
    ]
    for name, values in found.items():
        if name != PLAIN:
            ratios = [one / plain for one, plain in zip(values, found[PLAIN], strict=True)]
            lines.append(f"| {name} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, list[Any]] = {name: [] for name in ROWS}
    for _ in range(arguments.rounds):
        for name, words in ROWS.items():
            found[name].append(seconds(words, arguments.teacher))
            print(name, found[name][-1], flush=True)
    atomic.write_json(RESULTS / "objective_costs.json", found)
    atomic.write_text(RESULTS / "objective_costs.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
