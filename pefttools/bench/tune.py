"""Search a recipe's values with Optuna on validation rows, then compare the best with the defaults on test rows.

    OUT/search.yaml  study.db  search/{trials,runs}/  seeds/{trials,runs}/  best.yaml  tune.json  report.html

A trial that has a record is not run again. A search that was killed continues with the same results, and several
processes or machines share one through the storage of claims (see `ledger`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pefttools import atomic, extras
from pefttools.bench import space_checks, trial, tune_report
from pefttools.bench.ledger import Ledger, sqlite
from pefttools.bench.preflight import of_other_rows
from pefttools.bench.proposals import LAG, SAMPLERS
from pefttools.bench.pruning import PRUNERS
from pefttools.bench.ranges import Choices
from pefttools.bench.search import Search, Seeds
from pefttools.bench.space import Point, Space
from pefttools.bench.tune_summary import DEFAULTS, TUNED, failures, summarise
from pefttools.bench.worker import Worker
from pefttools.data.splitting import Splits
from pefttools.errors import UserError, damage_of, unknown
from pefttools.recipe import recipes
from pefttools.reporter import SILENT, Reporter
from pefttools.training.run import write_recipe

LISTED = 3
"""Failed trials that a message names."""


@dataclass(frozen=True)
class Options:
    """How a search is run."""

    trials: int = 20
    """Upper limit of trials."""
    timeout: float | None = None
    """Seconds after which no trial of the search begins."""
    storage: str | None = None
    """URL of the database of claims; by default a file in the folder."""
    workers: int = 1
    """Number of trials at once on this machine."""
    threads: int | None = None
    """Number of threads of each trial; by default the workers share the cores, as when the search began."""
    sampler: str = "tpe"
    pruner: str = "median"
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the comparison with the defaults."""
    keep_runs: bool = False
    command: str = ""
    """The command line, as it was typed."""

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("workers", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name}: must be at least {least}, got {value}")
        for name, value, known in (("sampler", self.sampler, SAMPLERS), ("pruner", self.pruner, PRUNERS)):
            if value not in known:
                raise UserError(f"--{name}: {unknown(name, value, known)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"--seeds: must be different whole numbers from 0 on, got {' '.join(map(str, self.seeds))}")


def tune(
    start: str, overrides: Sequence[str], searches: Sequence[str], out: Path, options: Options,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:  # fmt: skip
    """Search, compare and report; returns the content of tune.json.

    Args:
        start: the recipe, by name or path.
        overrides: `KEY=VALUE` for every trial.
        searches: `KEY=RANGE` words; without any, the learning rate's range that the strategy declares.

    Raises:
        UserError: the extra `tune` is not installed, the search is wrong, the folder contains another one, the storage
            cannot be reached, or every trial failed.
        Interrupted: the user stopped it; the same command continues.
    """
    extras.require("tune", extras.EXTRAS["tune"])
    started, out = time.monotonic(), out.absolute()
    space = space_checks.build(start, overrides, searches)
    if options.sampler == "grid" and space.points() is None:
        raise UserError("--sampler grid: needs finitely many points; list values (A,B,C) instead of ranges, or use tpe")
    digest = _digest(space, options)
    former = _threads(out, digest)
    options = replace(options, threads=options.threads or former or _share_of_cores(options))
    title = f"tune {space.defaults.name} {digest[:12]}"
    deadline = None if options.timeout is None else started + options.timeout
    search = Search(space, out / "search", title, options.sampler, options.pruner, options.trials, deadline)
    seeds = Seeds([], options.seeds, out / "seeds", title)
    _announce(space, options, reporter)
    splits = space_checks.preflight(space, reporter)
    if problems := of_other_rows(space.defaults, splits.digest, {**search.records, **seeds.records}):
        raise UserError(*problems)
    ledger = Ledger(options.storage) if options.storage else None  # nothing is written if it cannot be reached
    _write_identity(out, space, options, digest)
    search.ledger = ledger or Ledger(sqlite(out / "study.db"))
    _run(search, options, reporter)
    return _compared(search, seeds, splits, options, out, reporter)


def _compared(
    search: Search, seeds: Seeds, splits: Splits, options: Options, out: Path, reporter: Reporter
) -> dict[str, Any]:
    """Compare the best trial with the defaults, and write the results; returns the content of tune.json."""
    space, best = search.space, search.best()
    if best is None:
        raise UserError(*_all_failed(search))
    points = {DEFAULTS: Point(space, {}, "seeds", DEFAULTS)}
    if best.digest != space.defaults.digest:
        points[TUNED] = Point(space, best.texts, "seeds", TUNED)
    seeds.points = [*points.values()]
    reporter.note(f"best on validation rows: {Point(space, best.texts).name}; comparing it with the defaults")
    _run(seeds, options, reporter, search.ledger)
    rows = {name: len(found) for name, found in splits.named().items()}
    values = summarise(search, seeds, points, best, rows)
    values = {"command": options.command, **values, "workers": options.workers, "folder": str(out)}
    _write_best(out, space, best.texts, values, recipes.load(space.start, space.overrides).recipe.train.trackers)
    atomic.write_json(out / "tune.json", values)
    tune_report.write(values, search, out)
    return values


def _digest(space: Space, options: Options) -> str:
    """sha256 of everything that decides which points are tried, and what their trials learn."""
    dimensions = [[one.key, str(one.range), one.of, one.choices] for one in space.dimensions]
    values = [space.defaults.digest, dimensions, options.sampler, options.pruner]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _threads(out: Path, digest: str) -> int | None:
    """The threads of a trial as when this search began, because they decide the rounding; None for a new search.

    Raises:
        UserError: the folder contains another search, or something else.
    """
    file = out / "search.yaml"
    if not file.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"--out: {out} is not empty; choose another folder")
        atomic.refuse_unless_writable(out)
        return None
    with damage_of(file, "remove its folder, or choose another folder"):
        present = yaml.safe_load(file.read_text("utf-8"))
    if not isinstance(present, dict) or present.get("format") != trial.FORMAT:
        raise UserError(f"--out: {file} is not a search that this version can read; choose another folder")
    if present.get("digest") != digest:
        raise UserError(
            f"--out: {out} contains another search ({present.get('command') or present.get('recipe')}); choose another"
            " folder"
        )
    threads = present.get("threads")
    return threads if isinstance(threads, int) and threads > 0 else None


def _share_of_cores(options: Options) -> int:
    return max(1, trial.cores() // options.workers)


def _write_identity(out: Path, space: Space, options: Options, digest: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "format": trial.FORMAT, "digest": digest, "command": options.command, "recipe": space.start,
        "overrides": [*space.overrides], "search": space.as_dict(), "sampler": options.sampler,
        "pruner": options.pruner, "seed": space.seed, "threads": options.threads,
    }  # fmt: skip
    atomic.write_text(out / "search.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True))


def _announce(space: Space, options: Options, reporter: Reporter) -> None:
    """Notes on what is searched, and on what will not happen."""
    for name, text in space.as_dict().items():
        reporter.note(f"search {name}: {text}")
    alone = [{one.key: text} for one in space.dimensions if isinstance(one.range, Choices) for text in one.range.texts]
    for note in dict.fromkeys(note for texts in ({}, *alone) for note in space_checks.notes(space, texts)):
        reporter.note(note)
    if space.default_point is None:
        reporter.note("the recipe's own values lie outside these ranges, so no trial of the search has them")
    if options.workers > LAG:
        reporter.warn(f"--workers {options.workers}: a search runs at most {LAG} trials side by side")
    points = space.points() if options.sampler == "grid" else None
    if points and len(points) > options.trials:
        reporter.warn(f"the grid has {len(points)} points, of which --trials {options.trials} tries the first ones")
    train = space.defaults.train
    if options.pruner != "none" and train.evaluate_every >= train.epochs:
        reporter.warn(
            f"no trial can be pruned, because a run is evaluated only at its end; set e.g."
            f" train.evaluate_every={train.epochs / 4:g}, or --pruner none"
        )


def _run(trials: Search | Seeds, options: Options, reporter: Reporter, ledger: Ledger | None = None) -> None:
    """Run the trials that are missing."""
    each = options.threads or _share_of_cores(options)
    ledger = ledger or (trials.ledger if isinstance(trials, Search) else None)
    assert ledger is not None
    worker = Worker(trials, ledger, each, {}, reporter, options.keep_runs)
    total = len(trials.jobs) if isinstance(trials, Seeds) else trials.trials
    if isinstance(trials, Search):
        trials.running = lambda: worker.running
    if any(True for _ in trials.missing()):
        worker.run(options.workers, trials.out.name, total, trials.out.parent)


def _all_failed(search: Search) -> list[str]:
    """Messages for a search of which no trial was trained to its end."""
    failed = failures(search)
    first = f"no trial finished: {len(failed)} of {len(search.proposals)} failed"
    named = [f"trial {one['number']} ({one['point']}): {one['kind']}: {one['reason']}" for one in failed[:LISTED]]
    more = [f"and {len(failed) - LISTED} more; see {search.out / 'trials'}"] if len(failed) > LISTED else []
    return [first, *named, *more]


def _write_best(
    out: Path, space: Space, texts: Any, values: dict[str, Any], trackers: tuple[str, ...] | None
) -> None:  # fmt: skip
    """Write the best point as a recipe that `pefttools train` runs."""
    recipe = space.recipe(texts)
    train = recipe.train.model_copy(update={"trackers": trackers})
    recipe = recipe.model_copy(update={"name": f"{recipe.name}-tuned", "train": train})
    title = (
        f"# The best of {values['counts']['all']} trials on validation rows: {values['best']['point']}.\n"
        f"# Compared with the defaults: {values['verdict']}."
    )
    write_recipe(out / "best.yaml", recipe, title)
