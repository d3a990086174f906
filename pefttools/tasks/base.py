"""What every task answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from pefttools.bases import class_heads, loading
from pefttools.data.batching import padded
from pefttools.data.chat_template import GenerationSettings
from pefttools.data.encoding import cut_rows
from pefttools.data.splitting import Row, Splits
from pefttools.reporter import SILENT, Reporter
from pefttools.tasks._row_contract import Prediction, RowContract

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pefttools.tasks._generation import Decoding

Columns = Mapping[str, Sequence[Any]]
"""Encoded rows: column -> one value an encoded row."""

LABELS = "labels"
IGNORED = -100
"""A label that is no target."""


class Task(RowContract, ABC):
    """A task's settings and behaviour. What is learnt from the data (labels) is a setting `fit` fills in."""

    pipeline_tag: ClassVar[str | None] = None
    """The hub's name for the task, for model cards; None where the hub has none."""
    auto_class: ClassVar[str]
    """The transformers Auto class with the task's head."""
    peft_type: ClassVar[str | None]
    """peft's name for the task: without it peft leaves the head frozen and unsaved. None where peft has none."""
    own_head: ClassVar[bool] = True
    """Whether the modules outside the backbone are always the head; a language model's belong to the pretrained."""
    has_class_head: ClassVar[bool] = False
    """Whether the head has an output for each of the task's `labels`, so that a trained one is matched by name."""
    new_tokens: ClassVar[tuple[str, ...]] = ()
    """Tokens the task adds to the vocabulary; their embeddings belong to the head."""
    texts_are_data: ClassVar[bool] = True
    """Whether a text that spells a special token (`</s>`, `[MASK]`) is text all the same; not so in chat templates."""
    model_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "token_type_ids")
    """What of a batch the model is given."""
    generates: ClassVar[bool] = False
    """Whether answers are texts that are generated (`generate`)."""
    takes_rounding: ClassVar[bool] = True
    """Whether answers stay what they are in bf16; not those that are likelihoods under a vocabulary's logits."""

    max_length: int = Field(default=256, ge=4)
    """Tokens a row may have; longer ones are cut, and counted."""
    truncation: Literal["cut", "refuse"] = "cut"
    """What to do with rows of more tokens: cut and count them, or refuse the data."""

    @classmethod
    def example(cls) -> Self:
        """A fitted task, for probing what works with it."""
        return cls()

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """What the user should be warned of in the data; asked once, of the fitted task."""
        del splits, tokenizer
        return []

    @property
    def reads_plain_text(self) -> bool:
        """Whether a plain tokenizer reads a row's one text as this fitted task does; model cards show that code."""
        return False

    def config_values(self) -> dict[str, Any]:
        """What the model's configuration must say (`num_labels`, `id2label` …)."""
        return {}

    @abstractmethod
    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        """Columns of encoded rows: the model's inputs, targets, `num_targets`, and `cut` (whether text was lost).

        A row may become several encoded rows; then `row` holds each one's index in `rows`. `length` holds the tokens
        an encoded row takes where that is not the number of its `input_ids`. Further columns are for `aggregate`.
        """

    def encode_training(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        """The same for rows to train on."""
        return self.encode(rows, tokenizer)

    def truncated(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[bool]:
        """Whether each row to predict on loses text to the model's limit.

        Raises:
            UserError, ValueError: one cannot be encoded.
        """
        return cut_rows(self.encode(rows, tokenizer), len(rows))

    @abstractmethod
    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss summed over the batch's targets; shape ()."""

    @abstractmethod
    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        """What is said of every encoded row."""

    def aggregate(self, row: Row, encoded: Sequence[Mapping[str, Any]], parts: Sequence[Prediction]) -> Prediction:
        """The prediction on a row, from its encoded rows and the prediction on each of them."""
        del row, encoded
        return parts[0]

    def generate(
        self, model: nn.Module, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[int, Prediction]]:
        """(index, generated answer) of every row, in any order, as they come; only where the task `generates`."""
        del model, rows, tokenizer
        assert not self.generates, f"{self.name} generates, and must say how"
        return iter(())

    def num_generated(self, number: int) -> int:
        """How many of so many rows to score are answered by generation."""
        del number
        return 0

    def asked(self, row: Row) -> dict[str, Any]:
        """What plain transformers is given of a row to write an answer to; only where the task has `decoding`.

        `messages` (and `tools`) for the chat template, or a `text` for the tokenizer.
        """
        raise NotImplementedError(f"{self.name} writes no text about {row}")

    def prompts(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Token ids of the same."""
        del rows, tokenizer
        raise NotImplementedError(f"{self.name} writes no text")

    def decoding(self, tokenizer: PreTrainedTokenizerBase) -> Decoding | None:
        """How the model writes text; None where nothing is written."""
        del tokenizer
        return None

    def generation_settings(self, tokenizer: PreTrainedTokenizerBase) -> GenerationSettings:
        """The chat template and the tokens that end an answer, as training had them, for artifacts to carry."""
        end = tokenizer.eos_token_id
        return GenerationSettings(None, (end,) if isinstance(end, int) and self.generates else ())

    def load(self, settings: loading.BaseSettings, reporter: Reporter = SILENT, empty: bool = False) -> loading.Base:
        """The base with this task's head; without weights (on the meta device) when `empty`."""
        base = loading.load(
            settings,
            self.auto_class,
            self.config_values(),
            self.peft_type,
            reporter,
            empty=empty,
            own_head=self.own_head,
            added=self.new_tokens,
            texts_are_data=self.texts_are_data,
        )
        if self.has_class_head:
            class_heads.start(base, settings, self.auto_class, getattr(self, "labels", ()))
        self.adapt(base)
        return base

    def adapt(self, base: loading.Base) -> None:
        """Change a loaded base where transformers' class is not quite the task's."""
        del base

    def collate(self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int) -> dict[str, Tensor]:
        """Tensors of one batch, padded to a multiple of `multiple` tokens; `labels` where the rows have them.

        Like `tokenizer.pad`, which goes through a batch value by value; never to more tokens than the model takes.
        Padding comes last, but first for a head that takes what is at the last place. Labels that are lists as long as
        their `input_ids` are padded with `IGNORED`.
        """
        import torch

        lengths = [len(ids) for ids in columns["input_ids"]]
        longest = max(*lengths, 1)  # a text may be characters that the tokenizer drops
        width = max(longest, min(-(-longest // multiple) * multiple, tokenizer.model_max_length))
        left = self.own_head and tokenizer.padding_side == "left"
        values: dict[str, Any] = {
            "input_ids": tokenizer.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": tokenizer.pad_token_type_id,
        }
        given = {**columns, "input_ids": [ids or [tokenizer.pad_token_id] for ids in columns["input_ids"]]}
        if "attention_mask" in tokenizer.model_input_names:
            given.setdefault("attention_mask", [[1] * len(ids) for ids in given["input_ids"]])
        batch = {name: padded(given[name], width, value, left) for name, value in values.items() if name in given}
        labels = columns.get(LABELS)
        if labels is not None:
            per_token = isinstance(labels[0], Sequence) and all(
                len(row) == length for row, length in zip(labels, lengths, strict=True)
            )
            batch[LABELS] = padded(labels, width, IGNORED) if per_token else torch.tensor(labels)
        return batch

    def collate_training(
        self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int
    ) -> dict[str, Tensor]:
        """The same for a batch to train on (masked at random, packed)."""
        return self.collate(columns, tokenizer, multiple)

    def inputs_of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of a batch the model is given."""
        return {name: value for name, value in batch.items() if name in self.model_inputs}

    def logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The model's logits, without those of virtual tokens: shape (rows, …) or (rows, tokens, …)."""
        return without_virtual(outputs.logits, batch)

    @property
    def has_target_logits(self) -> bool:
        """Whether every target is one of several classes, so that `target_logits` has an answer."""
        return type(self).target_logits is not Task.target_logits

    def target_logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits that the loss compares with the targets, shape (targets, classes), in fp32; −inf for no class.

        Raises:
            NotImplementedError: the targets are no classes (numbers, places in a text, several labels a row).
        """
        raise NotImplementedError(f"{self.name} has no targets that are one of several classes")

    def logits_of_rows(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """The logits of every encoded row without those of padding, which depend on the rows beside it."""
        logits = self.logits(outputs, batch)
        if "attention_mask" not in batch:
            return list(logits)
        return [
            row[mask] if row.ndim > 1 and len(row) == len(mask) else row
            for row, mask in zip(logits, batch["attention_mask"].bool(), strict=True)
        ]

    @property
    def fixed_inputs(self) -> bool:
        """Whether the model is always given the same one sequence for an encoded row, its `input_ids` padded right.

        Then what frozen blocks make of a row can be computed once. Not so where training draws its inputs (masks),
        lays rows together (packing), or a row is several sequences (choices).
        """
        return type(self).collate_training is Task.collate_training

    def shown(self, encoded: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
        """An encoded row as people read it: its text with special tokens, and its targets."""
        return f"{tokenizer.decode(encoded['input_ids'])}\n-> {encoded.get(LABELS)}"

    def to_transformers(self, model: PreTrainedModel) -> PreTrainedModel:
        """A merged model as transformers alone loads it: new tokens are in its table, scores in the labels' unit."""
        from pefttools.nn import new_tokens, score

        score.plain(model)
        return new_tokens.fold(model)

    def probe(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of `input_ids` and `attention_mask` as this task's model takes it; for trying what fits."""
        return batch

    def longest(self, limit: int) -> int:
        """Tokens of the longest encoded row under a model that takes `limit`."""
        return min(self.max_length, limit)

    def repeat_to_length(self, row: Mapping[str, Any], length: int) -> dict[str, Any]:
        """An encoded row made `length` tokens long by repeating; for estimating memory."""
        tokens = len(row["input_ids"])

        def stretch(value: Any) -> Any:
            same = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == tokens
            return [value[min(i, tokens - 1)] for i in range(length)] if same else value

        return {name: stretch(value) for name, value in row.items()}


def without_virtual(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits a token without those of virtual tokens (prompt tuning), which come first; others as they are."""
    tokens = batch["input_ids"].shape[-1]
    return logits[:, -tokens:] if logits.ndim == 3 and logits.shape[1] > tokens else logits
