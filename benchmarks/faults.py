"""Kill, damage and starve runs, and compare what they become with runs left alone. Finished cases are not repeated.

    python benchmarks/faults.py kills --number 100   # SIGKILL at random moments of training and export
    python benchmarks/faults.py writes               # an error, a short write or a crash at every write of a checkpoint
    python benchmarks/faults.py damage               # five damages of every file of a run and of its checkpoints
    python benchmarks/faults.py table                # -> benchmarks/results/faults.{md,json}

`kills` starts `pefttools train` with `--resume` in a process group of its own, again and again. A case counts as lost
if it cannot be resumed, and as wrong if its losses, its weights or its scores differ from those of the run left alone.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_injection.damage import damage
from fault_injection.kills import kills
from fault_injection.writes import KINDS, writes

from pefttools import atomic

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "writes", "damage", "table"))
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "table":
        write_table(arguments.out)
    elif arguments.what == "kills":
        kills(arguments.out, arguments.number)
    else:
        {"writes": writes, "damage": damage}[arguments.what](arguments.out)


def write_table(out: Path) -> None:
    """Write benchmarks/results/faults.{md,json} from what has finished."""
    loaded = {
        name: json.loads((out / f"{name}.json").read_text("utf-8"))
        for name in ("kills", "writes", "damage")
        if (out / f"{name}.json").exists()
    }
    atomic.write_json(RESULTS / "faults.json", loaded)
    atomic.write_text(RESULTS / "faults.md", "\n".join(table(loaded)) + "\n")


def table(found: dict[str, Any]) -> Iterator[str]:
    yield "# Faults: what was done to runs, and what became of them\n"
    yield "Commands: `python benchmarks/faults.py kills`, `writes`, `damage`, then `table`.\n"
    if cases := found.get("kills"):
        yield "| setup | kills | lost | different from the run left alone |\n|---|---|---|---|"
        for name in dict.fromkeys(case["setup"] for case in cases):
            mine = [case for case in cases if case["setup"] == name]
            lost, wrong = sum(case["lost"] for case in mine), sum(bool(case.get("wrong")) for case in mine)
            yield f"| {name} | {sum(case['kills'] for case in mine)} | {lost} | {wrong} |"
        moments = sum((Counter(case["moments"]) for case in cases), Counter[str]())
        yield f"\n{sum(moments.values())} kills: {', '.join(f'{n} {name}' for name, n in moments.items())}.\n"
    if cases := found.get("writes"):
        yield "| fault at a write of a checkpoint | places | exit codes | lost | different |\n|---|---|---|---|---|"
        for kind in KINDS:
            mine = [case for key, case in cases.items() if key.startswith(kind) and case["reached"]]
            codes = ", ".join(str(code) for code in sorted({case["code"] for case in mine}))
            lost, wrong = sum(case["lost"] for case in mine), sum(bool(case["wrong"]) for case in mine)
            yield f"| {kind} | {len(mine)} | {codes} | {lost} | {wrong} |"
    if cases := found.get("damage"):
        yield "\n| damaged | cases | refused or set aside, with the file named | unharmed | wrong without a word |"
        yield "|---|---|---|---|---|"
        for kind in ("run", "checkpoint"):
            mine = [case for key, case in cases.items() if key.startswith(f"{kind}:")]
            told = sum(case["told"] for case in mine)
            silent = sum(case["wrong"] and not case["told"] for case in mine)
            yield f"| {kind} | {len(mine)} | {told} | {len(mine) - told - silent} | {silent} |"


if __name__ == "__main__":
    main()
