"""Feed damaged inputs to every reader: data files, recipes, overrides, runs, artifacts, bases and results of suites.

    nice python benchmarks/fuzz.py --inputs 10000
    nice python benchmarks/fuzz.py csv parquet --inputs 10000 --again

Every input must be read, or be refused by one sentence that names the file; where the format has checksums, a file that
is read must have the rows of the valid one. Input N of a reader is always the same. Counts are saved after every block
of inputs in runs/fuzz, so the command continues where it stopped, or where the committed table ends. Each block has a
process of its own, because libraries in C may crash or never return. Tables: benchmarks/results/fuzz.md and fuzz.json.
The exit code is 1 if an input was neither read nor refused.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from fuzzing import artifacts, data_files
from fuzzing.readers import DIFFERENT, READ, REFUSED, TRACEBACK, UNCLEAR, Reader

STATE = Path("runs/fuzz")
RESULTS = Path(__file__).parent / "results"
BLOCK = 250
HANGS_AFTER = 180.0
"""Seconds after which an input counts as one whose reading never ends."""
MEMORY = 16 << 30
"""Address space of a process that reads, in bytes, so that a damaged length cannot take the machine's memory."""
NOTHING: dict[str, Any] = {"inputs": 0, "outcomes": {}, "first": {}}
COLUMNS = ("inputs", READ, REFUSED, DIFFERENT, UNCLEAR, "tracebacks", "crashes", "hangs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="readers; by default all")
    parser.add_argument("--inputs", type=int, default=10_000, help="number of inputs of each reader")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop a reader after this time")
    parser.add_argument("--again", action="store_true", help="forget the saved counts of these readers")
    arguments = parser.parse_args()
    prepare()
    readers = [*data_files.readers(), *artifacts.readers()]
    if unknown := {*arguments.names} - {reader.name for reader in readers}:
        parser.error(f"no such reader: {', '.join(unknown)}; there are {', '.join(reader.name for reader in readers)}")
    for reader in readers:
        if not arguments.names or reader.name in arguments.names:
            if arguments.again:
                save(reader, NOTHING)
            attempt_all(reader, arguments.inputs, time.monotonic() + arguments.seconds)
    table = [row for reader in readers if (row := row_of(reader))["inputs"]]
    write(table)
    sys.exit(any(row[name] for row in table for name in COLUMNS[3:]))


def prepare() -> None:
    """Import the libraries once, before processes are forked, and keep the cache of the user out of it."""
    warnings.simplefilter("ignore")
    os.environ["PEFTTOOLS_CACHE"] = str(STATE.absolute() / "cache")
    from pefttools.bases.loading import prepare_libraries
    from pefttools.imports import import_peft

    prepare_libraries()
    import_peft()


def attempt_all(reader: Reader, inputs: int, deadline: float) -> None:
    """Read the inputs that are missing in the saved counts, in blocks."""
    saved = load(reader)
    done, outcomes = saved["inputs"], Counter(saved["outcomes"])
    first = saved["first"]
    if done < inputs:
        reader.prepare()
    while done < inputs and time.monotonic() < deadline:
        found = block(reader, done, min(BLOCK, inputs - done))
        for number, outcome in enumerate(found, done):
            kind = shortened(outcome)
            outcomes[kind] += 1
            if kind not in (READ, REFUSED):
                first.setdefault(kind, [number, outcome])
        done += len(found)
        save(reader, {"inputs": done, "outcomes": dict(outcomes), "first": first})
        print(f"\r{reader.name}: {done:,}  {dict(outcomes.most_common(3))}"[:150], end="", flush=True)
    print(f"\r{reader.name}: {done:,} inputs, {len(first)} kinds of faults{' ' * 60}")
    for kind, (number, outcome) in first.items():
        print(f"    {outcomes[kind]:,} × {kind}, first input {number}: {outcome}")


def block(reader: Reader, start: int, number: int) -> list[str]:
    """The outcomes of inputs from `start` on; a crash or hang ends the block with the input that caused it."""
    log, folder = STATE / f"{os.getpid()}.log", STATE / f"files-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    sys.stdout.flush()
    child = os.fork()
    if not child:
        read_block(reader, range(start, start + number), log, folder)
    code = wait(child, log)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    log.unlink()
    return found if len(found) == number else [*found, code]


def read_block(reader: Reader, numbers: range, log: Path, folder: Path) -> None:
    """Write one outcome a line; ends the process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    with log.open("a") as stream:
        for number in numbers:
            stream.write(json.dumps(reader.attempt(number, folder)) + "\n")
            stream.flush()
    os._exit(0)


def wait(child: int, log: Path) -> str:
    """Wait for a process; returns how it ended. One without progress is killed."""
    size, since = 0, time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if os.WIFSIGNALED(status):
                return f"crash: {signal.Signals(os.WTERMSIG(status)).name}"
            return f"crash: exit code {os.waitstatus_to_exitcode(status)}"
        if log.stat().st_size > size:
            size, since = log.stat().st_size, time.monotonic()
        elif time.monotonic() - since > HANGS_AFTER:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"hang: more than {HANGS_AFTER:.0f} s"
        time.sleep(0.02)


def shortened(outcome: str) -> str:
    """The kind of an outcome: without the message, which repeats parts of the input."""
    if outcome.startswith(TRACEBACK):
        return ": ".join(outcome.split(": ")[:2])
    return outcome.partition(": ")[0] if outcome.startswith(UNCLEAR) else outcome


def row_of(reader: Reader) -> dict[str, Any]:
    """A row of the table."""
    saved = load(reader)
    row: dict[str, Any] = {"reader": reader.name, **dict.fromkeys(COLUMNS, 0), "inputs": saved["inputs"]}
    for kind, number in saved["outcomes"].items():
        word: str = kind.partition(": ")[0]
        name: str = (
            kind if kind in row else {"traceback": "tracebacks", "crash": "crashes", "hang": "hangs"}.get(word, word)
        )
        row[name] += number
    return row


def write(table: list[dict[str, Any]]) -> None:
    """Write the table as Markdown and JSON; neither contains paths or messages."""
    total = {"reader": "all", **{name: sum(row[name] for row in table) for name in COLUMNS}}
    lines = [f"| {' | '.join(('reader', *COLUMNS))} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    for row in [*table, total]:
        lines.append(f"| {row['reader']} | {' | '.join(f'{row[name]:,}' for name in COLUMNS)} |")
    text = "# Damaged inputs\n\n" + " ".join((__doc__ or "").split("\n\n")[2].split()).partition(" Counts")[0] + "\n\n"
    text += "`nice python benchmarks/fuzz.py --inputs 10000`\n\n" + "\n".join(lines) + "\n"
    (RESULTS / "fuzz.md").write_text(text, "utf-8")
    (RESULTS / "fuzz.json").write_text(json.dumps(table, indent=1) + "\n", "utf-8")


def file_of(reader: Reader) -> Path:
    return STATE / f"{reader.name.replace(' ', '-').replace(':', '')}.json"


def load(reader: Reader) -> dict[str, Any]:
    """The saved counts; where nothing is saved, those of the committed table."""
    file, table = file_of(reader), RESULTS / "fuzz.json"
    if file.is_file():
        return json.loads(file.read_text())
    rows = json.loads(table.read_text("utf-8")) if table.is_file() else []
    row = next((row for row in rows if row["reader"] == reader.name), None)
    if row is None:
        return {**NOTHING, "outcomes": {}, "first": {}}
    return {"inputs": row["inputs"], "outcomes": {name: row[name] for name in COLUMNS[1:] if row[name]}, "first": {}}


def save(reader: Reader, values: dict[str, Any]) -> None:
    part = file_of(reader).with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps(values))
    part.replace(file_of(reader))


if __name__ == "__main__":
    main()
