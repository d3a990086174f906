"""pefttools compared with transformers' Trainer and peft: speed, memory and test accuracy, measured in one run.

    make speed                                                    # every case, five rounds: hours on two cores
    python benchmarks/speed --cases lora head --repeats 3 --rows 512
    python benchmarks/speed --accuracy                            # three seeds at the recipes' full number of epochs
    python benchmarks/speed --smoke                               # check that every case runs, on a tiny random base

Every measurement runs in a new process. Measurements that are already in --out are not repeated, so the same command
continues after a stop. The tables, benchmarks/results/speed.{md,json}, contain all measurements so far. Measurements of
another version of pefttools or with other settings are refused; name another --out for them.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import accuracy
import report
import store
import summary
from cases import CASES, Order
from processes import measure_in_process

from pefttools import atomic

RESULTS = Path(__file__).parents[1] / "results"
SMOKE_ROWS = 64


def main() -> None:
    arguments = parsed()
    stored = store.Store(arguments.out)
    if not arguments.collect:
        stored.set_settings(
            {
                "rows": arguments.rows, "epochs": arguments.epochs, "threads": arguments.threads,
                "smoke": arguments.smoke,
            }
        )  # fmt: skip
        try:
            measure(orders(arguments), stored, arguments)
        except KeyboardInterrupt:
            raise SystemExit("stopped; run the same command again to continue") from None
    if not stored.measures:
        raise SystemExit(f"--out: nothing has been measured in {stored.folder}")
    write(stored, arguments.json)
    print(report.text(stored.measures, stored.settings))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--repeats", type=int, help="number of rounds; by default 5, with --smoke 1")
    parser.add_argument("--rows", type=int, help="rows to train on or to predict; by default 1024")
    parser.add_argument("--epochs", type=float, help="epochs; by default those of each case")
    parser.add_argument("--threads", type=int, help="threads; by default OMP_NUM_THREADS, or all cores")
    parser.add_argument("--out", type=Path, help="folder of the measurements; by default runs/speed")
    parser.add_argument("--json", type=Path, help="file of the results; the tables get the same name with .md")
    parser.add_argument("--collect", action="store_true", help="measure nothing; write the tables of existing results")
    parser.add_argument("--accuracy", action="store_true", help="train for all epochs and compare test accuracy")
    parser.add_argument("--contenders", nargs="+", help="only these of each case: trainer, trainer_tuned, pefttools …")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of --accuracy")
    parser.add_argument("--smoke", action="store_true", help="use a tiny random base, to check that everything runs")
    arguments = parser.parse_args()
    smoke = arguments.smoke
    arguments.repeats = arguments.repeats or (1 if smoke else 5)
    arguments.rows = arguments.rows or (SMOKE_ROWS if smoke else 1024)
    arguments.threads = arguments.threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    arguments.out = arguments.out or Path("runs/speed-smoke" if smoke else "runs/speed")
    arguments.json = arguments.json or (arguments.out if smoke else RESULTS) / "speed.json"
    return arguments


def orders(arguments: argparse.Namespace) -> list[Order]:
    """All measurements, in order; the contenders of a case take turns."""
    folder = str(arguments.out)
    if arguments.accuracy:
        every = accuracy.orders(arguments.cases, arguments.seeds, folder, arguments.smoke)
    else:
        every = rounds(arguments, folder)
    return [order for order in every if not arguments.contenders or order.contender in arguments.contenders]


def rounds(arguments: argparse.Namespace, folder: str) -> list[Order]:
    """The rounds of speed and memory."""
    return [
        Order(case, contender, number, folder, arguments.rows, arguments.epochs, arguments.smoke)
        for case in arguments.cases
        for number in range(arguments.repeats)
        for contender in CASES[case].contenders
    ]


def measure(wanted: list[Order], stored: store.Store, arguments: argparse.Namespace) -> None:
    """Make the missing measurements, and print a line for each."""
    missing = [order for order in wanted if not stored.has(order.identity)]
    for number, order in enumerate(missing, 1):
        found = measure_in_process(order, {"OMP_NUM_THREADS": str(arguments.threads)})
        measured = stored.add({**order.identity, **found})
        store.refuse_unequal(stored.measures)
        rate = f"{summary.rows_per_second(measured):.1f} rows/s" if "rows" in measured else ""
        print(f"{number}/{len(missing)} {order.case} {order.contender} {order.round} {rate}", file=sys.stderr)
        if number == len(missing) or missing[number].case != order.case:
            write(stored, arguments.json)


def write(stored: store.Store, file: Path) -> None:
    """Write the results as JSON, and the tables as Markdown."""
    atomic.write_json(
        file,
        {
            "machine": report.machine(), "settings": stored.settings, "figures": summary.figures(stored.measures),
            "accuracy": accuracy.figures(stored.measures), "measures": stored.measures,
        },
    )  # fmt: skip
    atomic.write_text(file.with_suffix(".md"), report.text(stored.measures, stored.settings))


if __name__ == "__main__":
    main()
