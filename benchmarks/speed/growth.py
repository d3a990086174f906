"""How cost grows: seconds a step and peak bytes by batch size, length, rank and number of layers, each varied alone.

    python benchmarks/speed/growth.py                    # three rounds: about half an hour on two cores
    python benchmarks/speed/growth.py --sweeps rows rank --repeats 5
    python benchmarks/speed/growth.py --smoke            # check that it runs, on a tiny configuration

The model has MiniLM's configuration, random weights and the given number of blocks, with LoRA on every matrix. Every
row has exactly the given number of tokens, and a batch is one micro-batch, so that only the model's own cost grows.
Every measurement runs in a new process; measurements that exist are not repeated. The table, the fits and the plot are
written to benchmarks/results/growth.{md,json,svg,png}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import exact
import fits
import ours
import plot
import processes
import report
import smoke
import store
import summary
from cases import ENCODER, FOREVER
from clock import Clock

from pefttools import atomic
from pefttools.bases.loading import load_tokenizer, locate, prepare_libraries
from pefttools.recipe import recipes
from pefttools.recipe.recipe import Recipe

RESULTS = Path(__file__).parents[1] / "results"
STEPS, WARM_UP = 8, 2
"""Number of timed steps, and number of steps of the warm-up run before them."""


@dataclass(frozen=True)
class Point:
    """The size of a step."""

    rows: int = 32
    length: int = 32
    rank: int = 8
    layers: int = 6


SWEEPS = {
    "rows": (4, 8, 16, 32, 64, 128),
    "length": (16, 32, 64, 128, 256),
    "rank": (1, 4, 8, 16, 64, 256),
    "layers": (1, 2, 3, 4, 6, 8, 12),
}
"""Swept size -> its values; the other sizes are those of `Point`."""
TINY, TINY_SWEEPS = Point(8, 16, 4, 2), {"rows": (4, 8), "length": (8, 16), "rank": (2, 4), "layers": (1, 2)}


class Beats(Clock):
    """Measures the seconds between the ends of successive steps."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def stepped(self) -> None:
        self.ends.append(self.training.last)

    @property
    def step_seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def measure(point: Point, folder: Path, tiny: bool) -> dict[str, Any]:
    """Median seconds a step, and the peak bytes of training minus those of the loaded model."""
    settings = recipes.load(ENCODER, smoke.overrides(False, folder) if tiny else []).recipe.base
    original, _ = locate(settings)
    tokenizer = load_tokenizer(original, settings.source)
    base = folder / f"layers-{point.layers}"
    config = json.loads((original / "config.json").read_text("utf-8")) | {"num_hidden_layers": point.layers}
    base.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(base)
    atomic.write_json(base / "config.json", config)
    rows = exact.write(folder / f"rows-{point.rows}-{point.length}", tokenizer, point.rows * STEPS, point.length)
    size = [
        *rows, f"base={base.absolute()}", "base.init=scratch", f"strategy.rank={point.rank}",
        f"train.batch_size={point.rows}", f"train.micro_batch_size={point.rows}",
        f"train.micro_batch_tokens={point.rows * point.length}",
    ]  # fmt: skip
    beats = Beats()
    measured = ours.run(_recipe(size, point.rows * STEPS), _recipe(size, point.rows * WARM_UP), beats)
    return {
        "step_seconds": statistics.median(beats.step_seconds),
        "peak_bytes": summary.bytes_over_model(measured),
    }


def _recipe(size: list[str], rows: int) -> Recipe:
    """A recipe for one epoch over so many rows that logs every step and evaluates only at the end."""
    once = ["train.epochs=1", f"train.evaluate_every={FOREVER}", f"train.checkpoint_seconds={FOREVER}"]
    quiet = ["train.log_every=1", "train.trackers=[]", f"data.train_rows={rows}"]
    return recipes.load(ENCODER, [*size, *once, *quiet]).recipe


def main() -> None:
    arguments = parsed()
    if arguments.point:
        prepare_libraries()
        found = measure(Point(**json.loads(arguments.point)), arguments.out, arguments.smoke)
        arguments.answer.write_text(json.dumps(found), "utf-8")
        return
    stored = store.Store(arguments.out)
    if not arguments.collect:
        stored.set_settings({"threads": arguments.threads, "smoke": arguments.smoke})
        complete(stored, arguments)
    if not stored.measures:
        raise SystemExit(f"--out: nothing has been measured in {stored.folder}")
    centre, sweeps = (TINY, TINY_SWEEPS) if stored.settings["smoke"] else (Point(), SWEEPS)
    found = [
        fits.Sweep.of(name, {v: at(stored, replace(centre, **{name: v})) for v in values})
        for name, values in sweeps.items()
    ]
    found = [sweep for sweep in found if len(sweep.values) > 1]
    file = arguments.json
    text = fits.report(found, asdict(centre), f"{report.machine()}, threads {stored.settings['threads']}")
    atomic.write_json(file, {"machine": report.machine(), "settings": stored.settings, "measures": stored.measures,
                             "fits": [sweep.as_dict() for sweep in found]})  # fmt: skip
    atomic.write_text(file.with_suffix(".md"), text)
    plot.draw(found, file)
    print(text)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), metavar="NAME")
    parser.add_argument("--repeats", type=int, help="number of rounds; by default 3, with --smoke 1")
    parser.add_argument("--threads", type=int, help="threads; by default OMP_NUM_THREADS, or all cores")
    parser.add_argument("--out", type=Path, help="folder of the measurements; by default runs/growth")
    parser.add_argument("--json", type=Path, help="file of the results; table and plot get the same name")
    parser.add_argument("--collect", action="store_true", help="measure nothing; write the results so far")
    parser.add_argument("--smoke", action="store_true", help="use a tiny configuration, to check that everything runs")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.repeats = arguments.repeats or (1 if arguments.smoke else 3)
    arguments.threads = arguments.threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    arguments.out = arguments.out or Path("runs/growth-smoke" if arguments.smoke else "runs/growth")
    arguments.json = arguments.json or (arguments.out if arguments.smoke else RESULTS) / "growth.json"
    return arguments


def complete(stored: store.Store, arguments: argparse.Namespace) -> None:
    """Make the missing measurements, round by round, and print a line for each."""
    centre, sweeps = (TINY, TINY_SWEEPS) if arguments.smoke else (Point(), SWEEPS)
    points = dict.fromkeys(replace(centre, **{name: value}) for name in arguments.sweeps for value in sweeps[name])
    for number in range(arguments.repeats):
        for point in points:
            identity = {**asdict(point), "round": number}
            if stored.has(identity):
                continue
            command = [__file__, "--point", json.dumps(asdict(point)), "--out", str(arguments.out)]
            found = processes.run_script(
                [*command, "--smoke"] if arguments.smoke else command, {"OMP_NUM_THREADS": str(arguments.threads)}
            )
            stored.add({**identity, **found})
            print(f"{identity} {found['step_seconds']:.3f} s", file=sys.stderr)


def at(stored: store.Store, point: Point) -> list[store.Measured]:
    """The measurements of one point."""
    wanted = asdict(point)
    return [measured for measured in stored.measures if all(measured[name] == wanted[name] for name in wanted)]


if __name__ == "__main__":
    main()
