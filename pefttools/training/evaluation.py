"""Evaluation: metrics and one prediction a row, in the rows' order.

Rows of similar length share a batch, and several processes share the rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttools.data.batching import batches, eval_budget, narrowed, pad_multiple, pass_cost
from pefttools.data.encoding import Encoded
from pefttools.data.splitting import Row
from pefttools.device import is_out_of_memory, sent
from pefttools.reporter import SILENT, Reporter
from pefttools.tasks.base import LABELS, Prediction, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.nn.output_layer import OutputLayer
    from pefttools.training.features import Features

MAX_ROWS = 256
READ = 1000
"""Number of rows whose encoded rows are read from a `Dataset` at once."""


@dataclass(frozen=True)
class Scored:
    """Metrics and predictions on some rows."""

    metrics: dict[str, Any]
    """The task's metrics, and `loss`, the mean over targets."""
    predictions: list[Prediction]


@dataclass(frozen=True)
class Evaluator:
    """Runs a model on rows of a task. Each process computes its share, and all processes get all results."""

    model: nn.Module
    task: Task
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator | None = None
    reporter: Reporter = SILENT
    layer: OutputLayer | None = None
    """The output layer to leave out of the passes of `predictions`."""

    def score(
        self,
        encoded: Dataset,
        rows: Sequence[Row],
        title: str,
        generate: bool = False,
        features: Features | None = None,
    ) -> Scored:
        """Metrics and predictions on labelled rows.

        Args:
            generate: whether a task that generates text does so for the first `Task.num_generated` rows.
            features: cached features of these rows, see `outputs`.
        """
        task = self.task
        predictions, loss = self.predictions(encoded, rows, title, features)
        if generate and task.generates and (number := task.num_generated(len(rows))):
            texts = self.generated(rows[:number], f"{title}, generating")
            predictions[:number] = [{**p, **text} for p, text in zip(predictions[:number], texts, strict=True)]
        metrics = task.all_metrics(predictions, [task.reference(row) for row in rows], self.reporter)
        return Scored({**metrics, "loss": loss / max(1, sum(encoded["num_targets"]))}, predictions)

    def predictions(
        self, encoded: Dataset | Encoded, rows: Sequence[Row], title: str, features: Features | None = None
    ) -> tuple[list[Prediction], float]:
        """One prediction a row, in the rows' order, and the summed loss (0 where rows have no targets)."""
        mine = self._share(len(encoded["length"]))
        found: list[tuple[int, Prediction]] = []
        total = 0.0
        with self.reporter.bar(title, len(mine), "rows") as bar:
            for indices, batch, outputs in self.outputs(encoded, mine, features, self.layer):
                if LABELS in batch:
                    total += self.task.loss(outputs, batch).item()
                found += zip(indices, self.task.predict(outputs, batch), strict=True)
                bar.advance(len(indices))
        return aggregated(self.task, rows, encoded, dict(self._gathered(found))), sum(self._gathered([total]))

    def outputs(
        self,
        encoded: Dataset | Encoded,
        indices: Sequence[int],
        features: Features | None = None,
        layer: OutputLayer | None = None,
    ) -> Iterator[tuple[list[int], dict[str, Tensor], Any]]:
        """Run the model in evaluation mode; yields each batch's indices, tensors and outputs.

        A batch that does not fit into memory is computed in halves.

        Args:
            indices: the encoded rows to run on.
            features: cached outputs of the frozen blocks for every row, where there are some.
            layer: the output layer to leave out.
        """
        from pefttools.nn.sharding import is_sharded, without_gradients

        model, task, lengths = self.model, self.task, encoded["length"][:]
        device = next(model.parameters()).device
        was_training = model.training
        multiple = pad_multiple(device.type)
        model.eval()
        with without_gradients(model):
            parts = deque(_parts(indices, lengths, device.type))
            fillers = self._fillers(lengths, len(parts))
            while parts or fillers:
                part, is_filler = (parts.popleft(), False) if parts else (fillers.pop(), True)
                columns: Any = encoded[part]
                batch = {k: sent(v, device) for k, v in task.collate(columns, self.tokenizer, multiple).items()}
                try:
                    with features.substituted(part, batch) if features else nullcontext():
                        inputs = task.inputs_of(batch)
                        outputs = layer.run(model, inputs) if layer else model(**inputs)
                except (MemoryError, RuntimeError) as error:
                    if len(part) == 1 or not is_out_of_memory(error) or is_sharded(model):
                        raise
                    parts.extendleft([part[len(part) // 2 :], part[: len(part) // 2]])
                    continue
                if not is_filler:
                    yield part, batch, outputs
        if was_training:
            model.train()

    def _fillers(self, lengths: Sequence[int], number: int) -> list[list[int]]:
        """Batches without effect, for a process that shares the model's weights and has fewer batches than another.

        Args:
            number: of batches that this process has.
        """
        from pefttools.nn.sharding import is_sharded

        if not is_sharded(self.model):
            return []
        assert self.accelerator, "only processes of a launch share weights"
        device = self.accelerator.device.type
        shares = [self._share(len(lengths), process) for process in range(self.accelerator.num_processes)]
        most = max(len(list(_parts(share, lengths, device))) for share in shares)
        return [[0]] * (most - number)

    def _generates_alone(self) -> bool:
        """Whether every process generates all rows: where each of them is part of every pass, and where texts are
        sampled, because the sampled text of a row depends on the rows that are generated with it."""
        from pefttools.nn.sharding import is_sharded

        decoding = self.task.decoding(self.tokenizer)
        return is_sharded(self.model) or (decoding is not None and decoding.temperature > 0)

    def generated(self, rows: Sequence[Row], title: str) -> list[Prediction]:
        """One generated prediction a row, in the rows' order."""
        from pefttools.nn.sharding import without_gradients

        alone = self._generates_alone()
        model, mine = self.model, list(range(len(rows))) if alone else self._share(len(rows))
        found: list[tuple[int, Prediction]] = []
        was_training = model.training
        model.eval()
        with self.reporter.bar(title, len(mine), "rows") as bar, without_gradients(model):
            for index, prediction in self.task.generate(model, [rows[i] for i in mine], self.tokenizer):
                found.append((mine[index], prediction))
                bar.advance(1)
        if was_training:
            model.train()
        everything = found if alone else self._gathered(found)
        return [prediction for _, prediction in sorted(everything, key=lambda pair: pair[0])]

    def _share(self, number: int, process: int | None = None) -> list[int]:
        """The indices, of so many rows, that a process computes; this process if it is None."""
        own, world = (self.accelerator.process_index, self.accelerator.num_processes) if self.accelerator else (0, 1)
        return list(range(number))[own if process is None else process :: world]

    def _gathered(self, values: list[Any]) -> list[Any]:
        """The values of all processes."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return values
        from accelerate.utils import gather_object

        return gather_object(values)


def _parts(indices: Sequence[int], lengths: Sequence[int], device_type: str) -> Iterator[list[int]]:
    """The batches of these rows."""
    multiple, cost = pad_multiple(device_type), pass_cost(device_type)
    for batch in batches(indices, lengths, MAX_ROWS, eval_budget(device_type), multiple):
        yield from narrowed(batch, lengths, multiple, cost)


def aggregated(
    task: Task, rows: Sequence[Row], encoded: Dataset | Encoded, predictions: Mapping[int, Prediction]
) -> list[Prediction]:
    """The prediction of every row, aggregated from those of its encoded rows.

    Args:
        predictions: index of the encoded row -> prediction.
    """
    parts: dict[int, list[int]] = {}
    for index, row in enumerate(encoded["row"][:]):
        parts.setdefault(row, []).append(index)
    if type(task).aggregate is Task.aggregate:  # the default returns a row's first prediction
        return [predictions[parts[i][0]] for i in range(len(rows))]
    found = []
    for start in range(0, len(rows), READ):
        block = range(start, min(start + READ, len(rows)))
        columns = encoded[[j for i in block for j in parts[i]]]
        read = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        for i in block:
            found.append(task.aggregate(rows[i], [next(read) for _ in parts[i]], [predictions[j] for j in parts[i]]))
    return found
