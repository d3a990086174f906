"""Check that a suite killed with SIGKILL at random moments ends with the same results as one that runs undisturbed.

    python benchmarks/kills.py smoke --kills 5 --seed 0

Each runs `pefttools bench` in a process group of its own, so that a kill ends the trial's process, too. Records are
compared except for times and memory. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CLOCKS = ("train", "wall", "hardware")
"""Keys of a record with times and memory."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    arguments = parser.parse_args()
    quiet, killed = arguments.out / "quiet", arguments.out / "killed"
    shutil.rmtree(arguments.out, ignore_errors=True)
    started = time.monotonic()
    started_run(arguments, quiet).wait()
    seconds = time.monotonic() - started
    print(f"undisturbed: {seconds:.0f} s, {len(records(quiet))} trials")
    draw = random.Random(arguments.seed)
    for number in range(arguments.kills):
        process = started_run(arguments, killed)
        moment = draw.uniform(3, max(4.0, seconds / 2))
        try:
            process.wait(moment)
            print(f"kill {number + 1}: the suite ended before {moment:.1f} s")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"kill {number + 1}: after {moment:.1f} s, {len(records(killed))} trials finished")
    code = started_run(arguments, killed).wait()
    one, other = records(quiet), records(killed)
    differing = [digest for digest in one.keys() | other.keys() if one.get(digest) != other.get(digest)]
    print(f"exit code {code}; {len(one) - len(differing)} of {len(one)} records are equal")
    sys.exit(bool(code or differing))


def started_run(arguments: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pefttools", "bench", arguments.suite, *arguments.overrides, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def records(folder: Path) -> dict[str, Any]:
    found = (json.loads(file.read_text()) for file in sorted(folder.glob("trials/[!.]*.json")))
    return {record["digest"]: {k: v for k, v in record.items() if k not in CLOCKS} for record in found}


if __name__ == "__main__":
    main()
