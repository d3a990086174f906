"""Commands on runs: train, evaluate, predict, merge, export."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from pefttools.cli import display
from pefttools.cli.base import Json, app
from pefttools.errors import UserError, unknown
from pefttools.progress import RichReporter

GROUP = Group("Train and use", sort_key=2)


@app.command(group=GROUP)
def train(
    recipe: str,
    /,
    *overrides: str,
    out: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    json: Json = False,
) -> None:
    """Train a recipe: score the baseline, train, keep the best model on validation rows, test once.

    Args:
        recipe: a shipped name or a path.
        overrides: KEY=VALUE with dotted keys, e.g. data.train=my.csv train.epochs=3.
        out: the run folder; by default runs/RECIPE.
        resume: continue the run in the folder.
        overwrite: remove a run that is in the folder, with its exports, and train anew.
        from_: go on from a trained model: a run, a peft adapter or a merged model. Short for start.source=FOLDER.
        json: print result.json.
    """
    from pefttools.recipe import recipes

    if from_ is not None:
        overrides = (*overrides, f"start.source={from_}")
    resolved, reporter = recipes.load(recipe, overrides), RichReporter()
    for note in resolved.notes:
        reporter.note(note)
    from pefttools.planning.fit import within_memory
    from pefttools.training.driver import train as run

    folder = out or Path("runs", resolved.recipe.name)
    values = run(
        within_memory(resolved.recipe, reporter), folder, resume=resume, overwrite=overwrite, reporter=reporter
    )
    display.as_json(values) if json else display.result(values, str(folder))


@app.command(group=GROUP)
def evaluate(
    run: Path,
    /,
    *overrides: str,
    perturb: Annotated[list[str] | None, Parameter(negative="")] = None,
    picture: Path | None = None,
    errors: int | None = None,
    by: str | None = None,
    json: Json = False,
) -> None:
    """Score a finished run on its test rows (validation where it has none), or on other data.

    Args:
        run: a run folder.
        overrides: KEY=VALUE on its recipe's data, e.g. data.test=more.csv.
        perturb: also score the rows with noise, and show how much the score drops: typos, case, punctuation, synonyms
            or word_drop. A strength is the share of words that change: typos=0.1, or several: typos=0.05,0.1,0.2.
            Can be repeated.
        picture: with --perturb, write a chart of the scores to this file (.svg or .png).
        errors: also list this many of the worst predictions: the most confident mistakes, or the largest errors.
        by: also score the groups of rows with one value in this column of the data (source, language), and the gap
            between them. Numbers with many values are put into four groups; `length` is the number of characters,
            unless the data has a column of this name.
        json: print one JSON object.
    """
    if perturb or picture:
        if errors is not None or by is not None:
            raise UserError("--perturb: cannot be combined with --errors or --by; run evaluate twice")
        _evaluate_perturbed(run, overrides, perturb or [], picture, json)
        return
    from pefttools.analysis import evaluation, terminal

    values = evaluation.evaluate(run, overrides, RichReporter(), errors, by)
    if json:
        display.as_json(values)
        return
    display.metrics({name: value for name, value in values.items() if name not in ("errors", "by")})
    if by is not None:
        display.parts(terminal.groups(values["by"]))
    if errors is not None:
        display.parts(terminal.mistakes(values["errors"]))


def _evaluate_perturbed(
    run: Path, overrides: Sequence[str], words: Sequence[str], picture: Path | None, json: bool
) -> None:
    """Score a run on its rows with perturbations, print the table and write the picture."""
    from pefttools.bench import robustness
    from pefttools.inference import perturbation

    if not words:
        raise UserError("--picture: shows scores on perturbed rows; add --perturb, such as --perturb typos")
    chosen = perturbation.parse(words)
    if picture:
        robustness.check_picture(picture)
    reporter = RichReporter()
    values = robustness.summary(perturbation.score(run, chosen, overrides, reporter))
    if picture:
        robustness.write_picture(values, picture)
        reporter.note(f"wrote {picture}")
    display.as_json(values) if json else display.perturbed(values)


@app.command(group=GROUP)
def predict(
    *words: str,
    run: Annotated[list[Path] | None, Parameter(negative="")] = None,
    text: Annotated[list[str] | None, Parameter(negative="")] = None,
    keep: Annotated[list[str] | None, Parameter(negative="", consume_multiple=(0, 1))] = None,
    out: Path | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    top_k: int | None = None,
    threshold: float | None = None,
    error_rate: float | None = None,
    engine: Literal["transformers", "llama.cpp"] = "transformers",
) -> None:
    """Predict with a finished run or an exported folder; one JSON object a line, in the rows' order.

    A row without a prediction has an `error` in its place. The exit code is 0 if any row has a prediction, else 2.

    Args:
        words: RUN FILE: a run folder or an exported one, and a data file with the columns of the training file; - reads
            JSON lines from standard input. With --run, only FILE. KEY=VALUE changes how the file is read:
            data.columns.text=question, data.train.encoding=latin-1.
        run: a run folder; if repeated, all runs predict every row in one pass and share one base in memory.
        text: a text to predict; can be repeated.
        keep: copy columns that the task does not read to the output; --keep a,b copies these two.
        out: write this file instead (.csv, .tsv, .jsonl or .parquet); it appears only when it is complete.
        overwrite: let --out replace an existing file.
        precision: auto computes in bf16 if the processor supports it, which is several times faster and changes
            probabilities, usually by less than 0.001 and at times by some hundredths; fp32 computes as evaluate does.
            With auto, likelihoods of language models are computed in fp32.
        top_k: show this many of the likeliest classes (`top`) instead of the probabilities of all.
        threshold: mark a row as `unsure` if its class is less probable than this. With several labels a row, predict
            the labels that are at least as probable.
        error_rate: mark rows as `unsure` so that at most this share of all rows has a wrong class that is not marked;
            `set` has the classes that may be right, `interval` the numbers. `pefttools calibrate RUN` comes first.
        engine: llama.cpp computes the answers of a GGUF artifact with llama.cpp itself.
    """
    folders, file, overrides = _runs_and_file(words, run)
    from pefttools.inference import prediction_files
    from pefttools.inference.unlabeled import STDIN

    if keep and not file and Path(keep[-1]).exists():
        raise UserError(
            f"--keep: {keep[-1]} was read as a column name, but is a file; put --keep last, or before another option"
        )
    if out:
        prediction_files.check(out, overwrite, None if file in STDIN else file)
    from pefttools.inference.confidence import Confidence
    from pefttools.inference.prediction import predict_rows, predict_together
    from pefttools.inference.predictor import recipe_of
    from pefttools.inference.unlabeled import rows_to_predict

    if engine != "transformers" and len(folders) > 1:
        raise UserError("--engine llama.cpp: predicts with one artifact at a time")
    reporter = RichReporter()
    rows = rows_to_predict(recipe_of(folders[0], overrides), file, text or [], sys.stdin.buffer, reporter)
    wanted = None if (top_k, threshold, error_rate) == (None, None, None) else Confidence(top_k, threshold, error_rate)
    if len(folders) > 1:
        outputs = predict_together(folders, rows, reporter, precision, keep, overrides, wanted)
    else:
        outputs = predict_rows(folders[0], rows, reporter, precision, keep, overrides, wanted, engine)
    if out:
        reporter.note(f"wrote {prediction_files.write(out, outputs, reporter):,} rows to {out}")
    else:
        display.as_json_lines(outputs)


def _runs_and_file(words: Sequence[str], runs: list[Path] | None) -> tuple[list[Path], str | None, list[str]]:
    """Run folders, data file and overrides among the words after `predict`. Raises UserError."""
    from pefttools.inference.unlabeled import OVERRIDES

    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    paths = [word for word in words if word not in overrides]
    folders, files = runs or [Path(word) for word in paths[:1]], paths if runs else paths[1:]
    if not folders or len(files) > 1:
        raise UserError("predict: write RUN FILE, or --run RUN (repeated for several runs) and FILE")
    if unknown := [word.partition("=")[0] for word in overrides if not OVERRIDES.match(word)]:
        raise UserError(
            f"{', '.join(unknown)}: predict accepts overrides of data.columns, and of data.train for how FILE is read"
        )
    return folders, files[0] if files else None, overrides


@app.command(group=GROUP)
def merge(
    *runs: Path,
    out: Path,
    weights: Annotated[list[float] | None, Parameter(negative="", consume_multiple=True)] = None,
    by: Literal["changes", "parameters"] | None = None,
    json: Json = False,
) -> None:
    """Merge runs with the same base, task and strategy into one run by a weighted sum, and score it.

    Args:
        runs: two or more run folders.
        out: the new run's folder.
        weights: one weight for each run; by default equal weights that add up to 1.
        by: what to sum: the changes BA (exact, for plain LoRA, where it is the default; ranks add up) or the trained
            parameters.
        json: print result.json.
    """
    from pefttools.training.merging import merge as merged

    shares = weights or [1 / max(1, len(runs))] * len(runs)
    values = merged(runs, shares, out, by, RichReporter())
    display.as_json(values) if json else display.result(values, str(out))


@app.command(group=GROUP)
def export(
    run: Path,
    /,
    *settings: str,
    to: str,
    out: Path | None = None,
    overwrite: bool = False,
    json: Json = False,
    **options: str,
) -> None:
    """Export a finished run, and check in a new process that the artifact predicts like the trained model.

    Args:
        run: a run folder.
        settings: KEY=VALUE of the exporter, e.g. dtype=bfloat16.
        to: an exporter's name (see `pefttools list exporters`).
        out: the new folder; by default RUN/export/TO.
        overwrite: replace an artifact that is in the folder, once the new one is checked.
        json: print the manifest.
        options: a setting of the exporter, written as an option.
    """
    from pefttools.exporters import exporters

    cls, reporter, overrides = exporters.get(to), RichReporter(), list(settings)
    for name, value in options.items():  # --as-lora 8, the former syntax
        key = name.replace("-", "_")
        if key not in cls.model_fields:
            raise UserError(unknown("option", f"--{name}", ["--to", "--out", "--overwrite", "--json"]))
        overrides.append(f"{key}={value}")
        reporter.note(f"--{name} {value} is the old syntax of {overrides[-1]}; write {overrides[-1]} instead")
    from pefttools.exporters.driver import export as write

    values = write(run, to, out, reporter, overrides, overwrite)
    display.as_json(values) if json else display.manifest(values, cls.sentences(values))
