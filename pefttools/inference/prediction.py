"""Predictions of a finished run or an artifact, or of several runs on one base: one a row, in order.

For a row without a prediction the output is its number, its `id` and an `error`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pefttools.bases.loading import prepare_libraries
from pefttools.data.reading import Raw
from pefttools.errors import UserError
from pefttools.inference.confidence import Change, Confidence, calibration_of
from pefttools.inference.optimize import Precision
from pefttools.inference.predictor import Predictor, load_predictor, load_predictors, recipe_of
from pefttools.inference.unlabeled import CarriedColumns, FieldColumns
from pefttools.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from pefttools.data.splitting import Row
    from pefttools.recipe.recipe import Recipe
    from pefttools.tasks.base import Prediction

Engine = Literal["transformers", "llama.cpp"]
Raws = Iterable[Raw | UserError]
CHUNK = 4096
"""Number of rows that are read, sorted by length and predicted together."""
QUOTED = 3
"""Number of errors that the summary quotes."""


def predict_rows(
    path: Path,
    raws: Raws,
    reporter: Reporter = SILENT,
    precision: Precision = "auto",
    keep: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    confidence: Confidence | None = None,
    engine: Engine = "transformers",
    load: Callable[[], Predictor] | None = None,
) -> Iterator[dict[str, Any]]:
    """One output a row, in order: the row's fields and the prediction's, or the row's number and an `error`.

    Columns have the names of the recipe (`data.columns`) or of the task's fields. Labels are not needed. At most
    `CHUNK` rows are in memory at a time.

    Args:
        precision: precision of computation; `auto` is bf16 where that is native. `evaluate` computes in fp32.
        keep: further columns to copy to the output; empty for all that the task does not read.
        overrides: KEY=VALUE for the recipe's `data.columns` and for how its training file is read.
        confidence: what else the predictions say about how sure they are.
        engine: the library that computes; llama.cpp only for GGUF artifacts.
        load: returns the model, if it is in memory already.

    Raises:
        UserError: the rows have no column for a field that the run needs, no row could be predicted, or the run cannot
            say what `confidence` wants.
    """
    recipes = [recipe_of(path, overrides)]
    pipeline = _Pipeline(
        recipes,
        lambda: [load() if load else _loaded(path, precision, reporter, engine)],
        keep,
        reporter,
        _changes([path], recipes, confidence),
    )
    for one in pipeline.outputs(raws):
        (row,), (prediction,) = one.read, one.predictions
        if isinstance(prediction, UserError):
            yield {**one.place, **one.carried, "error": str(prediction)}
        else:
            assert not isinstance(row, UserError)
            yield {**row, **one.carried, **prediction}


def _loaded(path: Path, precision: Precision, reporter: Reporter, engine: Engine) -> Predictor:
    if engine == "transformers":
        return load_predictor(path, precision, reporter)
    from pefttools.inference.llama_cpp_predictor import load_with_llama_cpp

    return load_with_llama_cpp(path)


def predict_together(
    paths: Sequence[Path],
    raws: Raws,
    reporter: Reporter = SILENT,
    precision: Precision = "auto",
    keep: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    confidence: Confidence | None = None,
) -> Iterator[dict[str, Any]]:
    """Several runs' predictions for every row, under `answers` by the runs' names, in one pass over the rows.

    The runs have the same base, which is in memory once; their adapters are not merged. The arguments are those of
    `predict_rows`.

    Raises:
        UserError: the runs have different bases; or as `predict_rows` does.
    """
    names = [path.absolute().name for path in paths]
    recipes = [recipe_of(path, overrides) for path in paths]
    changes = _changes(paths, recipes, confidence)
    pipeline = _Pipeline(recipes, lambda: load_predictors(paths, precision, reporter), keep, reporter, changes)
    for one in pipeline.outputs(raws):
        read = next((row for row in one.read if not isinstance(row, UserError)), None)
        if read is None:
            yield {**one.place, **one.carried, "error": str(one.predictions[0])}
            continue
        answers = {
            name: {"error": str(prediction)} if isinstance(prediction, UserError) else prediction
            for name, prediction in zip(names, one.predictions, strict=True)
        }
        yield {**read, **one.carried, "answers": answers}


def _changes(paths: Sequence[Path], recipes: Sequence[Recipe], confidence: Confidence | None) -> list[Change]:
    """What `confidence` changes in each model's predictions. Raises UserError when it cannot."""
    if confidence is None:
        return []
    return [
        confidence.change(path, recipe.task, None if confidence.error_rate is None else calibration_of(path))
        for path, recipe in zip(paths, recipes, strict=True)
    ]


@dataclass(frozen=True)
class _One:
    """One row with its predictions, one for each model."""

    place: dict[str, Any]
    """The row's number, and its `id` where it has one."""
    carried: dict[str, Any]
    read: list[Row | UserError]
    predictions: list[Prediction | UserError]


@dataclass
class _Pipeline:
    """Reads rows, runs the models on them, and counts the rows without prediction."""

    recipes: Sequence[Any]
    load: Callable[[], list[Predictor]]
    """Loads the models; called at the first row that can be read."""
    keep: Sequence[str] | None
    reporter: Reporter
    changes: Sequence[Change] = ()
    """Of each model's predictions; empty for none."""
    number: int = 0
    failed: int = 0
    unanswered: int = 0
    """Number of rows for which no model has a prediction."""
    errors: list[str] = field(default_factory=list)
    """The first errors."""
    cut: int = 0

    def outputs(self, raws: Raws) -> Iterator[_One]:
        prepare_libraries()
        columns = [FieldColumns(recipe) for recipe in self.recipes]
        carried = CarriedColumns(self.keep, columns[0])
        models: list[Predictor] = []
        rows = iter(raws)
        while chunk := list(islice(rows, CHUNK)):
            if not self.number:
                for one in columns:
                    one.fit(chunk, self.reporter)
                carried.fit(chunk)
            read = [[one.read(n, raw) for n, raw in enumerate(chunk, self.number + 1)] for one in columns]
            if not models and any(not isinstance(row, UserError) for part in read for row in part):
                models = self.load()
            found = [self._predict(model, part) for model, part in zip(models, read, strict=True)] if models else read
            if self.changes:
                found = [
                    [one if isinstance(one, UserError) else change(one) for one in part]
                    for change, part in zip(self.changes, found, strict=True)
                ]
            carried.taken |= {name for part in found for one in part if not isinstance(one, UserError) for name in one}
            for i, raw in enumerate(chunk):
                self.number += 1
                parts = [part[i] for part in read]
                place = {"row": self.number, **columns[0].identity(raw)}
                yield self._counted(_One(place, carried.of(raw, parts[0]), parts, [part[i] for part in found]))
        self._report()

    def _predict(self, model: Predictor, rows: Sequence[Row | UserError]) -> list[Prediction | UserError]:
        """A prediction or an error for each row."""
        places = [i for i, row in enumerate(rows) if not isinstance(row, UserError)]
        found: list[Any] = list(rows)
        answers, cut = model.attempt([found[i] for i in places], self.reporter)
        for i, answer in zip(places, answers, strict=True):
            number = self.number + i + 1
            found[i] = UserError(f"row {number} {answer}") if isinstance(answer, UserError) else answer
        self.cut += cut
        return found

    def _counted(self, one: _One) -> _One:
        errors = [prediction for prediction in one.predictions if isinstance(prediction, UserError)]
        self.failed += bool(errors)
        self.unanswered += len(errors) == len(one.predictions)
        if errors and len(self.errors) < QUOTED:
            self.errors.append(str(errors[0]))
        return one

    def _report(self) -> None:
        """Warn of rows without prediction. Raises UserError when there is no prediction at all."""
        more = f" (and {self.failed - QUOTED:,} more)" if self.failed > QUOTED else ""
        reasons = "; ".join(self.errors) + more
        if self.unanswered == self.number > 0:
            raise UserError(f"predict: there is no prediction for any row: {reasons}")
        if self.failed:
            self.reporter.warn(
                f"{self.failed:,} of {self.number:,} rows have an `error` instead of a prediction: {reasons}"
            )
        if self.cut:
            self.reporter.warn(f"{self.cut:,} of {self.number:,} rows were too long for the model and were truncated")
