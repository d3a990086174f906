"""A finished run put to use: scored on other rows, or asked about new ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pefttools import evaluate
from pefttools.data.encoding import encode, encode_once
from pefttools.data.reading import Raw, read
from pefttools.data.settings import FileSettings
from pefttools.data.splitting import load_splits
from pefttools.errors import UserError
from pefttools.models import hush
from pefttools.reporter import SILENT, Reporter
from pefttools.run import Run, load

CHUNK = 4096
"""Rows that are read, sorted by length and answered together."""


def evaluate_run(path: Path, overrides: Sequence[str] = (), reporter: Reporter = SILENT) -> dict[str, Any]:
    """Metrics of a run's model on its test rows, or its validation rows where there are none.

    Raises:
        UserError: an override of anything but data, or rows with labels the model does not know.
    """
    if strange := [o.partition("=")[0] for o in overrides if not o.startswith("data.")]:
        raise UserError(f"{', '.join(strange)}: evaluating takes overrides of data only; the model is the run's")
    run = Run.open(path)
    recipe = run.recipe(overrides)
    hush()
    splits = load_splits(recipe.data, recipe.task, reporter)
    recipe.task.fit(splits)  # refuses labels the model does not know
    name = "test" if splits.test else "validation"
    rows = splits.named()[name]
    trained = load(path, reporter)
    encoded = encode(rows, trained.task, trained.base, name, reporter)
    scored = evaluate.score(trained.model, trained.task, encoded, rows, trained.base.tokenizer, name, reporter=reporter)
    return {"rows": len(rows), "scored_on": name, **scored.metrics}


def rows_to_predict(file: str | None, texts: Sequence[str], stdin: Iterable[str]) -> Iterator[Raw]:
    """Rows from `--text`, a data file, or JSON lines on standard input (`-`).

    Raises:
        UserError: nothing was given, or it cannot be read.
    """
    if not texts and file is None:
        raise UserError("predict: takes a file, - for standard input, or --text")
    yield from ({"text": text} for text in texts)
    if file in ("-", "/dev/stdin"):
        for number, line in enumerate(stdin, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"standard input line {number}: not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise UserError(f"standard input line {number}: takes one JSON object a line")
                yield row
    elif file is not None:
        yield from read(FileSettings(source=file), "predict", SILENT)


def predict_rows(path: Path, raws: Iterable[Raw], reporter: Reporter = SILENT) -> Iterator[dict[str, Any]]:
    """One answer a row, in order: the row's fields and the prediction's.

    Columns are called as in the recipe (`data.columns`) or like the task's fields. Labels are not needed.
    """
    hush()
    trained = load(path, reporter)
    task = trained.task
    model = trained.recipe.strategy.merge(trained.model).eval() if trained.recipe.strategy.mergeable else trained.model
    chunk: list[dict[str, Any]] = []

    def answered() -> Iterator[dict[str, Any]]:
        if chunk:
            encoded = encode_once(chunk, task, trained.base, "given", reporter)
            said, _ = evaluate.answers(model, task, encoded, trained.base.tokenizer, "predicting", reporter=reporter)
            for row, prediction in zip(chunk, said, strict=True):
                yield {**row, **prediction}
            chunk.clear()

    for number, raw in enumerate(raws, 1):
        values = {f: raw.get(trained.recipe.data.columns.get(f, f), raw.get(f)) for f in task.fields if f != "label"}
        try:
            chunk.append(task.read({f: v for f, v in values.items() if v is not None or task.fields[f]}))
        except ValueError as error:
            raise UserError(f"predict: row {number} {error}") from error
        if len(chunk) == CHUNK:
            yield from answered()
    yield from answered()
