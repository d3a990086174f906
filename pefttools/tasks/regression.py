"""Regression: predict a number for a text or a pair of texts, such as how similar two sentences are.

A row is `text` (and `text_pair`) and `label`, a number in any unit. The loss is the squared error, divided by the
variance of the training labels, so that learning rates work at any scale. The model predicts in the labels' own unit,
also after an export. Metrics: Pearson's and Spearman's correlation, mean squared and mean absolute error.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from pefttools.bases import class_heads, loading
from pefttools.data.fields import number
from pefttools.data.splitting import Row, Splits
from pefttools.data.texts import FIELDS, encode_texts, is_pair, mixed, read_texts
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.settings import NOT_IN_DIGEST
from pefttools.tasks._explained import Explained
from pefttools.tasks.base import LABELS, Prediction, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

LARGEST = 1e15
"""Largest absolute label; its square does not overflow in single precision."""
FAR = 1e4
"""Ratio of the labels' mean to their standard deviation above which single precision loses differences of labels."""


class Regression(Task):
    """One number per row; the loss is the squared error."""

    fields: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False, "label": True, "id": False}
    inputs: ClassVar[tuple[str, ...]] = FIELDS
    rewritable: ClassVar[tuple[str, ...]] = FIELDS
    samples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "a red apple", "text_pair": "an apple", "label": 4.0},
        {"text": "a green pear", "text_pair": "a hammer", "label": 0.5},
        {"text": "a saw and a hammer", "text_pair": "a drill and a hammer", "label": "2.5"},
        {"text": "the drill", "text_pair": "a drill", "label": 5},
    )
    of_weights: ClassVar[tuple[str, ...]] = ("label_mean", "label_scale")
    primary: ClassVar[str] = "pearson"
    score_range: ClassVar[tuple[float, float] | None] = (-1.0, 1.0)
    pipeline_tag: ClassVar[str | None] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_type: ClassVar[str | None] = "SEQ_CLS"

    symmetric: bool = False
    """The order of a pair's texts does not matter: train on both orders, and predict their mean."""
    label_mean: float | None = Field(default=None, json_schema_extra=NOT_IN_DIGEST)
    """What the model predicts before training; the mean of the training labels when null."""
    label_scale: float | None = Field(default=None, gt=0, json_schema_extra=NOT_IN_DIGEST)
    """The unit of errors in the loss; the standard deviation of the training labels when null."""
    pair: bool | None = Field(default=None, json_schema_extra=NOT_IN_DIGEST)
    """Whether a row has two texts; from the training rows when null."""

    @classmethod
    def example(cls) -> Self:
        return cls(label_mean=0.0, label_scale=1.0, pair=False)

    def read(self, values: Mapping[str, Any]) -> Row:
        row = read_texts(values, self.pair)
        if "label" in values:
            row["label"] = number(values["label"], "label")
            if not abs(row["label"]) <= LARGEST:
                raise ValueError(f"has a label beyond ±{LARGEST:g}, too large for single precision: {row['label']:g}")
        return row

    def fit(self, splits: Splits) -> Self:
        problems = mixed(splits)
        if any(isinstance(row["label"], str) for row in splits.train):
            raise UserError("data.bins: makes classes of numbers, but the task regression needs the numbers; remove it")
        labels = [row["label"] for row in splits.train]
        mean = statistics.fmean(labels)
        scale = math.sqrt(statistics.fmean((label - mean) ** 2 for label in labels))
        if min(labels) == max(labels):
            problems.append(f"data.train: every row has the label {labels[0]:g}; there is nothing to learn")
        if self.symmetric and not is_pair(splits):
            problems.append("task.symmetric: needs pairs of texts, but data.train has no text_pair")
        if problems:
            raise UserError(*problems)
        mean = mean if self.label_mean is None else self.label_mean
        return self.with_values(label_mean=mean, label_scale=self.label_scale or scale, pair=is_pair(splits))

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        del splits, tokenizer
        mean, scale = self._unit()
        if abs(mean) <= FAR * scale:
            return []
        return [
            f"the labels have mean {mean:g} and standard deviation {scale:g}: single precision cannot resolve their"
            " differences well; subtract a constant from them"
        ]

    @property
    def reads_plain_text(self) -> bool:
        return not self.pair

    def config_values(self) -> dict[str, Any]:
        return {"num_labels": 1, "id2label": {0: "label"}, "label2id": {"label": 0}, "problem_type": "regression"}

    def load(self, settings: loading.BaseSettings, reporter: Reporter = SILENT, empty: bool = False) -> loading.Base:
        from pefttools.nn import score

        base = super().load(settings, reporter, empty)
        found = score.layer(base.model, base.head)
        if found is None:
            raise UserError(f"base: the head of {base.source} does not end in one linear layer, which regression needs")
        path, layer = found
        trained = class_heads.start(base, settings, self.auto_class)
        mean, scale = self._unit()
        scale = math.hypot(mean, scale) if layer.bias is None else scale  # the weights must learn the mean, too
        base.model.set_submodule(path, score.ScaledLinear.of(layer, mean, scale, trained))
        return base

    def _unit(self) -> tuple[float, float]:
        return self.label_mean or 0.0, self.label_scale or 1.0

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        ordered = [order for row in rows for order in (row, _swapped(row))] if self.symmetric else rows
        columns = encode_texts(ordered, tokenizer, self.max_length, bool(self.pair))
        if rows and all("label" in row for row in rows):
            columns[LABELS] = [float(row["label"]) for row in ordered]
        num_orders = len(ordered) // max(1, len(rows))
        return {**columns, "num_targets": [1] * len(ordered), "row": [i // num_orders for i in range(len(ordered))]}

    def logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The predictions divided by the labels' magnitude, to which rounding errors are proportional."""
        mean, scale = self._unit()
        return super().logits(outputs, batch) / (abs(mean) + scale)

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        _, scale = self._unit()
        return ((outputs.logits[:, 0].float() - batch[LABELS]) / scale).square().sum()

    def divergence(self, outputs: Any, others: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Twice the squared difference: the loss is −log p of a normal distribution with variance 1/2."""
        del batch
        _, scale = self._unit()
        return 2 * ((outputs.logits[:, 0].float() - others.logits[:, 0].float()) / scale).square().sum()

    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        del batch
        return [{"prediction": value} for value in outputs.logits[:, 0].float().tolist()]

    def aggregate(self, row: Row, encoded: Sequence[Mapping[str, Any]], parts: Sequence[Prediction]) -> Prediction:
        del row, encoded
        return {"prediction": statistics.fmean(p["prediction"] for p in parts)}

    @property
    def answer_kind(self) -> Literal["number"]:
        return "number"

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        from pefttools.metrics import combined

        values = combined("pearson", "spearman", "mse", "mae").compute(
            predictions=[p["prediction"] for p in predictions], references=list(references)
        )
        assert values is not None
        return values

    def explained(
        self, row: Row, encoded: Sequence[Mapping[str, Any]], outputs: Any, batch: Mapping[str, Tensor], of: str | None
    ) -> list[Explained]:
        del row, encoded, outputs, batch
        if of is not None:
            raise UserError(f"--of: {self.name} predicts one number, so there is nothing else to explain")
        return [Explained("the number", 0, lambda outputs, _: outputs.logits[:, 0].float())]

    def majority_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
        mean = statistics.fmean(row["label"] for row in train)
        return self.scores_of([mean] * len(rows), rows)

    def reference(self, row: Row) -> Any:
        return row.get("label")


def _swapped(row: Row) -> Row:
    """The pair with its two texts swapped."""
    return {**row, "text": row["text_pair"], "text_pair": row["text"]}
