"""Trials of the benchmarks: each is one `pefttools train`; missing ones are run, several at once."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pefttools.recipe import recipes

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Trial:
    """A recipe with overrides, and its run folder."""

    data: str
    row: str
    seed: int
    command: tuple[str, ...]
    """A recipe and overrides."""
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.data} {self.row} seed {self.seed}"

    @property
    def digest(self) -> str:
        return recipes.load(self.command[0], self.command[1:]).recipe.digest

    @property
    def result(self) -> dict[str, Any] | None:
        """The result, if the run is finished and is of this recipe."""
        file = self.folder / "result.json"
        found = json.loads(file.read_text()) if file.exists() else None
        return found if found and found["digest"] == self.digest else None

    def run(self, threads: int) -> str:
        """Train unless there is a result, continuing a killed run; returns a line on the outcome."""
        if (self.folder / "result.json").exists():
            return f"{self.name}: " + ("finished before" if self.result else f"ANOTHER RECIPE, remove {self.folder}")
        process = subprocess.run(
            [sys.executable, "-m", "pefttools", "train", *self.command, "--out", str(self.folder), "--resume"],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return f"{self.name}: " + ("done" if process.returncode == 0 else process.stderr.strip()[-300:])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="number of trials at once; they share the cores")
    parser.add_argument("--threads", type=int, help="threads of each trial; by default the trials share the cores")
    parser.add_argument("--collect", action="store_true", help="train nothing; write the table of finished trials")


def run_all(trials: Sequence[Trial], arguments: argparse.Namespace) -> None:
    """Run every trial without result, `--workers` at once, and print a line for each."""
    threads = arguments.threads or max(1, (os.cpu_count() or 1) // arguments.workers)
    with ThreadPoolExecutor(arguments.workers) as pool:
        for line in pool.map(lambda trial: trial.run(threads), trials):
            print(line, flush=True)
