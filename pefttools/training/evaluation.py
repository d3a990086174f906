"""Model and task to metrics and one prediction a row; batches by length, order kept, shared between processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttools.data.batching import batches, eval_budget, pad_multiple
from pefttools.data.encoding import Encoded
from pefttools.data.splitting import Row
from pefttools.reporter import SILENT, Reporter
from pefttools.tasks.base import LABELS, Prediction, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.training.features import Features

MAX_ROWS = 256
READ = 1000
"""Rows whose encoded rows are read from a `Dataset` at once."""


@dataclass(frozen=True)
class Scored:
    """What a model said of some rows."""

    metrics: dict[str, Any]
    """The task's metrics, and `loss`, the mean over targets."""
    predictions: list[Prediction]


def outputs_of(
    model: nn.Module,
    task: Task,
    pick: Callable[[list[int]], Mapping[str, list[Any]]],
    rows: Sequence[int],
    lengths: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    features: Features | None = None,
) -> Iterator[tuple[list[int], dict[str, Tensor], Any]]:
    """Batches of rows through the model in evaluation mode: their indices, tensors and outputs.

    Args:
        pick: the encoded columns of some rows.
        rows: which rows.
        lengths: tokens of every row.
        features: what frozen blocks make of every row, where that was computed before.
    """
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    multiple = pad_multiple(device.type)
    model.eval()
    with torch.inference_mode():
        for indices in batches(rows, lengths, MAX_ROWS, eval_budget(device.type), multiple):
            batch = {k: v.to(device) for k, v in task.collate(pick(indices), tokenizer, multiple).items()}
            with features.substituted(indices, batch) if features else nullcontext():
                outputs = model(**task.inputs_of(batch))
            yield indices, batch, outputs
    model.train(was_training)


def answers(
    model: nn.Module,
    task: Task,
    encoded: Dataset | Encoded,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    title: str,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
    features: Features | None = None,
) -> tuple[list[Prediction], float]:
    """One prediction a row in the rows' order, and the summed loss (0 where rows have no targets).

    With an accelerator of several processes each takes its share and all get the whole.
    """
    from accelerate.utils import gather_object

    lengths: list[int] = encoded["length"][:]
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = list(range(len(lengths)))[rank::world]
    said: list[tuple[int, Prediction]] = []
    total = 0.0
    with reporter.bar(title, len(mine), "rows") as bar:
        for indices, batch, outputs in outputs_of(model, task, encoded.__getitem__, mine, lengths, tokenizer, features):
            if LABELS in batch:
                total += task.loss(outputs, batch).item()
            said += zip(indices, task.predict(outputs, batch), strict=True)
            bar.advance(len(indices))
    if world > 1:
        said, total = gather_object(said), sum(gather_object([total]))
    return joined(task, rows, encoded, dict(said)), total


def joined(
    task: Task, rows: Sequence[Row], encoded: Dataset | Encoded, said: Mapping[int, Prediction]
) -> list[Prediction]:
    """What is said of every row, from what was said of its encoded rows.

    Args:
        encoded: a `Dataset` or `Encoded`.
    """
    parts: dict[int, list[int]] = {}
    for index, row in enumerate(encoded["row"][:]):
        parts.setdefault(row, []).append(index)
    if type(task).aggregate is Task.aggregate:  # nothing of the encoded rows is looked at
        return [said[parts[i][0]] for i in range(len(rows))]
    found = []
    for start in range(0, len(rows), READ):
        block = range(start, min(start + READ, len(rows)))
        columns = encoded[[j for i in block for j in parts[i]]]
        read = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        for i in block:
            found.append(task.aggregate(rows[i], [next(read) for _ in parts[i]], [said[j] for j in parts[i]]))
    return found


def generated(
    model: nn.Module,
    task: Task,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    title: str,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
) -> list[Prediction]:
    """A generated answer a row, in the rows' order; each process takes its share."""
    import torch
    from accelerate.utils import gather_object

    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = list(range(len(rows)))[rank::world]
    said: list[tuple[int, Prediction]] = []
    was_training = model.training
    model.eval()
    with reporter.bar(title, len(mine), "rows") as bar, torch.inference_mode():
        for index, prediction in task.generate(model, [rows[i] for i in mine], tokenizer):
            said.append((mine[index], prediction))
            bar.advance(1)
    model.train(was_training)
    if world > 1:
        said = gather_object(said)
    return [prediction for _, prediction in sorted(said, key=lambda pair: pair[0])]


def score(
    model: nn.Module,
    task: Task,
    encoded: Dataset,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    title: str,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
    generate: bool = False,
    features: Features | None = None,
) -> Scored:
    """Metrics and predictions on labelled rows.

    Args:
        generate: whether a task that generates answers some rows so (`Task.num_generated`).
        features: of these rows, see `outputs_of`.
    """
    predictions, loss = answers(model, task, encoded, rows, tokenizer, title, accelerator, reporter, features)
    if generate and task.generates and (number := task.num_generated(len(rows))):
        texts = generated(model, task, rows[:number], tokenizer, f"{title}, generating", accelerator, reporter)
        predictions[:number] = [{**p, **text} for p, text in zip(predictions[:number], texts, strict=True)]
    metrics = task.metrics(predictions, [task.reference(row) for row in rows])
    return Scored({**metrics, "loss": loss / max(1, sum(encoded["num_targets"]))}, predictions)
