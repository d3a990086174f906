"""The part of a task that handles rows: their fields, reading them, and scoring predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pefttools.data.rows import Row, Splits
from pefttools.data.units import Piece, Units
from pefttools.settings import Choice
from pefttools.tasks import _row_scores

Prediction = dict[str, Any]
"""A model's prediction on one row; at least `prediction`, comparable to the row's reference."""


class RowContract(Choice, ABC):
    """The part of a task's interface that needs no model."""

    fields: ClassVar[Mapping[str, bool]]
    """Field -> whether a row must have it."""
    inputs: ClassVar[tuple[str, ...]]
    """The fields that are the model's input; rows with equal inputs are duplicates."""
    targets: ClassVar[tuple[str, ...]] = ("label",)
    """The fields with the target; rows to predict on need none."""
    rewritable: ClassVar[tuple[str, ...]] = ()
    """The fields whose words an augmentation may change without making the target wrong; empty if targets are positions
    in the text, or the text itself."""
    has_editable_words: ClassVar[bool] = False
    """Whether `with_edits` applies edits of words to targets that are positions in the text; then `inputs` are the
    edited fields."""
    samples: ClassVar[Sequence[Mapping[str, Any]]]
    """Examples of rows in a user's file."""
    sample_settings: ClassVar[Mapping[str, Any]] = {}
    """Settings that the samples need besides the defaults."""
    primary: ClassVar[str]
    """The metric that selects the best checkpoint."""
    score_range: ClassVar[tuple[float, float] | None] = (0.0, 1.0)
    """The bounds of the primary metric; None if it has none (perplexity)."""
    lower_is_better: ClassVar[bool] = False
    """Whether lower values of the primary metric are better (perplexity)."""
    compared_by_logarithm: ClassVar[bool] = False
    """Whether the primary metric is the exponential of a mean (perplexity), so that tolerances apply to its
    logarithm."""
    of_data: ClassVar[tuple[str, ...]] = ("max_length",)
    """Settings that depend on a recipe's rows, such as lengths and label formats; they are replaced together with the
    data."""

    of_weights: ClassVar[tuple[str, ...]] = ()
    """Settings that trained weights depend on, so that a run that goes on from another one has the same; those that are
    None are taken over."""

    @classmethod
    def about(cls) -> dict[str, Any]:
        """The format of a user's file: `fields`, the `required` ones, a `sample` row, and `help`."""
        required = [name for name, needed in cls.fields.items() if needed]
        return {"fields": list(cls.fields), "required": required, "sample": dict(cls.samples[0]), "help": cls.help()}

    @classmethod
    def help(cls) -> str:
        """The docstring of the task's module."""
        import sys

        return (sys.modules[cls.__module__].__doc__ or "").strip()

    @abstractmethod
    def read(self, values: Mapping[str, Any]) -> Row:
        """Convert a file's values to a checked row, which JSON can represent.

        Raises:
            ValueError: the values are invalid; the file is rejected.
            LeftOut: the row cannot be used; it is counted and skipped.
        """

    def read_unlabeled(self, values: Mapping[str, Any]) -> Row:
        """Convert a file's values to a row to predict on, without targets. Raises ValueError if they are invalid."""
        return self.read(values)

    def editable_words(self, row: Row) -> list[Units]:
        """The words of each edited field; the spans that the targets name are one unit each, which is not free."""
        raise NotImplementedError(f"{self.name} has no editable words in {row}")

    def with_edits(self, row: Row, edits: Sequence[Sequence[Piece]]) -> Row:
        """The row with edited words, and with targets for them.

        Args:
            edits: the pieces of each of `editable_words`; if one is empty, its text becomes empty.
        """
        raise NotImplementedError(f"{self.name} has no editable words in {row}, and cannot apply {edits}")

    def fit(self, splits: Splits) -> Self:
        """The task with settings that depend on the data (labels). Raises UserError if the data does not suit the
        task."""
        del splits
        return self

    def with_classes(self, names: Sequence[str]) -> Self:
        """The fitted task with the classes of a trained head in the head's order; they include the rows' classes."""
        return self.with_values(labels=tuple(names))

    def notes(self, splits: Splits) -> list[str]:
        """Notes on how the fitted task interprets the data, if the file leaves it open."""
        del splits
        return []

    def check_scorable(self, key: str, rows: Sequence[Row]) -> None:
        """Raises UserError if the fitted task cannot score the rows, for example because of unknown labels."""
        del key, rows

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of a fitted task's labels; empty for tasks without classes."""
        return ()

    @property
    def answer_kind(self) -> Literal["class", "number"] | None:
        """What a prediction on a row is: one `class` of which it has all `probabilities`, or a `number`; else None."""
        return None

    def among(self, predictions: Sequence[Prediction], classes: Collection[str]) -> list[Prediction] | None:
        """The predictions if the model chooses among these classes alone; None if the task has no classes of rows."""
        del predictions, classes
        return None

    @abstractmethod
    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        """Metrics as fractions, by their usual names."""

    @abstractmethod
    def reference(self, row: Row) -> Any:
        """The reference to compare a prediction on this row with; None if the row has none."""

    def is_right(self, prediction: Prediction, reference: Any) -> bool | None:
        """Whether a prediction is correct; None if predictions of this form are not right or wrong (numbers)."""
        pattern = getattr(self, "answer_pattern", None)  # of tasks that generate answers
        return _row_scores.is_right(prediction, reference, pattern)

    def row_error(self, prediction: Prediction, reference: Any) -> float | None:
        """How wrong a prediction is: 0 if it is right, the larger the worse; None if it was not scored.

        The unit is that of the reference's form, so that only rows of one task can be compared by it.
        """
        pattern = getattr(self, "answer_pattern", None)
        return _row_scores.row_error(prediction, reference, pattern)

    def majority_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
        """Metrics of the best constant prediction (the majority class); empty if the task has none."""
        del train, rows
        return {}

    def scores_of(self, predictions: Sequence[Any], rows: Sequence[Row]) -> dict[str, Any]:
        """Metrics of one prediction per row, without metrics per class, tag or entity type."""
        values = self.metrics(
            [{"prediction": prediction} for prediction in predictions], [self.reference(row) for row in rows]
        )
        return {name: value for name, value in values.items() if not isinstance(value, Mapping)}
