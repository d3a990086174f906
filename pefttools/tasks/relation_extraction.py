"""Relation extraction: predict the relation between two marked entities of a text.

A row is `text` with both entities between markers, `The <e1>child</e1> was bound into the <e2>cradle</e2>.`, and
`label`. Instead of markers, a row may give the entities' positions: `e1_start`, `e1_end`, `e2_start` and `e2_end` in
characters, ends exclusive. `markers` sets other spellings of the markers. The markers become new tokens, whose
embeddings are trained and saved with the head under every strategy (as in Baldini Soares et al. 2019). Metrics:
macro-F1 without `other` as SemEval-2010 task 8 defines it, micro-F1, accuracy, and precision, recall, F1 and support
per class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from pefttools.data import classes, marked
from pefttools.data import fields as of_fields
from pefttools.data.splitting import Row, Splits
from pefttools.data.units import Piece, Units
from pefttools.errors import UserError
from pefttools.settings import NOT_IN_DIGEST
from pefttools.tasks._explained import Explained, chosen, log_odds
from pefttools.tasks.base import LABELS, Prediction, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

NOTHING = {"other", "none", "no_relation", "no relation", "norelation", "na", "n/a", "null", "nil", "无关系", "无"}
"""Names that data sets use for the class "no relation"."""


class RelationExtraction(Task):
    """One relation per row; the loss is cross-entropy."""

    fields: ClassVar[Mapping[str, bool]] = {
        "text": True, **dict.fromkeys(marked.OFFSETS, False), "label": True, "id": False
    }  # fmt: skip
    inputs: ClassVar[tuple[str, ...]] = ("text",)
    has_editable_words: ClassVar[bool] = True
    samples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "the <e1>apple</e1> is from the <e2>tree</e2>", "label": "Origin(e1,e2)"},
        {"text": "a <e1>tree</e1> of <e2>plum</e2>", "label": "Origin(e2,e1)"},
        {"text": "<e1>red</e1> and <e2>blue</e2>", "label": "Other"},
        {"text": "saw pear", "e1_start": 0, "e1_end": 3, "e2_start": 4, "e2_end": 8, "label": "Other"},
    )
    of_data: ClassVar[tuple[str, ...]] = ("max_length", "markers", "other")
    primary: ClassVar[str] = "f1"
    pipeline_tag: ClassVar[str | None] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_type: ClassVar[str | None] = "SEQ_CLS"
    has_class_head: ClassVar[bool] = True
    new_tokens: ClassVar[tuple[str, ...]] = marked.MARKERS

    max_length: int = Field(default=256, ge=16)
    """Maximum tokens of a row; a longer text loses the tokens farthest from the entities, never the markers."""
    markers: tuple[str, str, str, str] = marked.MARKERS
    """The files' markers before and after the first entity, then before and after the second."""
    other: str | None = "Other"
    """The label for "no relation", which F1 leaves out; null if there is none."""
    labels: tuple[str, ...] = Field(default=(), json_schema_extra=NOT_IN_DIGEST)
    """The classes in the order of the model's outputs; when empty, those of the training rows, each in both
    directions."""

    @field_validator("markers")
    @classmethod
    def _markers_differ(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(i != j and one.strip() in other for i, one in enumerate(value) for j, other in enumerate(value)):
            raise ValueError("needs four markers, none of them empty or part of another")
        return value

    @classmethod
    def example(cls) -> Self:
        return cls(labels=("Other", "one(e1,e2)", "one(e2,e1)"))

    def read(self, values: Mapping[str, Any]) -> Row:
        text = of_fields.text(values.get("text"), "text")
        offsets = [values.get(name) for name in marked.OFFSETS]
        present = [value is not None and str(value).strip() != "" for value in offsets]
        if any(present) and not all(present):
            raise ValueError(f"has no {marked.OFFSETS[present.index(False)]}")
        text = marked.from_offsets(text, offsets) if all(present) else marked.canonical(text, self.markers)
        row: Row = {"text": text}
        if "label" in values:
            row["label"] = classes.label(values["label"])
        if values.get("id") is not None:
            row["id"] = str(values["id"])
        return row

    def editable_words(self, row: Row) -> list[Units]:
        return [marked.split_around_entities(row["text"]).units]

    def with_edits(self, row: Row, edits: Sequence[Sequence[Piece]]) -> Row:
        return {**row, "text": marked.split_around_entities(row["text"]).edited(edits[0])[0]}

    def fit(self, splits: Splits) -> Self:
        found = classes.names(splits.train)
        known = found | classes.names(splits.spare)
        known |= {label for label in map(marked.reversed_label, known) if label}  # training may lack one direction
        labels = self.labels or tuple(sorted(known, key=of_fields.natural))
        problems = classes.too_few(found) + classes.unused(labels, known) + classes.new_in_splits(splits, labels)
        if problems:
            raise UserError(*problems)
        return self.with_values(labels=labels)

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        del splits, tokenizer
        alike = [label for label in self.labels if label.casefold() in NOTHING and label != self.other]
        if self.other in self.labels or not alike:
            return []
        return [
            f"no row has the label task.other={self.other!r}, so every class counts in F1;"
            f' set task.other={alike[0]!r} if that label means "no relation"'
        ]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labels

    def check_scorable(self, key: str, rows: Sequence[Row]) -> None:
        classes.check_labels(key, rows, self.labels)

    def config_values(self) -> dict[str, Any]:
        return {**classes.config_values(self.labels), "problem_type": "single_label_classification"}

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        limit = min(self.max_length, tokenizer.model_max_length)
        encoded = tokenizer(
            [marked.for_tokens(row["text"]) for row in rows],
            truncation=False,
            return_special_tokens_mask=True,
            verbose=False,
        )
        markers = [tokenizer.get_vocab()[marker] for marker in marked.MARKERS]
        columns = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        cut = [len(ids) > limit for ids in columns["input_ids"]]
        for i in (i for i, long in enumerate(cut) if long):
            try:
                special = encoded["special_tokens_mask"][i]
                positions = marked.positions_around(columns["input_ids"][i], special, markers, limit)
            except ValueError as error:
                raise UserError(f"task.max_length: {error}") from error
            for values in columns.values():
                values[i] = [values[i][position] for position in positions]
        if rows and all("label" in row for row in rows):
            columns[LABELS] = classes.indices((row["label"] for row in rows), self.labels)
        return {**columns, "num_targets": [1] * len(rows), "cut": cut}

    def target_logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        del batch
        return outputs.logits.float()

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        import torch

        return torch.nn.functional.cross_entropy(outputs.logits.float(), batch[LABELS], reduction="sum")

    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        del batch
        return classes.predictions(outputs.logits.float(), self.labels)

    @property
    def answer_kind(self) -> Literal["class"]:
        return "class"

    def explained(
        self, row: Row, encoded: Sequence[Mapping[str, Any]], outputs: Any, batch: Mapping[str, Tensor], of: str | None
    ) -> list[Explained]:
        del row, encoded
        name = chosen(of, "class", self.labels, self.predict(outputs, batch)[0]["prediction"])
        index = self.labels.index(name)
        return [Explained(f"class {name}", 0, lambda outputs, _: log_odds(outputs.logits.float(), index))]

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        from pefttools.metrics.relation_f1 import RelationF1

        predicted = [p["prediction"] for p in predictions]
        values = RelationF1(keep_in_memory=True).compute(
            predictions=predicted, references=list(references), other=self.other
        )
        assert values is not None
        return {**values, **classes.scores(predicted, references, self.labels, ("accuracy", "per_class"))}

    def majority_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
        return self.scores_of([classes.most_frequent(row["label"] for row in train)] * len(rows), rows)

    def reference(self, row: Row) -> Any:
        return row.get("label")
