"""What every task answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from pefttools import models
from pefttools.data.splitting import Row, Splits
from pefttools.registry import Choice
from pefttools.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Prediction = dict[str, Any]
"""What a model says of one row; at least `prediction`, comparable to the row's reference."""

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Task(Choice, ABC):
    """A task's settings and behaviour. What is learnt from the data (labels) is a setting `fit` fills in."""

    fields: ClassVar[Mapping[str, bool]]
    """Field -> whether a row must have it."""
    inputs: ClassVar[tuple[str, ...]]
    """The fields a model sees; rows with the same ones are duplicates."""
    primary: ClassVar[str]
    """The metric that models are chosen by; higher is better."""
    auto_class: ClassVar[str]
    """The transformers Auto class with the task's head."""
    peft_type: ClassVar[str]
    """peft's name for the task: without it peft leaves the head frozen and unsaved."""

    max_length: int = Field(default=256, ge=4)
    """Tokens a row may have; longer ones are cut, and counted."""

    @classmethod
    def example(cls) -> Self:
        """A fitted task, for probing what works with it."""
        return cls()

    @abstractmethod
    def read(self, values: Mapping[str, Any]) -> Row:
        """A checked row from a file's values. Raises ValueError saying what is wrong with it."""

    @abstractmethod
    def fit(self, splits: Splits) -> Self:
        """This task with what it must know of the data; raises UserError when the data cannot serve it."""

    @abstractmethod
    def refuse_strange(self, key: str, rows: Sequence[Row]) -> None:
        """Raises UserError when the fitted task cannot score these rows (labels it does not know)."""

    @abstractmethod
    def config_values(self) -> dict[str, Any]:
        """What the model's configuration must say (`num_labels`, `id2label` …)."""

    @abstractmethod
    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        """Columns of encoded rows: the model's inputs, targets, `num_targets`, and `cut` (whether text was lost)."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss summed over the batch's targets; shape ()."""

    @abstractmethod
    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        """One prediction a row."""

    @abstractmethod
    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        """Metrics as fractions, under their usual names."""

    @abstractmethod
    def reference(self, row: Row) -> Any:
        """What a prediction on this row is compared with; None where the row does not say."""

    def simplest(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
        """Metrics of the best answer that looks at no input (the majority class); empty where there is none."""
        del train, rows
        return {}

    def load(self, settings: models.BaseSettings, reporter: Reporter = SILENT) -> models.Base:
        """The base with this task's head."""
        return models.load(settings, self.auto_class, self.config_values(), self.peft_type, reporter)

    def collate(
        self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, multiple: int
    ) -> dict[str, Tensor]:
        """Tensors of one batch, padded to a multiple of `multiple` tokens; `labels` where the rows have them."""
        import torch

        inputs = {name: columns[name] for name in MODEL_INPUTS if name in columns}
        padded = tokenizer.pad(inputs, pad_to_multiple_of=multiple, return_tensors="pt")
        batch = {name: padded[name] for name in MODEL_INPUTS if name in padded}
        if columns.get("labels") is not None:
            batch["labels"] = torch.tensor(columns["labels"])
        return batch
