"""The peak memory that `plan` estimates for each objective, compared with the peak of a real `train`.

    python benchmarks/objective_memory.py [--length 64] [--batch 32]    # -> results/objective_memory.{md,json}

The rows are made on the spot and fill every batch, so that the largest batch of the plan occurs. MiniLM, recipe
question-type-lora, one epoch of 192 rows, one thread; the teacher of `distillation` is a run on the same rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from objective_costs import ROWS

from pefttools import atomic

RESULTS = Path(__file__).parent / "results"
MIB, BAR, NUMBER, CLASSES = 1 << 20, 0.15, 192, ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
FP32_ONLY = ("smart",)
"""Objectives that bf16 is too coarse for."""
WORDS = (
    "the", "name", "of", "city", "river", "king", "song", "year", "number", "people", "who", "live", "near", "old",
    "mountain", "and", "sea",
)  # fmt: skip


def write_rows(file: Path, length: int) -> None:
    """Rows of more than `length` words, so that all of them are truncated to as many tokens."""
    draw = random.Random(0)
    lines = [
        json.dumps({"text": " ".join(draw.choices(WORDS, k=length)), "label": CLASSES[i % len(CLASSES)]})
        for i in range(NUMBER)
    ]
    file.write_text("\n".join(lines) + "\n", "utf-8")


def of_command(*words: str) -> dict[str, Any]:
    """The JSON that a command prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pefttools", *words, "--json"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}\n{process.stderr[-800:]}")
    return json.loads(process.stdout)


def table(found: dict[str, dict[str, int]], command: str) -> str:
    lines = [
        "# Peak memory with objectives: planned and measured",
        "",
        f"`{command}`; MiB of the process, in fp32 and in bf16. The bar is an error of {BAR:.0%}.",
        "",
        "| objective | planned | measured | error |",
        "|---|---:|---:|---:|",
    ]
    for name, row in found.items():
        error = row["planned"] / row["measured"] - 1
        lines.append(f"| {name} | {row['planned'] / MIB:,.0f} | {row['measured'] / MIB:,.0f} | {error:+.1%} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--batch", type=int, default=32, help="rows of a step")
    arguments = parser.parse_args()
    found: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_rows(Path(scratch, "rows.jsonl"), arguments.length)
        common = [
            "question-type-lora", f"data.train={scratch}/rows.jsonl", "data.test_share=0.25", "train.epochs=1",
            f"task.max_length={arguments.length}", f"train.batch_size={arguments.batch}", "train.trackers=[]",
        ]  # fmt: skip
        of_command("train", *common, "strategy=full", "--out", f"{scratch}/teacher")
        for name, overrides in ROWS.items():
            for precision in ("fp32",) if name in FP32_ONLY else ("fp32", "bf16"):
                chosen = [word.replace("@", f"{scratch}/teacher") for word in overrides]
                words = [*common, *chosen, f"train.precision={precision}", "train.micro_batch_tokens=1000000"]
                planned = of_command("plan", *words)["bytes"]["peak"]
                run = of_command("train", *words, "--out", f"{scratch}/run", "--overwrite")
                row = {"planned": planned, "measured": run["train"]["peak_bytes"]}
                found[f"{name}, {precision}"] = row
                print(name, precision, f"{row['planned'] / row['measured'] - 1:+.1%}", flush=True)
    command = f"python benchmarks/objective_memory.py --length {arguments.length} --batch {arguments.batch}"
    atomic.write_json(RESULTS / "objective_memory.json", found)
    atomic.write_text(RESULTS / "objective_memory.md", table(found, command))
    print(table(found, command))


if __name__ == "__main__":
    main()
