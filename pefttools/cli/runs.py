"""Commands on runs: train, evaluate, predict, merge, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from pefttools import display
from pefttools.cli.base import Json, app
from pefttools.errors import UserError
from pefttools.progress import RichReporter

GROUP = Group("Train and use", sort_key=2)


@app.command(group=GROUP)
def train(
    recipe: str,
    /,
    *overrides: str,
    out: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Train a recipe: score the untouched model, train, keep the best on validation, test once.

    Args:
        recipe: a shipped name or a path.
        overrides: KEY=VALUE with dotted keys, e.g. data.train=my.csv train.epochs=3.
        out: the run folder; runs/RECIPE when not given.
        resume: go on with the run that is there.
        json: print result.json.
    """
    from pefttools import recipe as recipes

    resolved, reporter = recipes.load(recipe, overrides), RichReporter()
    for note in resolved.notes:
        reporter.note(note)
    from pefttools.train import train as run

    folder = out or Path("runs", resolved.recipe.name)
    values = run(resolved.recipe, folder, resume=resume, reporter=reporter)
    display.as_json(values) if json else display.result(values, str(folder))


@app.command(group=GROUP)
def evaluate(run: Path, /, *overrides: str, json: Json = False) -> None:
    """Score a finished run on its test rows (validation where it has none), or on other data.

    Args:
        run: a run folder.
        overrides: KEY=VALUE on its recipe's data, e.g. data.test=more.csv.
        json: print one JSON object.
    """
    from pefttools.use import evaluate_run

    values = evaluate_run(run, overrides, RichReporter())
    display.as_json(values) if json else display.metrics(values)


@app.command(group=GROUP)
def predict(
    first: str | None = None,
    second: str | None = None,
    /,
    *,
    run: Annotated[list[Path] | None, Parameter(negative="")] = None,
    text: Annotated[list[str] | None, Parameter(negative="")] = None,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
) -> None:
    """Predict with a finished run or an exported folder; one JSON object a line, in the rows' order.

    Args:
        first: a run folder or an exported one; with --run, what SECOND is without.
        second: JSON lines or another data file with the task's fields; - reads JSON lines from standard input.
        run: a run; given several times, all answer every row in one pass, their one base in memory once.
        text: a text to predict; may be given several times.
        precision: auto computes in bf16 where the processor has it: several times faster, and probabilities differ in
            the third digit; fp32 answers as evaluate does. A language model's likelihoods stay in fp32 under auto.
    """
    given = [word for word in (first, second) if word is not None]
    folders, files = run or [Path(word) for word in given[:1]], given if run else given[1:]
    if not folders or len(files) > 1:
        raise UserError("predict: takes RUN FILE, or --run RUN (as often as there are runs) and FILE")
    from pefttools.answering import recipe_of
    from pefttools.use import predict_rows, predict_together, rows_to_predict

    rows = rows_to_predict(recipe_of(folders[0]), files[0] if files else None, text or [], sys.stdin)
    if len(folders) > 1:
        answers = predict_together(folders, rows, RichReporter(), precision)
    else:
        answers = predict_rows(folders[0], rows, RichReporter(), precision)
    display.as_json_lines(answers)


@app.command(group=GROUP)
def merge(
    *runs: Path,
    out: Path,
    weights: Annotated[list[float] | None, Parameter(negative="", consume_multiple=True)] = None,
    by: Literal["changes", "parameters"] | None = None,
    json: Json = False,
) -> None:
    """Merge runs of one base, task and strategy into one by weighted sum, and score it like a run.

    Args:
        runs: two run folders or more.
        out: the new run's folder.
        weights: one a run; equal ones that add up to 1 when not given.
        by: sum the changes BA (of plain LoRA, exact, at the sum of the ranks; the default there) or the trained
            parameters.
        json: print result.json.
    """
    from pefttools.merge import merge as merged

    shares = weights or [1 / max(1, len(runs))] * len(runs)
    values = merged(runs, shares, out, by, RichReporter())
    display.as_json(values) if json else display.result(values, str(out))


@app.command(group=GROUP)
def export(
    run: Path,
    /,
    *settings: str,
    to: str,
    as_lora: str | None = None,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Write a finished run as an artifact, proven in a fresh process to answer like the trained model.

    Args:
        run: a run folder.
        settings: KEY=VALUE of the exporter, e.g. dtype=bfloat16 (`pefttools list exporters` names exporters).
        to: adapter, merged, onnx or gguf.
        as_lora: with --to adapter, write the change of any mergeable method as a LoRA of this rank (8) or holding this
            share of the change's energy (0.95).
        out: the new folder; RUN/export/TO when not given.
        json: print the manifest.
    """
    from pefttools.exporters import exporters

    exporters.get(to)
    from pefttools.export import export as write

    given = [*settings, *([f"as_lora={as_lora}"] if as_lora else [])]
    values = write(run, to, out, RichReporter(), given)
    display.as_json(values) if json else display.manifest(values)
