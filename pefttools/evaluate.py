"""Model and task to metrics and one prediction a row; batches by length, order kept, shared between processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttools.data.batching import batches, token_budget
from pefttools.data.splitting import Row
from pefttools.reporter import SILENT, Reporter
from pefttools.tasks.base import Prediction, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

MAX_ROWS, MULTIPLE = 256, 8


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
) -> Iterator[tuple[list[int], dict[str, Tensor], Any]]:
    """Batches of rows through the model in evaluation mode: their indices, tensors and outputs.

    Args:
        pick: the encoded columns of some rows.
        rows: which rows.
        lengths: tokens of every row.
    """
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for indices in batches(rows, lengths, MAX_ROWS, token_budget(device.type), MULTIPLE):
            batch = {k: v.to(device) for k, v in task.collate(pick(indices), tokenizer, MULTIPLE).items()}
            yield indices, batch, model(**{k: v for k, v in batch.items() if k != "labels"})
    model.train(was_training)


def answers(
    model: nn.Module,
    task: Task,
    encoded: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    title: str,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
) -> tuple[list[Prediction], float]:
    """One prediction a row in the rows' order, and the summed loss (0 where rows have no targets).

    With an accelerator of several processes each takes its share and all get the whole.
    """
    from accelerate.utils import gather_object

    lengths = [len(ids) for ids in encoded["input_ids"]]
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = list(range(len(lengths)))[rank::world]
    said: list[tuple[int, Prediction]] = []
    total = 0.0
    with reporter.bar(title, len(mine), "rows") as bar:
        for rows, batch, outputs in outputs_of(model, task, encoded.__getitem__, mine, lengths, tokenizer):
            if "labels" in batch:
                total += task.loss(outputs, batch).item()
            said += zip(rows, task.predict(outputs, batch), strict=True)
            bar.advance(len(rows))
    if world > 1:
        said, total = gather_object(said), sum(gather_object([total]))
    return [prediction for _, prediction in sorted(said, key=lambda pair: pair[0])], total


def score(
    model: nn.Module,
    task: Task,
    encoded: Dataset,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    title: str,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
) -> Scored:
    """Metrics and predictions on labelled rows."""
    predictions, loss = answers(model, task, encoded, tokenizer, title, accelerator, reporter)
    metrics = task.metrics(predictions, [task.reference(row) for row in rows])
    return Scored({**metrics, "loss": loss / sum(encoded["num_targets"])}, predictions)
