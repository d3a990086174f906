"""A task's rows: their fields, how they are read, and how predictions on them are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pefttools.data.rows import Row, Splits
from pefttools.settings import Choice

Prediction = dict[str, Any]
"""A model's prediction on one row; at least `prediction`, comparable to the row's reference."""


class RowContract(Choice, ABC):
    """The part of a task that needs no model."""

    fields: ClassVar[Mapping[str, bool]]
    """Field -> whether a row must have it."""
    inputs: ClassVar[tuple[str, ...]]
    """The fields a model sees; rows with the same ones are duplicates."""
    targets: ClassVar[tuple[str, ...]] = ("label",)
    """The fields that hold what is to be said; rows to predict on need none."""
    rewritable: ClassVar[tuple[str, ...]] = ()
    """The fields whose words an augmentation may change while the targets stay right; none where targets are places in
    the text, or the text itself."""
    samples: ClassVar[Sequence[Mapping[str, Any]]]
    """Rows as a user's file has them."""
    sample_settings: ClassVar[Mapping[str, Any]] = {}
    """What those rows need beside the defaults."""
    primary: ClassVar[str]
    """The metric that models are chosen by."""
    lower_is_better: ClassVar[bool] = False
    """Of the primary metric (perplexity)."""
    compared_by_logarithm: ClassVar[bool] = False
    """Whether the primary metric is the exponential of a mean (perplexity): rounding moves its logarithm evenly."""
    of_data: ClassVar[tuple[str, ...]] = ("max_length",)
    """Settings that a recipe chooses for its rows: amounts, and words that say what the rows are. They go with them."""

    @classmethod
    def about(cls) -> dict[str, Any]:
        """What a user's file must look like: `fields`, those that are `required`, and a `sample` row."""
        required = [name for name, needed in cls.fields.items() if needed]
        return {"fields": list(cls.fields), "required": required, "sample": dict(cls.samples[0]), "help": cls.help()}

    @classmethod
    def help(cls) -> str:
        """The description at the head of the task's file."""
        import sys

        return (sys.modules[cls.__module__].__doc__ or "").strip()

    @abstractmethod
    def read(self, values: Mapping[str, Any]) -> Row:
        """A checked row from a file's values, JSON-serialisable.

        Raises:
            ValueError: what is wrong with it; the file is refused.
            LeftOut: why the row cannot be used; it is counted and skipped.
        """

    def read_unlabeled(self, values: Mapping[str, Any]) -> Row:
        """A row to predict on: `read` without targets. Raises ValueError."""
        return self.read(values)

    def fit(self, splits: Splits) -> Self:
        """This task with what it must know of the data; raises UserError when the data cannot serve it."""
        del splits
        return self

    def with_classes(self, names: Sequence[str]) -> Self:
        """This fitted task with the classes of a trained head, the rows' among them, in the head's order."""
        return self.with_values(labels=tuple(names))

    def notes(self, splits: Splits) -> list[str]:
        """How the fitted task reads the data, where a file does not say it itself."""
        del splits
        return []

    def refuse_strange(self, key: str, rows: Sequence[Row]) -> None:
        """Raises UserError when the fitted task cannot score these rows (labels it does not know)."""
        del key, rows

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that a row's `label` is of, of a fitted task; none where its rows have no classes."""
        return ()

    @abstractmethod
    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        """Metrics as fractions, under their usual names."""

    @abstractmethod
    def reference(self, row: Row) -> Any:
        """What a prediction on this row is compared with; None where the row does not say."""

    def majority_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
        """Metrics of the best answer that looks at no input (the majority class); empty where there is none."""
        del train, rows
        return {}

    def scores_of(self, answers: Sequence[Any], rows: Sequence[Row]) -> dict[str, Any]:
        """Metrics over all rows of one answer a row; what is by class, tag or type of entity is left out."""
        values = self.metrics([{"prediction": answer} for answer in answers], [self.reference(row) for row in rows])
        return {name: value for name, value in values.items() if not isinstance(value, Mapping)}

    def is_better(self, score: float, best: float) -> bool:
        """Whether a primary metric beats another."""
        return score < best if self.lower_is_better else score > best
