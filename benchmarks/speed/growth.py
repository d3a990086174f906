"""How cost grows: seconds a step and peak bytes against rows a batch, length, rank and layers, each by itself.

    python benchmarks/speed/growth.py                    # three rounds: about half an hour on two cores
    python benchmarks/speed/growth.py --sweeps rows rank --repeats 5
    python benchmarks/speed/growth.py --smoke            # does it run? on a tiny configuration

LoRA on every matrix of a model of MiniLM's configuration with random weights and as many blocks as asked for. Every row
has exactly as many tokens as asked for, and a batch is computed at once, so that what grows is the model's own cost and
not the number of pieces it is cut into. A measurement is a fresh process; one that is there is not made again. The
table, the fits and the picture go to benchmarks/results/growth.{md,json,svg,png}.
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
import fresh
import kept
import ours
import picture
import report
import smoke
import summary
from cases import ENCODER, FOREVER
from clock import Clock

from pefttools import atomic
from pefttools.bases.loading import load_tokenizer, locate, prepare_libraries
from pefttools.recipe import recipes
from pefttools.recipe.recipe import Recipe

RESULTS = Path(__file__).parents[1] / "results"
STEPS, WARM_UP = 8, 2
"""How many are timed, and how many are taken before by another training."""


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
"""What is swept, and over what; the rest stays as in `Point`."""
TINY, TINY_SWEEPS = Point(8, 16, 4, 2), {"rows": (4, 8), "length": (8, 16), "rank": (2, 4), "layers": (1, 2)}


class Beats(Clock):
    """The seconds between one step's end and the next."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def stepped(self) -> None:
        self.ends.append(self.training.last)

    @property
    def step_seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def measure(point: Point, folder: Path, tiny: bool) -> dict[str, Any]:
    """Median seconds a step, and the peak bytes of training beyond the loaded model."""
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
    answer = ours.run(_recipe(size, point.rows * STEPS), _recipe(size, point.rows * WARM_UP), beats)
    return {
        "step_seconds": statistics.median(beats.step_seconds),
        "peak_bytes": summary.bytes_over_model(answer),
    }


def _recipe(size: list[str], rows: int) -> Recipe:
    """One pass over so many rows, told step by step and scored only when it is done."""
    once = ["train.epochs=1", f"train.evaluate_every={FOREVER}", f"train.checkpoint_seconds={FOREVER}"]
    quiet = ["train.log_every=1", "train.trackers=[]", f"data.train_rows={rows}"]
    return recipes.load(ENCODER, [*size, *once, *quiet]).recipe


def main() -> None:
    arguments = parsed()
    if arguments.point:
        prepare_libraries()
        answer = measure(Point(**json.loads(arguments.point)), arguments.out, arguments.smoke)
        arguments.answer.write_text(json.dumps(answer), "utf-8")
        return
    there = kept.Kept(arguments.out)
    if not arguments.collect:
        there.settle({"threads": arguments.threads, "smoke": arguments.smoke})
        complete(there, arguments)
    if not there.measures:
        raise SystemExit(f"--out: nothing has been measured in {there.folder}")
    centre, sweeps = (TINY, TINY_SWEEPS) if there.settings["smoke"] else (Point(), SWEEPS)
    found = [
        fits.Sweep.of(name, {v: at(there, replace(centre, **{name: v})) for v in values})
        for name, values in sweeps.items()
    ]
    found = [sweep for sweep in found if len(sweep.values) > 1]
    file = arguments.json
    text = fits.report(found, asdict(centre), f"{report.machine()}, threads {there.settings['threads']}")
    atomic.write_json(file, {"machine": report.machine(), "settings": there.settings, "measures": there.measures,
                             "fits": [sweep.as_dict() for sweep in found]})  # fmt: skip
    atomic.write_text(file.with_suffix(".md"), text)
    picture.draw(found, file)
    print(text)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), metavar="NAME")
    parser.add_argument("--repeats", type=int, help="rounds; 3 when not given, 1 with --smoke")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS when not given, or every core")
    parser.add_argument("--out", type=Path, help="where measurements are kept; runs/growth when not given")
    parser.add_argument("--json", type=Path, help="the file of the results; table and picture go beside it")
    parser.add_argument("--collect", action="store_true", help="measure nothing, write the results of what is there")
    parser.add_argument("--smoke", action="store_true", help="a tiny configuration: whether it runs, not what it costs")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.repeats = arguments.repeats or (1 if arguments.smoke else 3)
    arguments.threads = arguments.threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    arguments.out = arguments.out or Path("runs/growth-smoke" if arguments.smoke else "runs/growth")
    arguments.json = arguments.json or (arguments.out if arguments.smoke else RESULTS) / "growth.json"
    return arguments


def complete(there: kept.Kept, arguments: argparse.Namespace) -> None:
    """Make every measurement that is not there, round by round, a line on each."""
    centre, sweeps = (TINY, TINY_SWEEPS) if arguments.smoke else (Point(), SWEEPS)
    points = dict.fromkeys(replace(centre, **{name: value}) for name in arguments.sweeps for value in sweeps[name])
    for number in range(arguments.repeats):
        for point in points:
            identity = {**asdict(point), "round": number}
            if there.has(identity):
                continue
            command = [__file__, "--point", json.dumps(asdict(point)), "--out", str(arguments.out)]
            said = fresh.answer(
                [*command, "--smoke"] if arguments.smoke else command, {"OMP_NUM_THREADS": str(arguments.threads)}
            )
            there.add({**identity, **said})
            print(f"{identity} {said['step_seconds']:.3f} s", file=sys.stderr)


def at(there: kept.Kept, point: Point) -> list[kept.Measured]:
    """The measurements of one point."""
    wanted = asdict(point)
    return [measured for measured in there.measures if all(measured[name] == wanted[name] for name in wanted)]


if __name__ == "__main__":
    main()
