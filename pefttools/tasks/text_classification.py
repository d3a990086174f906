"""Text classification: predict one class, or several, for a text or a pair of texts.

A row is `text` (and `text_pair`) and `label`. With `multi_label` a row may have any number of labels, or none: a list
in json, parquet and hub files, one text with a separator in others (`fruit|tool`). The classes come from the training
rows and are stored in the model's configuration. Metrics: accuracy (with `multi_label`: share of rows whose set of
labels is exactly right), macro-F1 (with `multi_label` micro-F1, too), and precision, recall, F1 and support per class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from pefttools.data import classes, written_lists
from pefttools.data.fields import natural
from pefttools.data.splitting import Row, Splits
from pefttools.data.texts import FIELDS, encode_texts, is_pair, mixed, read_texts
from pefttools.errors import UserError, unknown
from pefttools.settings import DEFAULT_NOT_IN_DIGEST, NOT_IN_DIGEST
from pefttools.tasks._explained import Explained, chosen, log_odds
from pefttools.tasks.base import LABELS, Columns, Prediction, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class TextClassification(Task):
    """One label per row with cross-entropy, or any number of labels with binary cross-entropy of every class."""

    fields: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False, "label": True, "id": False}
    inputs: ClassVar[tuple[str, ...]] = FIELDS
    rewritable: ClassVar[tuple[str, ...]] = FIELDS
    samples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "a red apple", "label": "fruit"},
        {"text": "a green pear", "label": "fruit"},
        {"text": "a saw and a hammer", "label": "tool"},
        {"text": "the drill", "label": "tool"},
    )
    of_data: ClassVar[tuple[str, ...]] = ("max_length", "label_separator", "threshold", "thresholds")
    of_weights: ClassVar[tuple[str, ...]] = ("multi_label",)
    only_with: ClassVar[Any] = dict.fromkeys(
        ("label_separator", "threshold"), ("task.multi_label=true", lambda task: task.multi_label)
    )
    primary: ClassVar[str] = "accuracy"
    pipeline_tag: ClassVar[str | None] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_type: ClassVar[str | None] = "SEQ_CLS"
    has_class_head: ClassVar[bool] = True

    multi_label: bool = False
    """Whether a row may have any number of labels, instead of exactly one."""
    label_separator: str = Field(default="|", min_length=1)
    """With `multi_label`: the separator of labels that are written as one text."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """With `multi_label`: the probability from which on a label is predicted."""
    thresholds: Mapping[str, float] = Field(default={}, json_schema_extra=DEFAULT_NOT_IN_DIGEST)
    """Class -> the probability from which on it is predicted, instead of `threshold`; without `multi_label` for one of
    two classes. `pefttools calibrate` finds them."""
    labels: tuple[str, ...] = Field(default=(), json_schema_extra=NOT_IN_DIGEST)
    """The classes in the order of the model's outputs; from the training rows when empty."""
    pair: bool | None = Field(default=None, json_schema_extra=NOT_IN_DIGEST)
    """Whether a row has two texts; from the training rows when null."""

    @classmethod
    def example(cls) -> Self:
        return cls(labels=("one", "two", "three"), pair=False)

    def read(self, values: Mapping[str, Any]) -> Row:
        row = read_texts(values, self.pair)
        if "label" in values:
            row["label"] = self._several(values["label"]) if self.multi_label else self._one(values["label"])
        return row

    def _several(self, value: Any) -> list[str]:
        if isinstance(value, str):
            value = self._parsed(value)
        if isinstance(value, Mapping):
            return self._of_mapping(value)
        if isinstance(value, str):
            found = [part for part in value.split(self.label_separator) if part.strip()]
        elif value is None or value != value:  # no labels; only NaN differs from itself
            found = []
        else:
            found = value if isinstance(value, (list, tuple)) else [value]
        if inner := [one for one in found if isinstance(one, (list, tuple))]:
            raise ValueError(f"has a list among its labels: {inner[0]!r}")
        if not isinstance(value, str) and (written_lists.is_vector(found) or self._is_named_vector(found)):
            return self._of_vector(found)
        return sorted({classes.label(one) for one in found}, key=natural)

    @staticmethod
    def _parsed(value: str) -> Any:
        """The list, mapping or vector that a text spells; any other text unchanged."""
        written = written_lists.parsed(value)
        if isinstance(written, (list, Mapping)):
            return written
        if written_lists.VECTOR.fullmatch(value.strip()):
            return re.split(r"[\s,;|]+", value.strip())
        if written_lists.BARE.fullmatch(value.strip()):
            raise ValueError(f"has a list without quotes as labels, {value!r}; write it as JSON, or as one|other")
        return value

    @staticmethod
    def _of_mapping(value: Mapping[Any, Any]) -> list[str]:
        """The classes with value 1 in a mapping of classes to 0 or 1."""
        for name, one in value.items():
            if one is not None and str(one) not in written_lists.ZERO_OR_ONE:
                raise ValueError(f"has the value {one!r} for the label {name!r}; it must be 0 or 1")
        names = [name for name, one in value.items() if one is not None and written_lists.is_one(one)]
        return sorted({classes.label(name) for name in names}, key=natural)

    def _is_named_vector(self, found: Sequence[Any]) -> bool:
        """Whether the labels are a vector of 0 and 1, one per class in `labels`, and not classes named 0 or 1."""
        values = {str(one) for one in found}
        is_vector = len(found) == len(self.labels) > 1 and values <= written_lists.ZERO_OR_ONE
        return is_vector and not values & {*self.labels}

    def _of_vector(self, values: Sequence[Any]) -> list[str]:
        """The classes with value 1 in a row's vector."""
        if len(values) != len(self.labels):
            raise ValueError(
                f"has {len(values)} numbers 0 or 1 as labels, {list(values)!r}, but no class names; list the"
                " names in task.labels in this order, or write every row's classes by name"
            )
        chosen = zip(self.labels, values, strict=True)
        return sorted((name for name, one in chosen if written_lists.is_one(one)), key=natural)

    def _one(self, value: Any) -> str:
        if isinstance(value, (list, tuple)):
            raise ValueError(f"has a list as label, {value!r}; set task.multi_label=true if rows may have several")
        return classes.label(value)

    def fit(self, splits: Splits) -> Self:
        found = classes.names(splits.train)
        known = found | classes.names(splits.spare)
        labels = self.labels or tuple(sorted(known, key=natural))
        problems = [*classes.too_few(found), *classes.unused(labels, known), *mixed(splits)]
        problems += classes.new_in_splits(splits, labels)
        if self.multi_label and len(found) > 1 and all(len(row["label"]) == len(found) for row in splits.train):
            problems.append("data.train: every row has all labels; there is nothing to learn")
        if not self.multi_label and len(splits.train) < len(labels):
            problems.append(
                f"data.train: {len(splits.train)} rows for {len(labels)} classes; each class needs at least one"
            )
        problems += self._wrong_thresholds(labels)
        if problems:
            raise UserError(*problems)
        return self.with_values(labels=labels, pair=is_pair(splits))

    def _wrong_thresholds(self, labels: Sequence[str]) -> list[str]:
        """Problems of `thresholds` for these classes."""
        problems = [
            f"task.thresholds: {unknown('class', name, labels)}" for name in self.thresholds if name not in labels
        ]
        problems += [
            f"task.thresholds.{name}: {value:g} is not a probability between 0 and 1"
            for name, value in self.thresholds.items()
            if not 0 <= value <= 1
        ]
        if self.thresholds and not self.multi_label and (len(labels) != 2 or len(self.thresholds) != 1):
            problems.append(
                f"task.thresholds: without task.multi_label, one class of two can have a threshold; there are"
                f" {len(labels)} classes and {len(self.thresholds)} thresholds"
            )
        return problems

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        del tokenizer
        several = self.multi_label and any(len(row["label"]) > 1 for row in splits.train)
        if not (joint := written_lists.joint(self.labels, self.multi_label and not several)):
            return []
        if self.multi_label:
            return [
                f"labels like {joint[0]!r} look like several labels in one text, but count as one class;"
                f" task.label_separator={self.label_separator!r} does not separate them"
            ]
        return [
            f"labels like {joint[0]!r} look like several labels in one text, but count as one class; if rows have"
            " several labels, set task.multi_label=true and task.label_separator"
        ]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labels

    def check_scorable(self, key: str, rows: Sequence[Row]) -> None:
        classes.check_labels(key, rows, self.labels)

    @property
    def reads_plain_text(self) -> bool:
        return not self.pair

    def config_values(self) -> dict[str, Any]:
        kind = "multi" if self.multi_label else "single"
        return {**classes.config_values(self.labels), "problem_type": f"{kind}_label_classification"}

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        columns = encode_texts(rows, tokenizer, self.max_length, bool(self.pair))
        if rows and all("label" in row for row in rows):
            references = [self.reference(row) for row in rows]
            columns[LABELS] = (
                self._indicators(references) if self.multi_label else classes.indices(references, self.labels)
            )
        return {**columns, "num_targets": [len(self.labels) if self.multi_label else 1] * len(rows)}

    def _indicators(self, sets: Iterable[Iterable[str]]) -> list[list[int]]:
        """One vector per set: 1 for every class in it, 0 for the others."""
        return [[int(name in names) for name in self.labels] for names in map(set, sets)]

    def collate(self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int) -> dict[str, Tensor]:
        import torch

        inputs = {name: values for name, values in columns.items() if name != LABELS}
        batch = super().collate(inputs, tokenizer, multiple)
        if LABELS in columns:  # with as many classes as tokens, the base class would treat these as labels of tokens
            batch[LABELS] = torch.tensor(columns[LABELS])
        return batch

    def repeat_to_length(self, row: Mapping[str, Any], length: int) -> dict[str, Any]:
        return {**super().repeat_to_length(row, length), **{name: row[name] for name in (LABELS,) if name in row}}

    @property
    def has_target_logits(self) -> bool:
        return not self.multi_label

    def target_logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        del batch
        return outputs.logits.float()

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        from torch.nn import functional

        logits, labels = outputs.logits.float(), batch[LABELS]
        if self.multi_label:  # every class of every row is a target
            return functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
        return functional.cross_entropy(logits, labels, reduction="sum")

    def calibration_logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.multi_label:
            return super().calibration_logits(outputs, batch)
        import torch

        yes = outputs.logits.float().flatten()  # every class of every row is one of two classes, no and yes
        return torch.stack((torch.zeros_like(yes), yes), -1), batch[LABELS].flatten().long()

    def divergence(self, outputs: Any, others: Any, batch: Mapping[str, Tensor]) -> Tensor:
        from pefttools.nn import divergence

        if not self.multi_label:
            return super().divergence(outputs, others, batch)
        return divergence.of_yes_or_no(outputs.logits.float(), others.logits.float()).sum()

    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        del batch
        logits = outputs.logits.float()
        if not self.multi_label:
            found = classes.predictions(logits, self.labels)
            return [self.by_thresholds(one) for one in found] if self.thresholds else found
        rows = [dict(zip(self.labels, row, strict=True)) for row in logits.sigmoid().tolist()]
        return [self.by_thresholds({"probabilities": row}) for row in rows]

    def by_thresholds(self, prediction: Prediction) -> Prediction:
        """The prediction that the thresholds give for the `probabilities` of a prediction."""
        probabilities = prediction["probabilities"]
        if self.multi_label:
            lowest = {name: self.thresholds.get(name, self.threshold) for name in self.labels}
            return {
                "prediction": [name for name, p in probabilities.items() if p >= lowest[name]],
                "probabilities": probabilities,
            }
        ((name, least),) = self.thresholds.items()
        (other,) = (label for label in self.labels if label != name)
        return {**prediction, "prediction": name if probabilities[name] >= least else other}

    def explained(
        self, row: Row, encoded: Sequence[Mapping[str, Any]], outputs: Any, batch: Mapping[str, Tensor], of: str | None
    ) -> list[Explained]:
        del row, encoded
        predicted = self.predict(outputs, batch)[0]["prediction"]
        several = predicted if self.multi_label and of is None else None
        names = several if several is not None else [chosen(of, "class", self.labels, predicted)]
        return [Explained(f"class {name}", 0, self._score(self.labels.index(name))) for name in names]

    def _score(self, index: int) -> Callable[[Any, Mapping[str, Tensor]], Tensor]:
        """The log-odds of a class."""
        if self.multi_label:
            return lambda outputs, _: outputs.logits.float()[:, index]
        return lambda outputs, _: log_odds(outputs.logits.float(), index)

    def among(self, predictions: Sequence[Prediction], classes: Collection[str]) -> list[Prediction]:
        if self.multi_label:
            return [{**p, "prediction": [name for name in p["prediction"] if name in classes]} for p in predictions]
        return [{**p, "prediction": max(sorted(classes), key=p["probabilities"].__getitem__)} for p in predictions]

    @property
    def answer_kind(self) -> Literal["class"] | None:
        return None if self.multi_label else "class"

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        predicted = [p["prediction"] for p in predictions]
        if not self.multi_label:
            return classes.scores(predicted, references, self.labels)
        sets = self._indicators(predicted), self._indicators(references)
        return classes.scores_of_indices(*sets, self.labels, ("multi_label",))

    def majority_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
        key = tuple if self.multi_label else str
        label = classes.most_frequent(key(self.reference(row)) for row in train)
        return self.scores_of([label] * len(rows), rows)

    def reference(self, row: Row) -> Any:
        label = row.get("label")
        return sorted(set(label), key=natural) if isinstance(label, list) else label  # data.labels may merge some
