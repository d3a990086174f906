"""Seconds and memory until the first step on a file of a million rows or more, which is read, split and tokenised.

python benchmarks/many_rows.py 1000000 10000000     # -> results/many_rows.json and .md

The rows are random words with a word that decides the class, 90 characters each, written to a csv file in a temporary
folder. Each number of rows runs in a process of its own with an empty cache, and ends after a few steps. Memory is that
of the process: its peak in all, and the part that is not a file mapped into memory, which the system could drop.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
CHARACTERS = 90
STEPS = 20
WORDS = [
    f"{a}{b}{c}" for a in ("ba", "ko", "mi", "su", "te") for b in ("la", "ri", "no", "du") for c in ("", "n", "s", "rt")
]
CLASSES = ("early", "late", "never", "soon")


def write_rows(path: Path, number: int) -> None:
    """A csv file of random rows."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        stream.write("text,label\n")
        for i in range(number):
            label = CLASSES[i % len(CLASSES)]
            words = [label, str(i), *draw.choices(WORDS, k=20)]
            draw.shuffle(words)
            stream.write(f"{' '.join(words)[:CHARACTERS]},{label}\n")


class Memory(threading.Thread):
    """The largest memory of this process, in bytes, read ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak: dict[str, int] = {"VmRSS": 0, "RssAnon": 0}
        self.is_over = False

    def run(self) -> None:
        while not self.is_over:
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in self.peak:
                    self.peak[name] = max(self.peak[name], 1024 * int(value.split()[0]))
            time.sleep(0.1)


def measured(file: str, cache: str, send: Any) -> None:
    """Train a few steps on the file; sends seconds and memory."""
    os.environ["PEFTTOOLS_CACHE"] = cache
    memory = Memory()
    memory.start()
    import pefttools

    begin = time.perf_counter()
    first: list[tuple[float, float]] = []

    class Stop(pefttools.Callback):
        def on_step(self, step: Any) -> None:
            del step
            first.append((time.perf_counter() - begin, time.process_time()))

        def should_stop(self) -> bool:
            return len(first) >= STEPS

    values = {
        "data.train": file,
        "data.validation_share": 0.0002,
        "data.test_share": 0.0002,
        "train.log_every": 1,
        "train.epochs": 1,
        "train.trackers": [],
        "task.max_length": 64,
    }
    with tempfile.TemporaryDirectory() as out:
        run = pefttools.train("question-type-head", values, out=f"{out}/run", callbacks=[Stop()])
        rows = run.result["data"]["rows"]
    memory.is_over = True
    memory.join()
    send.send({
        "rows": sum(rows.values()), "training_rows": rows["train"], "seconds_to_first_step": first[0][0],
        "cpu_seconds_to_first_step": first[0][1],
        "peak_bytes": memory.peak["VmRSS"], "peak_anonymous_bytes": memory.peak["RssAnon"],
    })  # fmt: skip


def one(number: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        write_rows(file, number)
        size = file.stat().st_size
        receive, send = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=measured, args=(str(file), f"{folder}/cache", send)
        )
        process.start()
        send.close()
        found = receive.recv()
        process.join()
    return {**found, "file_bytes": size}


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| rows | file, MB | seconds to the first step | of processor time | peak memory, MB | without mapped files |",
        "|---|---|---|---|---|---|",
    ]
    for found in results:
        numbers = [found["file_bytes"] / 1e6, found["seconds_to_first_step"], found["cpu_seconds_to_first_step"]]
        numbers += [found["peak_bytes"] / 1e6, found["peak_anonymous_bytes"] / 1e6]
        lines.append(f"| {found['rows']:,} | {' | '.join(f'{number:,.0f}' for number in numbers)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--out", type=Path, default=RESULTS / "many_rows.json")
    arguments = parser.parse_args()
    results = []
    for number in arguments.rows:
        results.append(one(number))
        print(json.dumps(results[-1]), flush=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        head = f"# Many rows\n\n`python benchmarks/many_rows.py {' '.join(map(str, arguments.rows))}`\n\n"
        arguments.out.with_suffix(".md").write_text(head + table(results), "utf-8")


if __name__ == "__main__":
    main()
