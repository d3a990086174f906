"""pefttools against transformers' Trainer with peft: speed, memory and what is learnt, side by side in one run.

    make speed                                                    # every case, five rounds: hours on two cores
    python benchmarks/speed --cases lora head --repeats 3 --rows 512
    python benchmarks/speed --accuracy                            # three seeds at the recipes' full number of epochs
    python benchmarks/speed --smoke                               # does every case run? on a tiny random base

A measurement is a fresh process. One that is in --out is not made again, so a run that was stopped goes on; the tables,
benchmarks/results/speed.{md,json}, hold whatever is there. Measurements of another pefttools, or under other
settings, are refused: name another --out.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import accuracy
import kept
import report
import summary
from cases import CASES, Order
from fresh import ask

from pefttools import atomic

RESULTS = Path(__file__).parents[1] / "results"
SMOKE_ROWS = 64


def main() -> None:
    arguments = parsed()
    there = kept.Kept(arguments.out)
    if not arguments.collect:
        there.settle(
            {
                "rows": arguments.rows, "epochs": arguments.epochs, "threads": arguments.threads,
                "smoke": arguments.smoke,
            }
        )  # fmt: skip
        try:
            measure(orders(arguments), there, arguments)
        except KeyboardInterrupt:
            raise SystemExit("stopped; the same command goes on") from None
    if not there.measures:
        raise SystemExit(f"--out: nothing has been measured in {there.folder}")
    write(there, arguments.json)
    print(report.text(there.measures, there.settings))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--repeats", type=int, help="rounds; 5 when not given, 1 with --smoke")
    parser.add_argument("--rows", type=int, help="to train on or to predict; 1024 when not given")
    parser.add_argument("--epochs", type=float, help="each case's own when not given")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS when not given, or every core")
    parser.add_argument("--out", type=Path, help="where measurements are kept; runs/speed when not given")
    parser.add_argument("--json", type=Path, help="the file of the results; the tables go beside it")
    parser.add_argument("--collect", action="store_true", help="measure nothing, write the tables of what is there")
    parser.add_argument("--accuracy", action="store_true", help="train in full and compare the test accuracy")
    parser.add_argument("--contenders", nargs="+", help="only these of each case: trainer, trainer_tuned, pefttools …")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of --accuracy")
    parser.add_argument("--smoke", action="store_true", help="a tiny random base: whether it runs, not how fast")
    arguments = parser.parse_args()
    smoke = arguments.smoke
    arguments.repeats = arguments.repeats or (1 if smoke else 5)
    arguments.rows = arguments.rows or (SMOKE_ROWS if smoke else 1024)
    arguments.threads = arguments.threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    arguments.out = arguments.out or Path("runs/speed-smoke" if smoke else "runs/speed")
    arguments.json = arguments.json or (arguments.out if smoke else RESULTS) / "speed.json"
    return arguments


def orders(arguments: argparse.Namespace) -> list[Order]:
    """Every measurement, in order: of a case the contenders take turns."""
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


def measure(wanted: list[Order], there: kept.Kept, arguments: argparse.Namespace) -> None:
    """Make every measurement that is not there, a line on each."""
    missing = [order for order in wanted if not there.has(order.identity)]
    for number, order in enumerate(missing, 1):
        answer = there.add({**order.identity, **ask(order, {"OMP_NUM_THREADS": str(arguments.threads)})})
        kept.refuse_unequal(there.measures)
        said = f"{summary.rows_per_second(answer):.1f} rows/s" if "rows" in answer else ""
        print(f"{number}/{len(missing)} {order.case} {order.contender} {order.round} {said}", file=sys.stderr)
        if number == len(missing) or missing[number].case != order.case:
            write(there, arguments.json)


def write(there: kept.Kept, file: Path) -> None:
    """The results as JSON, and the tables beside them."""
    atomic.write_json(
        file,
        {
            "machine": report.machine(), "settings": there.settings, "figures": summary.figures(there.measures),
            "accuracy": accuracy.figures(there.measures), "measures": there.measures,
        },
    )  # fmt: skip
    atomic.write_text(file.with_suffix(".md"), report.text(there.measures, there.settings))


if __name__ == "__main__":
    main()
