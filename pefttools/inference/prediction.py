"""Rows answered by a finished run or an artifact, or by several of one base together: one answer a row, in order.

A row that cannot be answered has its number, its `id` and an `error` in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.bases.loading import prepare_libraries
from pefttools.data.reading import Raw
from pefttools.errors import UserError
from pefttools.inference.optimize import Precision
from pefttools.inference.predictor import Predictor, load_predictor, load_predictors, recipe_of
from pefttools.inference.unlabeled import CarriedColumns, FieldColumns
from pefttools.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from pefttools.data.splitting import Row
    from pefttools.tasks.base import Prediction

Raws = Iterable[Raw | UserError]
CHUNK = 4096
"""Rows that are read, sorted by length and answered together."""
NAMED = 3
"""Errors that the summary quotes."""


def predict_rows(
    path: Path,
    raws: Raws,
    reporter: Reporter = SILENT,
    precision: Precision = "auto",
    keep: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """One answer a row, in order: the row's fields and the prediction's, or its number and an `error`.

    Columns are called as in the recipe (`data.columns`) or like the task's fields. Labels are not needed. No more than
    `CHUNK` rows are held at a time.

    Args:
        precision: what to compute in; `auto` is bf16 where that is native, and fp32 is what `evaluate` computes in.
        keep: columns that are carried to the answers; empty for all that are not read.
        overrides: KEY=VALUE on the recipe's `data.columns` and on how its training file is read.

    Raises:
        UserError: the rows have no column for a field that the run needs, or none of them could be answered.
    """
    answered = _Answered(
        [recipe_of(path, overrides)], lambda: [load_predictor(path, precision, reporter)], keep, reporter
    )
    for one in answered.rows(raws):
        (row,), (prediction,) = one.read, one.predictions
        if isinstance(prediction, UserError):
            yield {**one.place, **one.carried, "error": str(prediction)}
        else:
            assert not isinstance(row, UserError)
            yield {**row, **one.carried, **prediction}


def predict_together(
    paths: Sequence[Path],
    raws: Raws,
    reporter: Reporter = SILENT,
    precision: Precision = "auto",
    keep: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Several runs' answers to every row, under `answers` by the runs' names, in one pass over the rows.

    The runs stand on one base, which is in memory once, their adapters beside it and not merged. The arguments are
    those of `predict_rows`.

    Raises:
        UserError: they stand on different bases; and as `predict_rows` does.
    """
    names = [path.absolute().name for path in paths]
    recipes = [recipe_of(path, overrides) for path in paths]
    answered = _Answered(recipes, lambda: load_predictors(paths, precision, reporter), keep, reporter)
    for one in answered.rows(raws):
        read = next((row for row in one.read if not isinstance(row, UserError)), None)
        if read is None:
            yield {**one.place, **one.carried, "error": str(one.predictions[0])}
            continue
        answers = {
            name: {"error": str(said)} if isinstance(said, UserError) else said
            for name, said in zip(names, one.predictions, strict=True)
        }
        yield {**read, **one.carried, "answers": answers}


@dataclass(frozen=True)
class _One:
    """What became of one row, for each model."""

    place: dict[str, Any]
    """Its number, and its `id` where it has one."""
    carried: dict[str, Any]
    read: list[Row | UserError]
    predictions: list[Prediction | UserError]


@dataclass
class _Answered:
    """Rows on their way through models, and the count of those that could not be answered."""

    recipes: Sequence[Any]
    load: Callable[[], list[Predictor]]
    """The models, once there is a row to answer."""
    keep: Sequence[str] | None
    reporter: Reporter
    number: int = 0
    failed: int = 0
    unanswered: int = 0
    """Rows that no model answered."""
    errors: list[str] = field(default_factory=list)
    """The first ones."""
    cut: int = 0

    def rows(self, raws: Raws) -> Iterator[_One]:
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
            said = [self._said(model, part) for model, part in zip(models, read, strict=True)] if models else read
            carried.taken |= {name for part in said for one in part if not isinstance(one, UserError) for name in one}
            for i, raw in enumerate(chunk):
                self.number += 1
                parts = [part[i] for part in read]
                place = {"row": self.number, **columns[0].identity(raw)}
                yield self._counted(_One(place, carried.of(raw, parts[0]), parts, [part[i] for part in said]))
        self._report()

    def _said(self, model: Predictor, rows: Sequence[Row | UserError]) -> list[Prediction | UserError]:
        """A prediction or an error a row."""
        places = [i for i, row in enumerate(rows) if not isinstance(row, UserError)]
        found: list[Any] = list(rows)
        answers, cut = model.attempt([found[i] for i in places], self.reporter)
        for i, answer in zip(places, answers, strict=True):
            number = self.number + i + 1
            found[i] = UserError(f"row {number} {answer}") if isinstance(answer, UserError) else answer
        self.cut += cut
        return found

    def _counted(self, one: _One) -> _One:
        errors = [said for said in one.predictions if isinstance(said, UserError)]
        self.failed += bool(errors)
        self.unanswered += len(errors) == len(one.predictions)
        if errors and len(self.errors) < NAMED:
            self.errors.append(str(errors[0]))
        return one

    def _report(self) -> None:
        """Warn of rows that could not be answered. Raises UserError when none could."""
        more = f" (and {self.failed - NAMED:,} more)" if self.failed > NAMED else ""
        told = "; ".join(self.errors) + more
        if self.unanswered == self.number > 0:
            raise UserError(f"predict: no row could be answered: {told}")
        if self.failed:
            self.reporter.warn(
                f"{self.failed:,} of {self.number:,} rows could not be answered and have an `error`: {told}"
            )
        if self.cut:
            self.reporter.warn(f"{self.cut:,} of {self.number:,} rows are longer than the model reads; they were cut")
