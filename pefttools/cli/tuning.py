"""The command `tune`: a search over the values of a recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pefttools.cli import display
from pefttools.cli.base import Json, app
from pefttools.cli.compare import GROUP
from pefttools.progress import RichReporter

Several = Parameter(negative="", consume_multiple=True)


@app.command(group=GROUP)
def tune(
    recipe: str,
    /,
    *overrides: str,
    search: Annotated[list[str] | None, Several] = None,
    trials: int = 20,
    timeout: str | None = None,
    seeds: Annotated[list[int] | None, Several] = None,
    sampler: Literal["tpe", "random", "gp", "grid"] = "tpe",
    pruner: Literal["median", "hyperband", "none"] = "median",
    out: Path | None = None,
    workers: int = 1,
    threads: int | None = None,
    storage: str | None = None,
    keep_runs: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Search a recipe's values with Optuna, then compare the best with the recipe's defaults on test rows.

    The search uses validation rows only. The best values and the defaults are then trained with several seeds, and a
    paired test says by how much the best is better, or that no gain can be detected. A search that was stopped or
    killed continues with the same results.

    Args:
        recipe: a shipped name or a path.
        overrides: KEY=VALUE for every trial, e.g. train.epochs=2.
        search: KEY=RANGE: numbers (train.learning_rate=1e-4..1e-2; logarithmic if they span a decade, or by :log and
            :linear), values (strategy.rank=4,8,16 or strategy=lora,bitfit), or train.learning_rate=auto, the range that
            each strategy declares, which is the default.
        trials: upper limit of trials.
        timeout: a time like 30m or 1h30m after which no trial of the search begins.
        seeds: seeds of the comparison with the defaults; by default 0 1 2.
        sampler: how values are drawn.
        pruner: how hopeless trials are stopped early, by their validation scores.
        out: the folder of the results; by default runs/tune/RECIPE.
        workers: number of trials to run at once on this machine.
        threads: number of threads of each trial; by default the trials share the cores equally.
        storage: URL of the database (see SQLAlchemy) that several processes or machines share; by default a file in
            the folder.
        keep_runs: keep the run folders with their trained models.
        json: print tune.json.
    """
    from pefttools.bench import budget, tune_terminal
    from pefttools.bench.tune import Options
    from pefttools.bench.tune import tune as tuned

    limits = {"--trials": trials if trials != 20 else None, "--timeout": timeout, "--out": out, "--threads": threads}
    limits |= {"--workers": workers if workers > 1 else None, "--sampler": sampler if sampler != "tpe" else None}
    limits |= {"--pruner": pruner if pruner != "median" else None}
    words = [word for option, value in limits.items() if value is not None for word in (option, str(value))]
    words += ["--search", *search] if search else []
    words += ["--seeds", *map(str, seeds)] if seeds else []
    options = Options(
        trials, budget.seconds(timeout, "--timeout") if timeout else None, storage, workers, threads, sampler, pruner,
        tuple(seeds or (0, 1, 2)), keep_runs, shlex.join(["pefttools", "tune", recipe, *overrides, *words]),
    )  # fmt: skip
    folder = out or Path("runs", "tune", Path(recipe).stem)
    values = tuned(recipe, overrides, search or (), folder, options, RichReporter())
    display.as_json(values) if json else display.parts(tune_terminal.parts(values))
