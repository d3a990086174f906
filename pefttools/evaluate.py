"""Model and task to metrics and one prediction a row; batches by length, order kept, shared between processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttools.data.batching import batches
from pefttools.data.splitting import Row
from pefttools.reporter import SILENT, Reporter
from pefttools.tasks.base import Prediction, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

MAX_ROWS, MAX_TOKENS, MULTIPLE = 256, 8192, 8


@dataclass(frozen=True)
class Scored:
    """What a model said of some rows."""

    metrics: dict[str, Any]
    """The task's metrics, and `loss`, the mean over targets."""
    predictions: list[Prediction]


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
    import torch
    from accelerate.utils import gather_object

    lengths = [len(ids) for ids in encoded["input_ids"]]
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = list(range(len(lengths)))[rank::world]
    device = next(model.parameters()).device
    said: list[tuple[int, Prediction]] = []
    total = torch.zeros((), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), reporter.bar(title, len(mine), "rows") as bar:
        for rows in batches(mine, lengths, MAX_ROWS, MAX_TOKENS, MULTIPLE):
            columns: Any = encoded[rows]
            batch = {k: v.to(device) for k, v in task.collate(columns, tokenizer, MULTIPLE).items()}
            outputs = model(**{k: v for k, v in batch.items() if k != "labels"})
            if "labels" in batch:
                total += task.loss(outputs, batch)
            said += zip(rows, task.predict(outputs, batch), strict=True)
            bar.advance(len(rows))
    model.train(was_training)
    if accelerator and world > 1:
        said = gather_object(said)
        total = torch.as_tensor(accelerator.reduce(total))
    return [prediction for _, prediction in sorted(said, key=lambda pair: pair[0])], total.item()


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
