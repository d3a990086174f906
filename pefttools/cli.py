"""The command line: the only file that knows it. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from pefttools import display
from pefttools.errors import Interrupted, UserError
from pefttools.progress import RichReporter

app = App(
    name="pefttools",
    help="Fine-tune a pretrained transformer by changing as little of it as will do, and prove the result.",
)

Json = Annotated[bool, Parameter(name="--json", negative="")]
Kind = Literal["recipes", "strategies", "tasks", "regularizers", "exporters", "suites"]


@app.command(name="list")
def list_(kind: Kind | None = None, /, *, task: str = "text_classification", json: Json = False) -> None:
    """List what can be picked by name; of strategies alone also what each fits, of tasks with --json their files.

    Args:
        kind: only this kind.
        task: for which task to show what strategies fit.
        json: print one JSON object.
    """
    from pefttools import recipe
    from pefttools.bench import suite
    from pefttools.exporters import exporters
    from pefttools.regularizers import regularizers
    from pefttools.strategies import strategies
    from pefttools.tasks import tasks

    known = {
        "recipes": recipe.descriptions,
        "strategies": strategies.summaries,
        "tasks": tasks.summaries,
        "regularizers": regularizers.summaries,
        "exporters": exporters.summaries,
        "suites": suite.descriptions,
    }
    listing = {name: summaries() for name, summaries in known.items() if kind in (None, name)}
    if kind == "strategies":
        from pefttools import support

        tasks.get(task)
        matrix = support.kept()
        if not json:
            matrix["tasks"] = {task: matrix["tasks"].get(task, {})}
        display.as_json({**listing, "support": matrix}) if json else display.support(listing[kind], matrix)
    elif json:
        about = {"task_rows": {name: tasks.get(name).about() for name in tasks.names()}} if kind == "tasks" else {}
        display.as_json({**listing, **about})
    else:
        display.names(listing)


@app.command
def show(
    recipe: str,
    /,
    *overrides: str,
    explain: Annotated[bool, Parameter(negative="")] = False,
    sample: int = 0,
    json: Json = False,
) -> None:
    """Print the resolved recipe as YAML, each value with where it came from.

    Args:
        recipe: a shipped name or a path.
        overrides: KEY=VALUE with dotted keys, e.g. strategy.rank=16.
        explain: add what each setting means.
        sample: print, instead, so many training rows as the model will see them, with what is to be learnt.
        json: print one JSON object.
    """
    from pefttools import recipe as recipes
    from pefttools.explain import lines

    resolved = recipes.load(recipe, overrides)
    if sample:
        from pefttools.use import sample as sampled

        rows = list(sampled(resolved.recipe, sample, RichReporter()))
        display.as_json({"sample": rows}) if json else display.sample(rows)
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


@app.command
def plan(recipe: str, /, *overrides: str, json: Json = False) -> None:
    """Tell a recipe's parameters, exactly, and its peak memory by part, before any weight is loaded.

    Args:
        recipe: a shipped name or a path.
        overrides: KEY=VALUE with dotted keys, e.g. strategy=bitfit train.batch_size=64.
        json: print one JSON object.
    """
    from pefttools import recipe as recipes

    resolved = recipes.load(recipe, overrides).recipe
    from pefttools.plan import plan as made

    values = made(resolved, RichReporter()).as_dict()
    display.as_json(values) if json else display.plan(values)


@app.command
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

    resolved = recipes.load(recipe, overrides).recipe
    from pefttools.train import train as run

    folder = out or Path("runs", resolved.name)
    values = run(resolved, folder, resume=resume, reporter=RichReporter())
    display.as_json(values) if json else display.result(values, str(folder))


@app.command
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


@app.command
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


@app.command
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


@app.command
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


@app.command
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
    """Run a suite's missing trials, then print its table and write the report: which methods can be told apart.

    Learning rates are chosen on validation rows; every trial's test rows are scored once. A suite that was stopped or
    killed goes on where it was.

    Args:
        suite: a shipped name or a path.
        overrides: KEY=VALUE of the suite (seeds=[0] tuning.trials=1) or of every trial's recipe (train.epochs=1).
        out: the folder of the results; runs/bench/SUITE when not given.
        workers: trials at once on this machine.
        threads: of each trial; the cores shared out when not given.
        storage: the database (any of SQLAlchemy's URLs) that workers on several machines share; a file in the folder
            when not given.
        texts: whether the report holds the test rows' texts.
        keep_runs: keep the run folders, with their trained models; records are kept anyway.
        collect: run nothing; table and report of what is there.
        plan: run nothing; print every trial's command.
        json: print the summary.
    """
    from pefttools.bench import suite as suites

    loaded = suites.load(suite, overrides)
    from pefttools.bench import report, terminal
    from pefttools.bench.sweep import Sweep

    sweep = Sweep(loaded, out or Path("runs", "bench", loaded.name))
    if plan:
        commands = sweep.commands()
        display.as_json({"commands": commands}) if json else display.parts(commands)
        return
    if workers < 1 or (threads is not None and threads < 1):
        raise UserError("--workers and --threads take at least 1")
    if not collect:
        sweep.run(storage, workers, threads, RichReporter(), keep_runs)
    elif not sweep.records:
        raise UserError(f"--out: {sweep.out} holds no trials of {loaded.name}")
    values = report.write(sweep, texts)
    display.as_json(values) if json else display.parts(terminal.suite(values, str(sweep.out)))


@app.command
def advise(
    *overrides: str,
    base: str,
    task: str,
    data: str,
    budget: str = "30m",
    out: Path | None = None,
    strategies: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    json: Json = False,
) -> None:
    """Tell which strategy to use for a model and rows, within a budget of time, as a recipe with its trained run.

    Args:
        overrides: KEY=VALUE of the recipe, for every trial, e.g. data.columns.text=question data.test=test.csv.
        base: hf:NAME, a folder, a .gguf file or pypi:NAME==VERSION/PATH.
        task: one of `pefttools list tasks`.
        data: the file of the training rows.
        budget: a time like 90s, 30m or 1h30m.
        out: the folder of the advice; runs/advise when not given.
        strategies: only these.
        json: print advice.json.
    """
    from pefttools.bench import terminal
    from pefttools.bench.advise import advise as advised
    from pefttools.bench.budget import seconds

    folder = out or Path("runs", "advise")
    values = advised(base, task, data, seconds(budget), folder, overrides, strategies or (), RichReporter())
    display.as_json(values) if json else display.parts(terminal.advice(values))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the answer is its exit code."""
    # cyclopts takes a lone - for an option
    words = ["/dev/stdin" if w == "-" and i and arguments[i - 1] != "--text" else w for i, w in enumerate(arguments)]
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        display.problems([" ".join(str(error).split())])
        return 2
    except UserError as error:
        display.problems(error.problems)
        return 2
    except Interrupted as error:
        display.interrupted(str(error))
        return 130
    except KeyboardInterrupt:
        display.interrupted("interrupted")
        return 130
    except BrokenPipeError:
        return 0
    return 0


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends us politely leaves nothing half-written
    sys.exit(run(sys.argv[1:]))
