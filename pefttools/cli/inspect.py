"""Commands to run before training: list, show, plan, doctor."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Group, Parameter

from pefttools.cli import display, plan_table
from pefttools.cli.base import Json, app
from pefttools.errors import UserError
from pefttools.progress import RichReporter

Kind = Literal[
    "recipes", "strategies", "tasks", "regularizers", "objectives", "augmentations", "optimizers", "exporters", "suites"
]

GROUP = Group("Before training", sort_key=1)


@app.command(name="list", group=GROUP)
def list_(kind: Kind | None = None, /, *, task: str = "text_classification", json: Json = False) -> None:
    """List the names that recipes can use. `strategies` also shows the support matrix, `tasks --json` the data format.

    Args:
        kind: list only this kind.
        task: show which strategies work for this task.
        json: print one JSON object.
    """
    from pefttools.augmentations import augmentations
    from pefttools.exporters import exporters
    from pefttools.objectives import objectives
    from pefttools.optimizers import optimizers
    from pefttools.recipe import shipped
    from pefttools.regularizers import regularizers
    from pefttools.strategies import strategies
    from pefttools.tasks import tasks

    known = {
        "recipes": lambda: shipped.descriptions("recipes"),
        "strategies": strategies.summaries,
        "tasks": tasks.summaries,
        "regularizers": regularizers.summaries,
        "optimizers": optimizers.summaries,
        "objectives": objectives.summaries,
        "augmentations": augmentations.summaries,
        "exporters": exporters.summaries,
        "suites": lambda: shipped.descriptions("suites"),
    }
    listing = {name: summaries() for name, summaries in known.items() if kind in (None, name)}
    if kind == "strategies":
        from pefttools.compatibility import matrix

        tasks.get(task)
        support = matrix.saved()
        if not json:
            support["tasks"] = {task: support["tasks"].get(task, {})}
        display.as_json({**listing, "support": support}) if json else display.support(listing[kind], support)
    elif json:
        classes, problems = tasks.usable() if kind == "tasks" else ({}, [])
        display.warnings(problems)
        about = {"task_rows": {name: cls.about() for name, cls in classes.items()}} if kind == "tasks" else {}
        display.as_json({**listing, **about})
    else:
        display.names(listing)


@app.command(group=GROUP)
def show(
    recipe: str,
    /,
    *overrides: str,
    explain: Annotated[bool, Parameter(negative="")] = False,
    sample: int = 0,
    json: Json = False,
) -> None:
    """Print the resolved recipe as YAML, with the origin of each value.

    Args:
        recipe: a shipped name or a path.
        overrides: KEY=VALUE with dotted keys, e.g. strategy.rank=16.
        explain: add the meaning of each setting.
        sample: print this many training rows instead, as the model will see them, with the targets marked; the copies
            that augmentations add follow their row.
        json: print one JSON object.
    """
    from pefttools.recipe import recipes
    from pefttools.recipe.origins import lines

    resolved, reporter = recipes.load(recipe, overrides), RichReporter()
    for note in resolved.notes:
        reporter.note(note)
    if sample:
        from pefttools.inference.scoring import sample as sampled
        from pefttools.inference.scoring import sample_values

        rows = list(sampled(resolved.recipe, sample, reporter))
        display.as_json(sample_values(rows)) if json else display.sample(rows)
    elif json:
        display.as_json(
            {
                "recipe": resolved.recipe.as_dict(),
                "digest": resolved.recipe.digest,
                "origins": dict(resolved.origins),
            }
        )
    else:
        display.explained(lines(resolved, explain))


@app.command(group=GROUP)
def plan(
    recipe: str, /, *overrides: str, processes: int | None = None, device: str | None = None, json: Json = False
) -> None:
    """Print a recipe's exact number of parameters and its estimated peak memory by part, without loading weights.

    Args:
        recipe: a shipped name or a path.
        overrides: KEY=VALUE with dotted keys, e.g. strategy=bitfit train.batch_size=64.
        processes: number of processes that train together; the memory is that of one of them.
        device: also say whether the run fits a device, in which micro-batches, and what to change where it does not:
            cuda:16GB, cuda:t4, cuda:24GB,a10, cpu:8GB, or here for this machine.
        json: print one JSON object.
    """
    from pefttools.recipe import recipes

    if processes is not None and processes < 1:
        raise UserError(f"--processes: {processes} is not a number of processes; write 1 or more")
    resolved = recipes.load(recipe, overrides).recipe
    from pefttools.planning import target
    from pefttools.planning.fit import fit
    from pefttools.planning.planner import plan as made

    if device is None:
        values = made(resolved, RichReporter(), processes).as_dict()
    else:
        described = target.here() if device == "here" else target.parse(device)
        remade = lambda more: recipes.load(recipe, (*overrides, *more)).recipe  # noqa: E731
        values = fit(remade, (recipe, *overrides), described, RichReporter(), processes).as_dict()
    display.as_json(values) if json else display.parts(plan_table.lines(values))


@app.command(group=GROUP)
def doctor(target: str, /, *overrides: str, json: Json = False) -> None:
    """Find silent failures of a recipe or a finished run, each with its figures and a command that corrects it.

    For a recipe this loads the rows and the model as `train` does, takes five steps and a range test of the learning
    rate, and writes nothing. For a run it compares what was saved with the base. The exit code is 0 also if something
    is found, and 2 if the recipe or the run cannot be read.

    Args:
        target: a shipped recipe, a path to one, or a run folder.
        overrides: KEY=VALUE with dotted keys, for a recipe, e.g. data.train=my.csv.
        json: print one JSON object.
    """
    from pefttools.doctor.examination import check_up

    found = check_up(target, overrides, RichReporter())
    display.as_json(found.as_dict()) if json else display.examination(found.as_dict())
