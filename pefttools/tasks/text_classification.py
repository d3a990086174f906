"""Text classification: a text or a pair of texts to one of any number of classes.

The labels come from the training rows and are stored in the model's configuration. Metrics: accuracy, macro-F1,
and precision, recall, F1 and support a class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from pefttools.data.splitting import Row, Splits
from pefttools.errors import UserError
from pefttools.tasks.base import Prediction, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class TextClassification(Task):
    """One label a row; the loss is cross-entropy."""

    fields: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False, "label": True, "id": False}
    inputs: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    primary: ClassVar[str] = "accuracy"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_type: ClassVar[str] = "SEQ_CLS"

    labels: tuple[str, ...] = Field(default=(), json_schema_extra={"digest": False})
    """The classes in the order of the model's outputs; from the training rows when empty."""
    pair: bool | None = Field(default=None, json_schema_extra={"digest": False})
    """Whether a row is two texts; from the training rows when null."""

    @classmethod
    def example(cls) -> Self:
        return cls(labels=("one", "two", "three"), pair=False)

    def read(self, values: Mapping[str, Any]) -> Row:
        row: Row = {}
        if self.pair and "text_pair" not in values:
            raise ValueError("has no text_pair")
        for name in self.inputs if self.pair is not False else ("text",):
            if name in values:
                row[name] = _text(values[name], name)
        if "label" in values:
            label = values["label"]
            if isinstance(label, float) and label.is_integer():
                label = int(label)  # a column of whole numbers with a gap becomes floats in some formats
            if label is None or label != label or not str(label).strip():  # NaN is not itself
                raise ValueError("has no label")
            row["label"] = str(label).strip()
        if values.get("id") is not None:
            row["id"] = str(values["id"])
        return row

    def fit(self, splits: Splits) -> Self:
        found = {row["label"] for row in splits.train}
        known = found | {row["label"] for row in splits.spare}
        labels = self.labels or tuple(sorted(known, key=_natural))
        problems = []
        if len(found) < 2:
            problems.append(f"data.train: has one class only ({min(found)!r}); there is nothing to tell apart")
        if idle := sorted(set(labels) - known, key=_natural):
            problems.append(f"task.labels: no training row has {_listed(idle)}; training has {_listed(sorted(known))}")
        pair = "text_pair" in splits.train[0]
        for name, rows in splits.named().items():
            if any(("text_pair" in row) != pair for row in rows):
                problems.append(f"data.{name}: some rows are pairs of texts and some are not")
        for name, rows in splits.named().items():
            if strange := self._strange(rows, labels):
                problems.append(
                    f"data.{name}: labels that training lacks: {_listed(strange)}. Training has {_listed(labels)};"
                    " set data.min_class_rows to leave out rare classes, or data.labels to rename"
                )
        if len(splits.train) < len(labels):
            problems.append(
                f"data.train: {len(splits.train)} rows for {len(labels)} classes; each class needs at least one"
            )
        if problems:
            raise UserError(*problems)
        return self.with_values(labels=labels, pair=pair)

    def refuse_strange(self, key: str, rows: Sequence[Row]) -> None:
        if strange := self._strange(rows, self.labels):
            raise UserError(f"{key}: labels the model does not know: {_listed(strange)}. It has {_listed(self.labels)}")

    def _strange(self, rows: Sequence[Row], labels: Sequence[str]) -> list[str]:
        return sorted({row["label"] for row in rows} - set(labels), key=_natural)

    def config_values(self) -> dict[str, Any]:
        names = dict(enumerate(self.labels))
        return {
            "num_labels": len(names),
            "id2label": names,
            "label2id": {name: i for i, name in names.items()},
            "problem_type": "single_label_classification",
        }

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        texts = [row["text"] for row in rows]
        pairs = [row["text_pair"] for row in rows] if self.pair else None
        limit = min(self.max_length, tokenizer.model_max_length)
        whole = tokenizer(texts, pairs, truncation=False, verbose=False)
        cut = [len(ids) > limit for ids in whole["input_ids"]]
        encoded = tokenizer(texts, pairs, truncation=True, max_length=limit) if any(cut) else whole
        columns = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        if rows and all("label" in row for row in rows):
            ids = {name: i for i, name in enumerate(self.labels)}
            columns["labels"] = [ids[row["label"]] for row in rows]
        return {**columns, "num_targets": [1] * len(rows), "cut": cut}

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        import torch

        return torch.nn.functional.cross_entropy(outputs.logits.float(), batch["labels"], reduction="sum")

    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        del batch
        rows = outputs.logits.float().softmax(-1).tolist()
        return [
            {
                "prediction": self.labels[max(range(len(p)), key=p.__getitem__)],
                "probabilities": dict(zip(self.labels, p, strict=True)),
            }
            for p in rows
        ]

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        from pefttools.metrics import combined

        ids = {name: i for i, name in enumerate(self.labels)}
        said = [ids[p["prediction"]] for p in predictions]
        values = combined("accuracy", "f1", "per_class").compute(
            predictions=said, references=[ids[r] for r in references]
        )
        assert values is not None
        values["per_class"] = {self.labels[int(i)]: scores for i, scores in values["per_class"].items()}
        return values

    def simplest(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
        (label, _), *_ = Counter(row["label"] for row in train).most_common(1)
        values = self.metrics([{"prediction": label}] * len(rows), [row["label"] for row in rows])
        return {name: value for name, value in values.items() if name != "per_class"}

    def reference(self, row: Row) -> Any:
        return row.get("label")


def _text(value: Any, name: str) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"has a {name} that is no text: {value!r}")
    if not value or not value.strip():
        raise ValueError(f"has no {name}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a character (a lone surrogate) in its {name}") from error
    return value.strip()


def _natural(label: str) -> tuple[bool, float, str]:
    """Numbers by value, before words by letter."""
    number = label.removeprefix("-").isdecimal()
    return (not number, float(label) if number else 0.0, label)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
