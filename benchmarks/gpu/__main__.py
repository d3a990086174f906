"""Everything worth knowing about pefttools on a machine with a GPU, within ten minutes and without a network.

    python benchmarks/gpu                  # writes gpu.json and gpu.md
    python benchmarks/gpu --out FILE.json  # and FILE.md beside it
    python benchmarks/gpu --only decoder   # only parts whose names contain this text
    python benchmarks/gpu --smoke          # tiny models, on any machine; checks that the benchmark works

Correctness: runs on the GPU against the recorded losses of a CPU, DDP, resumption, merging, QLoRA, and what happens
when memory runs out. Speed and memory: pefttools against Trainer with peft at its defaults and tuned, and TRL, where it
is installed. Models have random weights, rows are invented, and the tokenizer is trained on the spot.

Every part runs in a process of its own and is written when it ends: `ok` with its values, `failed` with the error, or
`skipped` with the reason. The exit code is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

import sizes
import table
from parts import parts_of

from pefttools import atomic

SECONDS = 600
"""Time for all parts; those that have not begun by then are skipped."""
SHOWN = 1500
"""Number of characters of an error's text that are kept, from its end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny models, in about a minute on a CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON file; the table is beside it")
    parser.add_argument("--only", default="", metavar="TEXT", help="only parts whose names contain this text")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if out.suffix != ".json":
        parser.error(f"--out: must end with .json, got {out}")
    begun, chosen = time.monotonic(), sizes.SMOKE if arguments.smoke else sizes.FULL
    results: dict[str, Any] = {"smoke": arguments.smoke, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts_of(chosen).items():
            if arguments.only not in name:
                continue
            left = SECONDS - (time.monotonic() - begun)
            results["parts"][name] = one = (
                in_a_process(name, arguments.smoke, Path(folder), min(part.seconds, left))
                if left > 0
                else {"status": "skipped", "message": f"{SECONDS // 60} minutes were over"}
            )
            results["seconds"] = round(time.monotonic() - begun, 1)
            atomic.write_json(out, results)
            atomic.write_text(out.with_suffix(".md"), table.markdown(results))
            print(
                f"{name:28}{one['status']:8} {one.get('seconds', 0):6.1f} s  {one.get('message', '')[:200]}", flush=True
            )
    sys.exit(any(one["status"] == "failed" for one in results["parts"].values()))


def in_a_process(name: str, smoke: bool, folder: Path, limit: float) -> dict[str, Any]:
    """The status and the values of a part that runs in a new process."""
    answer = folder / f"{name}.json"
    command = [sys.executable, str(Path(__file__).with_name("part.py")), name, str(folder), str(answer)]
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [*command, *(["--smoke"] if smoke else [])], capture_output=True, text=True, timeout=limit, check=False
        )
        error = (done.stderr or done.stdout)[-SHOWN:]
    except subprocess.TimeoutExpired:
        error = f"took more than {limit:.0f} seconds"
    seconds = round(time.monotonic() - begun, 1)
    if answer.exists():
        return {**json.loads(answer.read_text("utf-8")), "seconds": seconds}
    return {"status": "failed", "message": error, "seconds": seconds}


if __name__ == "__main__":
    main()
