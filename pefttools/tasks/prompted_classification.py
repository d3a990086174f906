"""prompted_classification: a language model predicts the label that is most likely to follow a prompt.

Zero-shot with `strategy: frozen`, few-shot with `shots`, trained with any other strategy (Gao et al. 2021, LM-BFF). A
row is `text` (and `text_pair`) and `label`. The row's fields are filled into `prompt`, each class's text from
`verbalizers` is appended, and the classes are compared by log P(verbaliser | prompt), summed over its tokens. So a row
takes one forward pass per class. `shots` puts training rows with their labels before the prompt. `calibrate` divides by
the probabilities after a prompt without text (Zhao et al. 2021), which removes bias towards a label.

The loss, in training and in evaluation, is that of the right class's verbaliser only. Metrics: accuracy, macro-F1, and
precision, recall, F1 and support per class.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from pefttools.data import chat_template, chat_tokens, classes
from pefttools.data.batching import padded
from pefttools.data.fields import listed, natural
from pefttools.data.splitting import Row, Splits
from pefttools.data.texts import FIELDS, is_pair, mixed, read_texts
from pefttools.errors import UserError, unknown
from pefttools.settings import NOT_IN_DIGEST
from pefttools.tasks.base import IGNORED, LABELS, Columns, Prediction, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from pefttools.tasks._generation import Decoding

BETWEEN = "\n\n"
"""Separator between examples."""
SCORED = "scored"
"""Column and tensor that mark the tokens of a verbaliser."""


class PromptedClassification(Task):
    """One label per row, chosen by the likelihood of its verbaliser."""

    fields: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False, "label": True, "id": False}
    inputs: ClassVar[tuple[str, ...]] = FIELDS
    rewritable: ClassVar[tuple[str, ...]] = FIELDS
    samples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "a red apple", "label": "fruit"},
        {"text": "a green pear", "label": "fruit"},
        {"text": "a saw and a hammer", "label": "tool"},
        {"text": "the drill", "label": "tool"},
    )
    of_data: ClassVar[tuple[str, ...]] = ("max_length", "prompt", "verbalizers")
    only_with: ClassVar[Any] = {"shot_seed": ("task.shots above 0", lambda task: task.shots > 0)}
    primary: ClassVar[str] = "accuracy"
    pipeline_tag: ClassVar[str | None] = "text-generation"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_type: ClassVar[str | None] = "CAUSAL_LM"
    own_head: ClassVar[bool] = False
    texts_are_data: ClassVar[bool] = False
    takes_rounding: ClassVar[bool] = False

    max_length: int = Field(default=512, ge=4)
    """Maximum tokens of a prompt with its verbaliser; a longer one loses the end of the row's text."""
    prompt: str = "{text}\nLabel:"
    """The prompt, a format string with {text} and {text_pair}; double any other braces."""
    verbalizers: Mapping[str, str] = {}
    """Label -> its verbaliser, the text that stands for it; by default the label itself after a space."""
    shots: int = Field(default=0, ge=0)
    """Number of labelled examples per class to put before each row; they are training rows, drawn by a hash."""
    shot_seed: int = 0
    """Seed of the draw of examples."""
    normalize: Literal["sum", "mean"] = "sum"
    """Sum log-likelihoods over a verbaliser's tokens, or average them, which does not penalise long verbalisers."""
    calibrate: bool = False
    """Divide each label's probability by its probability for an empty text; adds one short forward pass per class."""
    chat: bool = False
    """Use the base model's chat template: the prompt is the user's turn, the verbaliser starts the answer."""
    temperature: float = Field(default=1.0, gt=0, json_schema_extra=NOT_IN_DIGEST)
    """By what the labels' log-probabilities are divided before they become probabilities; the prediction stays the
    same. `pefttools calibrate` finds it."""
    labels: tuple[str, ...] = Field(default=(), json_schema_extra=NOT_IN_DIGEST)
    """The classes; from the training rows when empty."""
    pair: bool | None = Field(default=None, json_schema_extra=NOT_IN_DIGEST)
    """Whether a row has two texts; from the training rows when null."""
    examples: tuple[Mapping[str, str], ...] = Field(default=(), json_schema_extra=NOT_IN_DIGEST)
    """The drawn examples."""

    @classmethod
    def example(cls) -> Self:
        return cls(labels=("one", "two", "three"), pair=False)

    @field_validator("prompt")
    @classmethod
    def _prompt_takes_the_text(cls, value: str) -> str:
        try:
            names = [name for _, name, _, _ in Formatter().parse(value) if name is not None]
        except ValueError as error:
            raise ValueError(f"is not a format string: {error}; double the braces that belong to the text") from error
        if unknown_names := [name for name in names if name not in FIELDS]:
            raise ValueError(f"has {{{unknown_names[0]}}}; only {{text}} and {{text_pair}} are known")
        if "text" not in names:
            raise ValueError("has no {text}, so that the model would not see the row")
        return value

    def read(self, values: Mapping[str, Any]) -> Row:
        row = read_texts(values, self.pair)
        if "label" in values:
            row["label"] = classes.label(values["label"])
        return row

    def fit(self, splits: Splits) -> Self:
        known = classes.names((*splits.train, *splits.spare))
        labels = self.labels or tuple(sorted(known, key=natural))
        problems = mixed(splits) + classes.too_few(set(labels)) + classes.new_in_splits(splits, labels)
        problems += [f"task.verbalizers: {unknown('label', k, labels)}" for k in self.verbalizers if k not in labels]
        texts = {label: self._verbalizer(label) for label in labels}
        if same := [label for label, one in texts.items() if list(texts.values()).count(one) > 1]:
            problems.append(f"task.verbalizers: {listed(same)} have the same verbaliser, {texts[same[0]]!r}")
        if is_pair(splits) and "{text_pair}" not in self.prompt:
            problems.append("task.prompt: has no {text_pair}, but the rows are pairs of texts")
        if not is_pair(splits) and "{text_pair}" in self.prompt:
            problems.append("task.prompt: has {text_pair}, but the rows have none")
        if problems:
            raise UserError(*problems)
        return self.with_values(labels=labels, pair=is_pair(splits), examples=self._drawn(splits.train, labels))

    def _drawn(self, rows: Sequence[Row], labels: Sequence[str]) -> list[Row]:
        """`shots` rows of every class, in the order of their hashes; the fitted task returns its stored examples."""
        if self.examples or not self.shots:
            return [dict(row) for row in self.examples]

        def place(row: Row) -> str:
            return hashlib.sha256(json.dumps([self.shot_seed, row["text"]]).encode()).hexdigest()

        ranked = sorted(rows, key=place)
        chosen = [row for label in labels for row in [r for r in ranked if r["label"] == label][: self.shots]]
        return [{name: row[name] for name in (*FIELDS, "label") if name in row} for row in sorted(chosen, key=place)]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labels

    def check_scorable(self, key: str, rows: Sequence[Row]) -> None:
        classes.check_labels(key, rows, self.labels)

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        del splits
        sizes = self._sizes(tokenizer)
        short, long = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        if self.normalize == "mean" or sizes[long] == sizes[short]:
            return []
        return [
            f"the verbaliser of {long!r} has {sizes[long]} tokens, that of {short!r} {sizes[short]}; longer verbalisers"
            " are less likely: give verbalizers of equal length, or set task.normalize=mean"
        ]

    def _sizes(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        """Label -> number of tokens of its verbaliser."""
        texts = [self._verbalizer(label) for label in self.labels]
        ids: Any = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return {label: len(one) for label, one in zip(self.labels, ids, strict=True)}

    def _verbalizer(self, label: str) -> str:
        verbalizer = self.verbalizers.get(label, f" {label}")
        return verbalizer.strip() if self.chat else verbalizer

    def _prompt_text(self, row: Mapping[str, str]) -> str:
        """The examples and the prompt, as text."""
        shots = "".join(self.prompt.format(**r) + self._example_label(r["label"]) + BETWEEN for r in self.examples)
        return shots + self.prompt.format(**{name: row.get(name, "") for name in FIELDS})

    def generation_input(self, row: Row) -> dict[str, Any]:
        prompt = self._prompt_text(row)
        return {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"text": prompt}

    def _head(self, row: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> str:
        """Everything before the verbaliser."""
        if not self.chat:
            return self._prompt_text(row)
        return chat_template.rendered(self.generation_input(dict(row))["messages"], tokenizer, None, ask=True)

    def prompts(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        return [ids for ids, _ in chat_tokens.tokens([self._head(row, tokenizer) for row in rows], tokenizer)]

    def decoding(self, tokenizer: PreTrainedTokenizerBase) -> Decoding:
        from pefttools.tasks._generation import Decoding

        longest = max(self._sizes(tokenizer).values())
        return Decoding(longest, stop_ids=self.generation_settings(tokenizer).stop_token_ids)

    def generation_settings(self, tokenizer: PreTrainedTokenizerBase) -> chat_template.GenerationSettings:
        if not self.chat:
            return super().generation_settings(tokenizer)
        ends = chat_tokens.ends(tokenizer, None)
        return chat_template.GenerationSettings(chat_template.standalone(tokenizer, None), tuple(ends))

    def _example_label(self, label: str) -> str:
        """The label's text in an example."""
        verbalizer = self._verbalizer(label)
        return f" {verbalizer}" if self.chat else verbalizer

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        return self._encoded(rows, tokenizer, training=False)

    def encode_training(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        return self._encoded(rows, tokenizer, training=True)

    def _encoded(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, training: bool) -> dict[str, list[Any]]:
        """One encoded row for each row and class; in training, only for the right class."""
        names = ("input_ids", LABELS, SCORED, "num_targets", "cut", "row", "candidate", "prior")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        empty: list[Row] = [dict.fromkeys(map(str, FIELDS), "")] if self.calibrate and not training else []
        for number, row in enumerate(rows):
            chosen = [row["label"]] if training else list(self.labels)
            for source in (row, *empty):
                for label, (ids, scored, cut) in zip(chosen, self._candidates(source, chosen, tokenizer), strict=True):
                    right = source is row and label == row.get("label")
                    columns["input_ids"].append(ids)
                    columns[LABELS].append(
                        [i if right and one else IGNORED for i, one in zip(ids, scored, strict=True)]
                    )
                    columns[SCORED].append(scored)
                    columns["num_targets"].append(sum(scored) if right else 0)
                    columns["cut"].append(cut and source is row and label == chosen[0])  # count a row once
                    columns["row"].append(number)
                    columns["candidate"].append(self.labels.index(label))
                    columns["prior"].append(source is not row)
        return columns

    def _candidates(
        self, row: Mapping[str, str], labels: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[tuple[list[int], list[int], bool]]:
        """For every label: token ids, the mask of its verbaliser's tokens, and whether the text was truncated.

        All labels lose the same tokens of the text, so that they are compared after the same prompt.
        """
        head, row_text = self._head(row, tokenizer), row.get("text", "")
        own_text = " ".join([self.prompt, *map(self._verbalizer, self.labels)])
        plain = not self.chat and not any(token in own_text for token in tokenizer.all_special_tokens)
        texts = [head + self._verbalizer(label) for label in labels]
        encoded = list(chat_tokens.tokens(texts, tokenizer, spelled_is_text=plain))
        room = min(self.max_length, tokenizer.model_max_length)
        excess = max(0, max(len(ids) for ids, _ in encoded) - room)
        begin = head.rfind(row_text)
        found = []
        for ids, offsets in encoded:
            of_text = [i for i, (start, end) in enumerate(offsets) if begin <= start < end <= begin + len(row_text)]
            dropped = {*of_text[-excess:]} if excess else set()
            positions = [i for i in range(len(ids)) if i not in dropped][-room:]
            scored = [int(end > len(head)) for _, end in offsets]
            found.append(([ids[i] for i in positions], [scored[i] for i in positions], excess > 0))
        return found

    def collate(self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int) -> dict[str, Tensor]:
        batch = super().collate(columns, tokenizer, multiple)
        batch[SCORED] = padded(columns[SCORED], batch["input_ids"].shape[1], 0)
        return batch

    def _likelihoods(self, outputs: Any, batch: Mapping[str, Tensor], scored: Tensor) -> Tensor:
        """The log-probability of every token that `scored` marks; shape (tokens,)."""
        chosen = self.logits(outputs, batch)[:, :-1][scored].float().log_softmax(-1)
        return chosen.gather(1, batch["input_ids"][:, 1:][scored][:, None])[:, 0]

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return -self._likelihoods(outputs, batch, batch[LABELS][:, 1:] != IGNORED).sum()

    def divergence(self, outputs: Any, others: Any, batch: Mapping[str, Tensor]) -> Tensor:
        from pefttools.nn import divergence

        is_target = batch[LABELS][:, 1:] != IGNORED
        one, other = (self.logits(o, batch)[:, :-1][is_target].float() for o in (outputs, others))
        return divergence.of_classes(one, other).sum()

    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        scored = batch[SCORED][:, 1:].bool()
        numbers = scored.sum(1).tolist()
        parts = self._likelihoods(outputs, batch, scored).split(numbers)
        return [
            {"log_likelihood": part.sum().item(), "num_tokens": number}
            for part, number in zip(parts, numbers, strict=True)
        ]

    def aggregate(self, row: Row, encoded: Sequence[Mapping[str, Any]], parts: Sequence[Prediction]) -> Prediction:
        del row
        scores = [0.0] * len(self.labels)
        for one, part in zip(encoded, parts, strict=True):
            score = part["log_likelihood"] / (max(1, part["num_tokens"]) if self.normalize == "mean" else 1)
            scores[one["candidate"]] += -score if one["prior"] else score
        shares = [math.exp((score - max(scores)) / self.temperature) for score in scores]
        probabilities = [share / sum(shares) for share in shares]
        best = max(range(len(scores)), key=scores.__getitem__)
        return {
            "prediction": self.labels[best],
            "probabilities": dict(zip(self.labels, probabilities, strict=True)),
        }

    @property
    def answer_kind(self) -> Literal["class"]:
        return "class"

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        return classes.scores([p["prediction"] for p in predictions], references, self.labels)

    def majority_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
        return self.scores_of([classes.most_frequent(row["label"] for row in train)] * len(rows), rows)

    def reference(self, row: Row) -> Any:
        return row.get("label")
