"""The interface of every task."""

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
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.settings import NOT_IN_DIGEST
from pefttools.tasks._row_contract import Prediction, RowContract

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pefttools.tasks._explained import Explained
    from pefttools.tasks._generation import Decoding

Columns = Mapping[str, Sequence[Any]]
"""Encoded rows: column -> one value per encoded row."""

LABELS = "labels"
IGNORED = -100
"""A label that the loss ignores."""


class Task(RowContract, ABC):
    """A task's settings and behaviour. `fit` sets the settings that depend on the data (labels)."""

    pipeline_tag: ClassVar[str | None] = None
    """The hub's name of the task, for model cards; None if it has none."""
    auto_class: ClassVar[str]
    """The transformers Auto class with the task's head."""
    peft_type: ClassVar[str | None]
    """peft's name of the task, with which peft trains and saves the head; None if it has none."""
    own_head: ClassVar[bool] = True
    """Whether all modules outside of the backbone are the head; in language models they are pretrained."""
    has_class_head: ClassVar[bool] = False
    """Whether the head has one output per class in `labels`, so that a trained head is matched by class names."""
    new_tokens: ClassVar[tuple[str, ...]] = ()
    """Tokens that the task adds to the vocabulary; their embeddings belong to the head."""
    texts_are_data: ClassVar[bool] = True
    """Whether the spelling of a special token (`</s>`, `[MASK]`) in a text is plain text; not with chat templates."""
    model_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "token_type_ids")
    """The tensors of a batch that are the model's inputs."""
    generates: ClassVar[bool] = False
    """Whether predictions are generated texts (`generate`)."""
    defers_output_layer: ClassVar[bool] = False
    """Whether losses and predictions also work on outputs whose output layer was left out (`nn.output_layer`)."""
    takes_rounding: ClassVar[bool] = True
    """Whether predictions may be computed in bf16; False for likelihoods over a vocabulary, which need fp32."""

    max_length: int = Field(default=256, ge=4)
    """Maximum tokens of a row; longer rows are truncated and counted."""
    truncation: Literal["cut", "refuse"] = "cut"
    """What to do with longer rows: truncate and count them (`cut`), or raise an error (`refuse`)."""
    extra_metrics: tuple[str, ...] = Field(default=(), json_schema_extra=NOT_IN_DIGEST)
    """Further metrics by name: your own ones, which a plug-in folder has or this process registered."""

    @classmethod
    def example(cls) -> Self:
        """A fitted task for compatibility tests."""
        return cls()

    def all_metrics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], reporter: Reporter = SILENT
    ) -> dict[str, Any]:
        """The task's `metrics`, and those of `extra_metrics`; a warning names those that this process does not know.

        Raises:
            UserError: a metric fails, or has the name of another.
        """
        values = self.metrics(predictions, references)
        if not self.extra_metrics:
            return values
        from pefttools.metrics import _own

        problems = {name: _own.unknown_names([name]) for name in self.extra_metrics}
        for one in problems.values():
            for problem in one:
                reporter.warn(f"task.extra_metrics: {problem}; its score is left out")
        known = [name for name, one in problems.items() if not one]
        found = _own.scores(known, predictions, references, self.class_names)
        if twice := sorted({*values, "loss"} & {*found}):
            raise UserError(f"task.extra_metrics: the task has a metric {', '.join(twice)} already; rename yours")
        return {**values, **found}

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Warnings about the data, from the fitted task; called once per run."""
        del splits, tokenizer
        return []

    @property
    def reads_plain_text(self) -> bool:
        """Whether `tokenizer(text)` alone encodes rows like this fitted task; then model cards show that code."""
        return False

    def config_values(self) -> dict[str, Any]:
        """Values of the model's configuration (`num_labels`, `id2label` …)."""
        return {}

    @abstractmethod
    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        """Columns of encoded rows: the model's inputs, targets, `num_targets`, and `cut` (whether text was truncated).

        A row may become several encoded rows; then `row` is each one's index in `rows`. `length` is the number of
        tokens of an encoded row, if it differs from that of `input_ids`. `aggregate` may use further columns.
        """

    def encode_training(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        """Columns of encoded training rows, like `encode`."""
        return self.encode(rows, tokenizer)

    def truncated(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[bool]:
        """Whether each row to predict on is truncated to the model's limit.

        Raises:
            UserError, ValueError: a row cannot be encoded.
        """
        return cut_rows(self.encode(rows, tokenizer), len(rows))

    @abstractmethod
    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss summed over the batch's targets; shape ()."""

    @abstractmethod
    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        """The prediction on every encoded row."""

    def aggregate(self, row: Row, encoded: Sequence[Mapping[str, Any]], parts: Sequence[Prediction]) -> Prediction:
        """The prediction on a row, from its encoded rows and the prediction on each of them."""
        del row, encoded
        return parts[0]

    def generate(
        self, model: nn.Module, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[int, Prediction]]:
        """Yield (index, prediction) for every row in any order; only for tasks that `generates`."""
        del model, rows, tokenizer
        assert not self.generates, f"{self.name} generates, and must override this"
        return iter(())

    def num_generated(self, number: int) -> int:
        """How many of `number` rows to generate answers for in an evaluation."""
        del number
        return 0

    def generation_input(self, row: Row) -> dict[str, Any]:
        """The input for generation with plain transformers; only for tasks with `decoding`.

        It is `messages` (and `tools`) for the chat template, or a `text` for the tokenizer.
        """
        raise NotImplementedError(f"{self.name} generates no text for {row}")

    def prompts(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Token ids of each row's input for generation."""
        del rows, tokenizer
        raise NotImplementedError(f"{self.name} generates no text")

    def decoding(self, tokenizer: PreTrainedTokenizerBase) -> Decoding | None:
        """The settings of generation; None for tasks that generate nothing."""
        del tokenizer
        return None

    def generation_settings(self, tokenizer: PreTrainedTokenizerBase) -> GenerationSettings:
        """The chat template and the end tokens of training, for exported artifacts."""
        end = tokenizer.eos_token_id
        return GenerationSettings(None, (end,) if isinstance(end, int) and self.generates else ())

    def load(self, settings: loading.BaseSettings, reporter: Reporter = SILENT, empty: bool = False) -> loading.Base:
        """The base model with this task's head; without weights (on the meta device) if `empty`."""
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
        """Adapt a loaded base model if transformers' class does not fit the task exactly."""
        del base

    def collate(self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int) -> dict[str, Tensor]:
        """Tensors of one batch, padded to a multiple of `multiple` tokens; `labels` if the rows have them.

        Like `tokenizer.pad`, which is slower, but never padded beyond the model's limit. Padding is on the right, or on
        the left for heads that read the last position. Labels that are as long as their `input_ids` are padded with
        `IGNORED`.
        """
        import torch

        lengths = [len(ids) for ids in columns["input_ids"]]
        longest = max(*lengths, 1)  # a text may consist of characters that the tokenizer drops
        width = max(longest, min(-(-longest // multiple) * multiple, tokenizer.model_max_length))
        left = self.own_head and tokenizer.padding_side == "left"
        values: dict[str, Any] = {
            "input_ids": tokenizer.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": tokenizer.pad_token_type_id,
        }
        inputs = {**columns, "input_ids": [ids or [tokenizer.pad_token_id] for ids in columns["input_ids"]]}
        if "attention_mask" in tokenizer.model_input_names:
            inputs.setdefault("attention_mask", [[1] * len(ids) for ids in inputs["input_ids"]])
        batch = {name: padded(inputs[name], width, value, left) for name, value in values.items() if name in inputs}
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
        """Tensors of one training batch, like `collate` (masked at random, packed)."""
        return self.collate(columns, tokenizer, multiple)

    def inputs_of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a batch that are the model's inputs."""
        return {name: value for name, value in batch.items() if name in self.model_inputs}

    def logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The model's logits without those of virtual tokens; shape (rows, …) or (rows, tokens, …)."""
        return without_virtual(outputs.logits, batch)

    def row_logits(self, outputs: Any) -> Tensor | None:
        """Logits of one more target per row, shape (rows, classes), of tasks that have one besides `logits`."""
        del outputs
        return None

    @property
    def has_target_logits(self) -> bool:
        """Whether every target is one of several classes, so that `target_logits` is defined."""
        return type(self).target_logits is not Task.target_logits

    def target_logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits of the targets in fp32, shape (targets, classes); −inf for classes that do not exist.

        Raises:
            NotImplementedError: targets are not classes (numbers, positions in a text, several labels per row).
        """
        raise NotImplementedError(f"{self.name} has no targets that are one of several classes")

    def target_classes(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The index of every target's class, shape (targets,), in the order of `target_logits`, whose loss is the
        cross-entropy with these."""
        labels = batch[LABELS]
        return labels if labels.ndim == 1 else labels[labels != IGNORED]

    @property
    def can_explain(self) -> bool:
        """Whether `explained` is defined."""
        return type(self).explained is not Task.explained

    def explained(
        self, row: Row, encoded: Sequence[Mapping[str, Any]], outputs: Any, batch: Mapping[str, Tensor], of: str | None
    ) -> list[Explained]:
        """The answers on a row that can be explained: the predicted ones, or the one that `of` names.

        Raises:
            UserError: the task has no answer `of`.
        """
        del row, encoded, outputs, batch, of
        raise NotImplementedError(f"{self.name} has no answers that can be explained")

    @property
    def num_calibrated(self) -> int | None:
        """Number of outputs of the head's last layer, if their softmax or sigmoid are the predicted probabilities; None
        where the head does not make them."""
        return self.config_values()["num_labels"] if self.has_class_head else None

    def calibration_logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The logits whose softmax are the predicted probabilities, shape (targets, classes), and the right classes."""
        return self.target_logits(outputs, batch), self.target_classes(batch)

    def divergence(self, outputs: Any, others: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """KL(p‖q) + KL(q‖p), summed over the batch's targets, of the distributions that two outputs predict; shape ().

        It is in the unit of `loss`: a target whose loss is a mean of several terms has the mean of their divergences.
        """
        from pefttools.nn import divergence

        return divergence.of_classes(self.target_logits(outputs, batch), self.target_logits(others, batch)).sum()

    @property
    def has_divergence(self) -> bool:
        """Whether `divergence` is defined."""
        return self.has_target_logits or type(self).divergence is not Task.divergence

    def logits_of_rows(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """The logits of every encoded row without those of padding, which depend on the batch."""
        logits = self.logits(outputs, batch)
        if "attention_mask" not in batch:
            return list(logits)
        return [
            row[mask] if row.ndim > 1 and len(row) == len(mask) else row
            for row, mask in zip(logits, batch["attention_mask"].bool(), strict=True)
        ]

    @property
    def draws_inputs(self) -> bool:
        """Whether training draws or packs a row's inputs anew in every epoch (masks, packing)."""
        return type(self).collate_training is not Task.collate_training

    @property
    def fixed_inputs(self) -> bool:
        """Whether the model's input for an encoded row is always the same sequence, its `input_ids` padded on the
        right.

        Then the outputs of frozen blocks can be cached. It is False if training randomises inputs (masks), packs rows,
        or has several sequences per row (choices).
        """
        return not self.draws_inputs

    def shown(self, encoded: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
        """An encoded row in readable form: its text with special tokens, and its targets."""
        return f"{tokenizer.decode(encoded['input_ids'])}\n-> {encoded.get(LABELS)}"

    def to_transformers(self, model: PreTrainedModel) -> PreTrainedModel:
        """A merged model that plain transformers can load: new tokens are in its table, outputs in the labels' unit."""
        from pefttools.nn import new_tokens, score

        score.plain(model)
        return new_tokens.fold(model)

    def probe(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert a batch of `input_ids` and `attention_mask` to this task's inputs; for compatibility tests."""
        return batch

    def longest(self, limit: int) -> int:
        """Number of tokens of the longest encoded row for a model with the given limit."""
        return min(self.max_length, limit)

    def repeat_to_length(self, row: Mapping[str, Any], length: int) -> dict[str, Any]:
        """An encoded row repeated to `length` tokens, to estimate memory."""
        tokens = len(row["input_ids"])

        def stretch(value: Any) -> Any:
            per_token_value = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == tokens
            return [value[min(i, tokens - 1)] for i in range(length)] if per_token_value else value

        return {name: stretch(value) for name, value in row.items()}


def without_virtual(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits per token without those of virtual tokens (prompt tuning), which come first; other logits unchanged."""
    tokens = batch["input_ids"].shape[-1]
    return logits[:, -tokens:] if logits.ndim == 3 and logits.shape[1] > tokens else logits
