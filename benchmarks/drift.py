"""How far a suite's results move under other library versions: a tenth of its trials, trained again.

    python -m venv OTHER && OTHER/bin/pip install -c constraints.txt -e . && OTHER/bin/pip install transformers==5.24.0
    python benchmarks/drift.py --python OTHER/bin/python      # -> results/zoo/drift.{md,json}
    python benchmarks/drift.py --collect                      # the table of what has finished

The tenth is chosen by the trials' digests, so it is the same on every machine. Every trial is the command that the
report shows, with one thread. Finished trials are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pefttools.bench.job import Job
from pefttools.bench.suite import load
from pefttools.bench.sweep import Sweep

HERE = Path(__file__).parent
SHARE = 10
"""One in this many trials."""


def chosen(sweep: Sweep) -> list[Job]:
    """A tenth of the finished trials with test scores."""
    finals = [job for cell in sweep.cells for job in sweep.finals(cell)]
    return [
        job
        for job in finals
        if int(job.digest[:8], 16) % SHARE == 0 and sweep.records.get(job.digest, {}).get("status") == "done"
    ]


def trained(job: Job, python: str, out: Path) -> None:
    """Train a trial with another Python unless its result exists."""
    run = out / job.digest[:16]
    if (run / "result.json").is_file():
        return
    words = [python, "-m", "pefttools", "train", job.cell.start, *job.cell.words(job.seed, job.learning_rate)]
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{job.digest[:16]}.log").open("w") as log:
        subprocess.run(
            [*words, "--out", str(run), "--resume"],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, check=True,
        )  # fmt: skip


def compared(sweep: Sweep, jobs: list[Job], out: Path) -> list[dict[str, Any]]:
    """The finished trials with both scores."""
    found = []
    for job in jobs:
        file = out / job.digest[:16] / "result.json"
        if file.is_file():
            record, again = sweep.records[job.digest], json.loads(file.read_text())
            metric = record["metric"]
            cell: Any = job.cell  # a suite's, which has a problem and a method
            found.append(
                {
                    "set": cell.problem, "method": cell.method, "seed": job.seed, "metric": metric,
                    "score": record["test"][metric], "again": again["test"][metric],
                    "versions": record["versions"], "again_versions": again["versions"],
                    "device": record["hardware"]["device"], "again_device": again["hardware"]["device"],
                }
            )  # fmt: skip
    return found


def table(suite: str, found: list[dict[str, Any]], number: int) -> str:
    moved = [100 * (one["again"] - one["score"]) for one in found]
    names = ("torch", "transformers", "peft")
    then, now = ([f"{name} {found[0][key][name]}" for name in names] for key in ("versions", "again_versions"))
    sizes = sorted(map(abs, moved))
    lines = [
        f"# Drift of {suite}",
        "",
        f"`python benchmarks/drift.py`: {len(found)} of the {number} chosen trials, trained with {', '.join(then)} and"
        f" again with {', '.join(now)}.",
        f"Test scores moved by {statistics.fmean(moved):+.2f} points on average (mean size"
        f" {statistics.fmean(sizes):.2f}, largest {sizes[-1]:.2f}); {sum(size == 0 for size in sizes)} did not move.",
        "",
        "| set | method | seed | score | again | points |",
        "|---|---|---:|---:|---:|---:|",
        *(
            f"| {one['set']} | {one['method']} | {one['seed']} | {one['score']:.4f} | {one['again']:.4f} | {by:+.2f} |"
            for one, by in zip(found, moved, strict=True)
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="zoo")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "zoo")
    parser.add_argument("--python", default=sys.executable, help="the interpreter with the other versions")
    parser.add_argument("--out", type=Path, default=Path("runs/drift"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--collect", action="store_true", help="train nothing; write the table of what has finished")
    arguments = parser.parse_args()
    sweep = Sweep(load(arguments.suite), arguments.results)
    jobs = chosen(sweep)
    if not arguments.collect:
        with ThreadPoolExecutor(arguments.workers) as pool:
            list(pool.map(lambda job: trained(job, arguments.python, arguments.out), jobs))
    found = compared(sweep, jobs, arguments.out)
    if not found:
        raise SystemExit(f"none of the {len(jobs)} chosen trials has been trained again")
    (arguments.results / "drift.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.results / "drift.md").write_text(table(sweep.suite.name, found, len(jobs)))
    print(table(sweep.suite.name, found, len(jobs)))


if __name__ == "__main__":
    main()
