"""Commands that compare strategies: bench, advise."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from pefttools.cli import display
from pefttools.cli.base import Json, app
from pefttools.errors import UserError
from pefttools.progress import RichReporter

GROUP = Group("Compare", sort_key=3)

if TYPE_CHECKING:
    from pefttools.bench.sweep import Sweep


@app.command(group=GROUP)
def bench(
    suite: str,
    /,
    *overrides: str,
    out: Path | None = None,
    workers: int = 1,
    threads: int | None = None,
    storage: str | None = None,
    texts: bool = True,
    keep_runs: Annotated[bool, Parameter(negative="")] = False,
    collect: Annotated[bool, Parameter(negative="")] = False,
    plan: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Run a suite's missing trials, then print its table and write the report: which methods differ significantly.

    Learning rates are chosen on validation rows; every trial's test rows are scored once. A suite that was stopped or
    killed continues where it stopped.

    Args:
        suite: a shipped name or a path.
        overrides: KEY=VALUE of the suite (seeds=[0] tuning.trials=1) or of every trial's recipe (train.epochs=1).
        out: the folder of the results; by default runs/bench/SUITE.
        workers: number of trials to run at once on this machine.
        threads: number of threads of each trial; by default the trials share the cores equally.
        storage: URL of the database (see SQLAlchemy) that workers on several machines share; by default a file in the
            folder.
        texts: write the texts of the test rows into the report.
        keep_runs: keep the run folders with their trained models; records of trials are always kept.
        collect: run nothing; print the table and write the report of finished trials.
        plan: run nothing; print every trial's command.
        json: print the summary.
    """
    from pefttools.bench import suite as suites

    loaded = suites.load(suite, overrides)
    from pefttools.bench.sweep import Sweep

    options = {"--out": out, "--workers": workers if workers > 1 else None, "--threads": threads}
    flags = ("" if texts else " --no-texts") + (" --keep-runs" if keep_runs else "")
    sweep = Sweep(loaded, out or Path("runs", "bench", loaded.name), _typed(suite, overrides, options) + flags)
    if plan:
        display.as_json({"commands": sweep.commands()}) if json else display.parts(sweep.commands())
        return
    if workers < 1 or (threads is not None and threads < 1):
        raise UserError(f"--workers and --threads must be at least 1, got {workers} and {threads}")
    if not collect:
        sweep.run(storage, workers, threads, RichReporter(), keep_runs)
    _report(sweep, texts, json)


def _report(sweep: Sweep, texts: bool, json: bool) -> None:
    """Write the report of the finished trials, and print their table."""
    from pefttools.bench import report, terminal

    if not sweep.records:
        raise UserError(f"--out: {sweep.out} contains no trials of {sweep.suite.name}; run it without --collect first")
    values = report.write(sweep, texts)
    display.as_json(values) if json else display.parts(terminal.suite(values, str(sweep.out)))


def _typed(suite: str, overrides: Sequence[str], options: Mapping[str, object]) -> str:
    """The command line for running it again, without the storage's URL, which may contain a password."""
    words = [word for option, value in options.items() if value is not None for word in (option, str(value))]
    return shlex.join(["pefttools", "bench", suite, *overrides, *words])


@app.command(group=GROUP)
def advise(
    *overrides: str,
    base: str,
    task: str,
    data: str,
    budget: str = "30m",
    out: Path | None = None,
    strategies: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    margin: float = 0.01,
    json: Json = False,
) -> None:
    """Recommend a strategy for a model and rows within a time budget, as a recipe with its trained run.

    Args:
        overrides: KEY=VALUE of the recipe, for every trial, e.g. data.columns.text=question data.test=test.csv.
        base: hf:NAME, a folder, a .gguf file or pypi:NAME==VERSION/PATH.
        task: one of `pefttools list tasks`.
        data: the file of the training rows.
        budget: a time like 90s, 30m or 1h30m.
        out: the folder of the advice; by default runs/advise.
        strategies: try only these strategies.
        margin: recommend a smaller method if it is shown to be at most this much worse than every other one; 0.01 is
            one point.
        json: print advice.json.
    """
    from pefttools.bench import terminal
    from pefttools.bench.advise import advise as advised
    from pefttools.bench.budget import seconds

    folder = out or Path("runs", "advise")
    values = advised(base, task, data, seconds(budget), folder, overrides, strategies or (), RichReporter(), margin)
    display.as_json(values) if json else display.parts(terminal.advice(values))
