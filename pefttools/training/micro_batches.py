"""The rows of every step, and a process's share of them as micro-batches on its device."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pefttools.data.batching import batches, step_multiple, steps, token_budget
from pefttools.data.columns import Columns
from pefttools.data.masking import DRAW
from pefttools.device import sent
from pefttools.nn import input_embeddings
from pefttools.nn.sharding import is_sharded
from pefttools.objectives.base import NUMBER, Batch, Forward
from pefttools.recipe.recipe import Recipe
from pefttools.recipe.train_settings import TrainSettings
from pefttools.training.step import MicroBatch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from pefttools.nn.output_layer import OutputLayer
    from pefttools.tasks.base import Task
    from pefttools.training.features import Features


def num_steps(settings: TrainSettings, num_rows: int) -> int:
    """Number of updates of a run."""
    return max(1, round(settings.epochs * math.ceil(num_rows / settings.batch_size)))


def collated(
    task: Task, columns: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, multiple: int
) -> dict[str, Tensor]:
    """Tensors of one training batch, with the rows' numbers where the encoded rows have them."""
    batch = task.collate_training(columns, tokenizer, multiple)
    if NUMBER in columns:
        batch[NUMBER] = torch.tensor(columns[NUMBER])
    return batch


@dataclass
class MicroBatches:
    """The encoded training rows in the order of the steps.

    Every process knows the rows of all steps, so that the number of targets in a step needs no communication.
    """

    recipe: Recipe
    model: nn.Module
    """The model as prepared by Accelerate."""
    bare: nn.Module
    """The same model without Accelerate's wrapper."""
    encoded: Dataset
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    features: Features | None = None
    """Cached outputs of the frozen blocks, by row."""
    layer: OutputLayer | None = None
    """The output layer to leave out of the passes."""

    def __post_init__(self) -> None:
        settings = self.recipe.train
        self.lengths = array("I", self.encoded["length"][:])
        self.targets = array("I", self.encoded["num_targets"][:])
        self.columns = Columns(self.encoded)
        self.steps_per_epoch = math.ceil(len(self.lengths) / settings.batch_size)
        self.num_steps = num_steps(settings, len(self.lengths))
        self.epoch: tuple[int, Sequence[list[int]]] = (-1, [])
        self.is_sharded = is_sharded(self.bare)
        self.divisor = 1
        """By how much micro-batches are smaller than the settings allow, because memory ran out."""

    def num_targets(self, rows: list[int]) -> int:
        """Number of targets of these rows, at least 1."""
        return max(1, sum(self.targets[row] for row in rows))

    def num_tokens(self, rows: list[int]) -> int:
        return sum(self.lengths[row] for row in rows)

    def rows(self, step: int) -> list[int]:
        """Indices of the rows of a step, the same on every process; steps count from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self.epoch[0] != epoch:
            self.epoch = (epoch, steps(self.lengths, self.recipe.train.batch_size, self.recipe.seed, epoch))
        return self.epoch[1][place]

    def micro_batches(self, rows: list[int]) -> Iterator[MicroBatch]:
        """This process's share of a step, micro-batch by micro-batch.

        If a step has fewer rows than there are processes, those without rows compute one with weight 0. Processes that
        share the weights compute equally many micro-batches, because every pass gathers weights.
        """
        accelerator, multiple = self.accelerator, self.multiple
        found = self.split(self.share(rows))
        parts = [(part, 1.0) for part in found] + [(rows[:1], 0.0)] * (self._most(rows) - len(found))
        for number, (part, weight) in enumerate(parts, 1):
            batch = collated(self.recipe.task, self._columns(part), self.tokenizer, multiple)
            on_device = {name: sent(value, accelerator.device) for name, value in batch.items()}
            without_exchange = partial(accelerator.no_sync, self.model)
            yield MicroBatch(on_device, self.forward(part), weight, without_exchange, is_last=number == len(parts))

    @property
    def multiple(self) -> int:
        """Number of tokens of whose multiple a batch is padded to."""
        return step_multiple(self.recipe.train.pad_multiple, self.accelerator.device.type)

    def _most(self, rows: list[int]) -> int:
        """How many micro-batches of a step this process computes, with those of weight 0."""
        processes = range(self.accelerator.num_processes) if self.is_sharded else [self.accelerator.process_index]
        return max(1, *(len(self.split(self.share(rows, process))) for process in processes))

    def share(self, rows: list[int], process: int | None = None) -> list[int]:
        """A process's rows of a step; this process's if it is None."""
        first = self.accelerator.process_index if process is None else process
        return sorted(rows, key=lambda i: -self.lengths[i])[first :: self.accelerator.num_processes]

    def split(self, rows: list[int]) -> list[list[int]]:
        """The rows of every micro-batch."""
        settings = self.recipe.train
        max_tokens = settings.tokens_at_once(token_budget(self.accelerator.device.type))
        limits = (max(1, settings.micro_batch_size // self.divisor), max(1, max_tokens // self.divisor))
        return list(batches(rows, self.lengths, *limits, self.multiple))

    def halve(self, rows: list[int]) -> int | None:
        """Halve the micro-batches of this and later steps.

        Returns:
            the most rows of this step's micro-batches now; None, with nothing changed, if they have one row already.
        """
        before = self.divisor
        most = max(map(len, self.split(self.share(rows))), default=1)
        while most > 1:
            self.divisor *= 2
            now = max(map(len, self.split(self.share(rows))))
            if now < most:
                return now
        self.divisor = before
        return None

    def _columns(self, rows: list[int]) -> Mapping[str, Any]:
        """The columns of these rows, with the seeds of what the task draws for them in this epoch (masks).

        So neither micro-batches nor processes nor an objective that repeats a step's passes change what is drawn.
        """
        columns = self.columns[rows]
        if not self.recipe.task.draws_inputs:
            return columns
        texts = [f"{self.recipe.seed} {self.epoch[0]} {row}" for row in rows]
        return {**columns, DRAW: [int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") for text in texts]}

    def forward(self, rows: list[int]) -> Forward:
        """A function that runs the model on a batch of these rows."""

        def run(batch: Batch, embeddings: Tensor | None = None) -> Any:
            with ExitStack() as stack:
                if self.features:
                    assert embeddings is None, "an objective that changes embeddings has reuses_features = False"
                    stack.enter_context(self.features.substituted(rows, batch))
                stack.enter_context(input_embeddings.substituted(self.bare, batch["input_ids"], embeddings))
                inputs = self.recipe.task.inputs_of(batch)
                return self.layer.run(self.model, inputs) if self.layer else self.model(**inputs)

        return run
