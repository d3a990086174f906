"""Multiple choice: predict which of several choices answers a question.

A row is `text` (the question, or the beginning that the choices complete), `choices`, and `label`, the right choice:
its number from 0, its letter, or its text. `choices` is a list (in json, parquet and hub files), a mapping of `text`
and `label` to such lists, or up to five columns `choice_a` … `choice_e`; rows may have different numbers of choices. A
passage that the question refers to goes to `context`. The model reads every choice together with the question, and its
head gives each choice one logit; the loss is cross-entropy over them. Metric: accuracy.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from pefttools.bases import loading
from pefttools.data import classes
from pefttools.data.fields import listed, text
from pefttools.data.splitting import Row, Splits
from pefttools.data.texts import encode_pairs
from pefttools.settings import NOT_IN_DIGEST
from pefttools.tasks._explained import Explained, chosen, log_odds
from pefttools.tasks.base import LABELS, Columns, Prediction, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

MASK = "choice_mask"
COLUMNS = tuple(f"choice_{letter}" for letter in "abcde")
LETTERS = string.ascii_uppercase


class MultipleChoice(Task):
    """One right choice per row; the loss is cross-entropy over the row's choices."""

    fields: ClassVar[Mapping[str, bool]] = {
        "text": True, "context": False, "choices": False, **dict.fromkeys(COLUMNS, False), "label": True, "id": False,
    }  # fmt: skip
    inputs: ClassVar[tuple[str, ...]] = ("text", "context", "choices")
    rewritable: ClassVar[tuple[str, ...]] = ("text",)
    samples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "What grows on a tree?", "choices": ["a saw", "an apple", "a drill"], "label": "B"},
        {"text": "What cuts wood?", "choices": ["a saw", "a plum"], "label": 0},
        {"text": "Which is a colour?", "choices": ["hammer", "pear", "blue"], "label": "blue"},
        {"text": "Which is a fruit?", "choices": ["plum", "drill"], "label": "A"},
    )
    of_data: ClassVar[tuple[str, ...]] = ("max_length", "label_is", "first_number")
    only_with: ClassVar[Any] = {
        "first_number": ("task.label_is=number or auto", lambda task: task.label_is in ("number", "auto"))
    }
    primary: ClassVar[str] = "accuracy"
    pipeline_tag: ClassVar[str | None] = "multiple-choice"
    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    peft_type: ClassVar[str | None] = None

    label_is: Literal["auto", "number", "letter", "words"] = "auto"
    """How rows name the right choice; `auto` accepts all three, and rejects a row where two of them disagree."""
    first_number: int = Field(default=0, ge=0, le=1)
    """The number of the first choice, if labels are numbers."""
    num_choices: int | None = Field(default=None, ge=2, json_schema_extra=NOT_IN_DIGEST)
    """Largest number of choices in a row; from all rows when null."""

    @classmethod
    def example(cls) -> Self:
        return cls(num_choices=2)

    def read(self, values: Mapping[str, Any]) -> Row:
        row: Row = {name: text(values[name], name) for name in ("text", "context") if values.get(name) is not None}
        if "text" not in row:
            raise ValueError("has no text")
        row["choices"], names = _choices(values)
        if "label" in values:
            row["label"] = self._index(values["label"], row["choices"], names)
        if values.get("id") is not None:
            row["id"] = str(values["id"])
        return row

    def _index(self, label: Any, choices: Sequence[str], names: Sequence[str]) -> int:
        """The index of the choice that a label names; raises ValueError if there is none or more than one."""
        if isinstance(label, float) and label.is_integer():
            label = int(label)  # a column of whole numbers with a gap becomes floats in some formats
        if label is None or label != label or not str(label).strip():  # only NaN differs from itself
            raise ValueError("has no label")
        if isinstance(label, bool) or not isinstance(label, (str, int)):
            raise ValueError(f"has a label that is neither a number nor a text: {label!r}")
        label_text = str(label).strip()
        if label_text in names:
            return names.index(label_text)
        number = int(label_text) - self.first_number if label_text.isdecimal() else -1
        readings = {
            "number": {number} & {*range(len(choices))},
            "letter": {i for i in range(len(choices)) if label_text.upper() == LETTERS[i]},
            "words": {i for i, choice in enumerate(choices) if label_text == choice.strip()},
        }
        found = set().union(*readings.values()) if self.label_is == "auto" else readings[self.label_is]
        if not found:
            last, first = len(choices) - 1, self.first_number
            known = {"number": f"{first} to {last + first}", "letter": f"A to {LETTERS[last]}", "words": "a text"}
            ways = known.values() if self.label_is == "auto" else [known[self.label_is]]
            raise ValueError(
                f"has the label {label_text!r}, which names none of its {len(choices)} choices ({listed(choices)}):"
                f" write {', or '.join(ways)}"
            )
        if len(found) > 1:
            raise ValueError(
                f"has the label {label_text!r}, which may mean {listed([choices[i] for i in sorted(found)])};"
                " set task.label_is to number, letter or words"
            )
        return found.pop()

    def fit(self, splits: Splits) -> Self:
        most = max(len(row["choices"]) for rows in splits.named().values() for row in rows)
        return self.with_values(num_choices=max(most, self.num_choices or 2))

    def adapt(self, base: loading.Base) -> None:
        from pefttools.nn import score

        if layer := score.layer(base.model, base.head):
            score.fix_bias(layer[1])

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        pairs = [_pair(row, choice) for row in rows for choice in row["choices"]]
        flat = encode_pairs([a for a, _ in pairs], [b for _, b in pairs], tokenizer, self.max_length)
        ends = [0, *accumulate(len(row["choices"]) for row in rows)]
        parts = {name: [values[a:b] for a, b in pairwise(ends)] for name, values in flat.items()}
        columns: dict[str, list[Any]] = {
            **parts,
            "cut": [any(choices) for choices in parts["cut"]],
            "length": [len(choices) * max(map(len, choices)) for choices in parts["input_ids"]],
        }
        if rows and all("label" in row for row in rows):
            columns[LABELS] = [row["label"] for row in rows]
        return {**columns, "num_targets": [1] * len(rows)}

    def collate(self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int) -> dict[str, Tensor]:
        import torch

        numbers = [len(choices) for choices in columns["input_ids"]]
        most = max(numbers)
        flat = {
            # rows with fewer choices repeat their first one: padding alone would give NaN, and Longformer needs the
            # separators of every text
            name: [ids for choices in columns[name] for ids in (*choices, *[choices[0]] * (most - len(choices)))]
            for name in ("input_ids", "token_type_ids")
            if name in columns
        }
        batch = super().collate(flat, tokenizer, multiple)
        batch = {name: values.view(len(numbers), most, -1) for name, values in batch.items()}
        batch[MASK] = torch.arange(most)[None] < torch.tensor(numbers)[:, None]
        if LABELS in columns:
            batch[LABELS] = torch.tensor(columns[LABELS])
        return batch

    def probe(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        import torch

        batch = {name: torch.stack([values, values.roll(1, 0)], 1) for name, values in batch.items()}
        return {**batch, MASK: torch.ones(batch["input_ids"].shape[:2], dtype=torch.bool)}

    @property
    def fixed_inputs(self) -> bool:
        return False  # a row has one sequence per choice

    def longest(self, limit: int) -> int:
        return super().longest(limit) * (self.num_choices or 2)

    def repeat_to_length(self, row: Mapping[str, Any], length: int) -> dict[str, Any]:
        number = self.num_choices or 2
        each = max(1, length // number)
        full = {
            name: [(row[name][0] * each)[:each]] * number for name in ("input_ids", "token_type_ids") if name in row
        }
        return {**row, **full}

    def logits_of_rows(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Tensor]:
        return [row[mask] for row, mask in zip(self.logits(outputs, batch), batch[MASK], strict=True)]

    @property
    def num_calibrated(self) -> int:
        return 1

    def target_logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return _masked(outputs, batch)

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        from torch.nn import functional

        return functional.cross_entropy(_masked(outputs, batch), batch[LABELS], reduction="sum")

    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        logits = _masked(outputs, batch)
        rows = zip(logits.argmax(-1).tolist(), logits.softmax(-1).tolist(), batch[MASK].sum(-1).tolist(), strict=True)
        return [
            {"prediction": best, "probabilities": dict(zip(LETTERS, values[:number], strict=False))}
            for best, values, number in rows
        ]

    def aggregate(self, row: Row, encoded: Sequence[Mapping[str, Any]], parts: Sequence[Prediction]) -> Prediction:
        prediction = super().aggregate(row, encoded, parts)
        return {**prediction, "choice": row["choices"][prediction["prediction"]]}

    @property
    def answer_kind(self) -> Literal["class"]:
        return "class"

    def explained(
        self, row: Row, encoded: Sequence[Mapping[str, Any]], outputs: Any, batch: Mapping[str, Tensor], of: str | None
    ) -> list[Explained]:
        del encoded
        names = [*LETTERS[: len(row["choices"])]]
        index = names.index(chosen(of, "choice", names, names[self.predict(outputs, batch)[0]["prediction"]]))
        about = f"choice {names[index]}: {row['choices'][index]}"
        return [Explained(about, 0, lambda outputs, batch: log_odds(_masked(outputs, batch), index))]

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        from pefttools.metrics import combined

        answers = [p["prediction"] for p in predictions]
        values = combined("accuracy").compute(predictions=answers, references=list(references))
        assert values is not None
        return values

    def majority_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
        return self.scores_of([classes.most_frequent(row["label"] for row in train)] * len(rows), rows)

    def reference(self, row: Row) -> Any:
        return row.get("label")


def _masked(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits of the choices, −inf for choices that a row does not have; shape (rows, choices)."""
    return outputs.logits.float().masked_fill(~batch[MASK], float("-inf"))


def _pair(row: Row, choice: str) -> tuple[str, str]:
    """The two texts that the model reads for a choice; with a passage, the question and the choice form the second
    text."""
    return (row["context"], f"{row['text']} {choice}") if "context" in row else (row["text"], choice)


def _choices(values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """A row's choices, and their names if the row has any; raises ValueError for choices in no accepted form."""
    choices, names = values.get("choices"), []
    columns = {name: values[name] for name in COLUMNS if not _is_empty(values.get(name))}
    if choices is not None and columns:
        raise ValueError(f"has both choices and {next(iter(columns))}: give a list or separate columns, not both")
    if choices is None:
        if gaps := [name for name, last in pairwise(COLUMNS) if last in columns and name not in columns]:
            raise ValueError(f"has no {gaps[0]}, but a later choice")
        choices = list(columns.values())
    if isinstance(choices, Mapping) and isinstance(choices.get("text"), list):
        names = [str(name) for name in choices.get("label") or []]
        choices = choices["text"]
    if not isinstance(choices, (list, tuple)):
        raise ValueError(f"has choices that are not a list: {choices!r}")
    if names and len(names) != len(choices):
        raise ValueError(f"has {len(choices)} choices and {len(names)} names for them")
    if not 2 <= len(choices) <= len(LETTERS):
        many = "one choice only" if len(choices) == 1 else f"{len(choices) or 'no'} choices"
        raise ValueError(f"has {many}; a row needs 2 to {len(LETTERS)}")
    plain = (str(one) if isinstance(one, (int, float)) and not isinstance(one, bool) else one for one in choices)
    return [text(one, f"choice {LETTERS[i]}") for i, one in enumerate(plain)], names


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())
