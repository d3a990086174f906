"""The teacher's logits for every target of the training rows, computed once and cached on disk.

The file's name is a hash of the teacher's weights, the rows, the task and the number of logits kept, so other runs with
the same teacher and rows read it. Of a vocabulary, the `top` largest logits of each target are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import atomic
from pefttools.data.batching import batches, eval_budget, pad_multiple
from pefttools.data.encoding import Encoded, code_files, columns_of
from pefttools.objectives._teacher import refuse_other_targets
from pefttools.objectives.base import Context, Loaded
from pefttools.sources.cache import entry, stored

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "soft-labels"
"""Subfolder of the cache."""
MAX_ROWS = 256
"""Upper limit of rows in a batch of the teacher."""


@dataclass(frozen=True)
class SoftLabels:
    """Logits of the teacher in the order of the student's classes."""

    values: Tensor
    """(targets of all rows, classes or `top`), in fp32."""
    starts: Tensor
    """Index of each encoded row's first target, and the number of targets at the end: (rows + 1,)."""
    indices: Tensor | None = None
    """The classes of `values`, where only some were kept; of the same shape."""

    def of(self, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits of these encoded rows' targets, (targets, classes), and their classes if only some were kept."""
        import torch

        starts, ends = self.starts[numbers.cpu()], self.starts[numbers.cpu() + 1]
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        places = torch.cat([torch.arange(start, end) for start, end in spans])
        device = numbers.device
        chosen = None if self.indices is None else self.indices[places].long().to(device)
        return self.values[places].to(device), chosen


def soft_labels(teacher: Loaded, context: Context, top: int, setting: str) -> SoftLabels:
    """The teacher's logits for the training rows, from the cache or computed.

    Raises:
        UserError: the teacher's tokenizer gives the rows other targets than the student's.
    """
    from safetensors.torch import load_file, save_file

    encoded = Encoded(columns_of(context.rows, teacher.task, teacher.tokenizer, training=True))
    refuse_other_targets(teacher, encoded, context, setting)
    depends_on = [teacher.key, list(context.rows), context.task.as_dict(), teacher.task.as_dict(), top]
    file = entry(FOLDER, depends_on, [Path(__file__), *code_files(context.task)], ".safetensors")

    def create() -> None:
        with atomic.new_file(file) as part:
            save_file(_computed(teacher, encoded, context, top), part)

    found = load_file(stored(file, create, "outputs of the teacher", context.reporter))
    return SoftLabels(found["values"], found["starts"], found.get("indices"))


def _computed(teacher: Loaded, encoded: Encoded, context: Context, top: int) -> dict[str, Tensor]:
    import torch

    numbers = torch.tensor(encoded["num_targets"])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), numbers.cumsum(0)])
    order = [teacher.task.class_names.index(name) for name in context.task.class_names]
    found: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for rows, logits in _logits(teacher, encoded, context):
        logits = logits[:, order] if order else logits
        best = logits.topk(top) if logits.shape[1] > top and not order else None
        places = torch.cat([torch.arange(int(starts[row]), int(starts[row + 1])) for row in rows])
        found.append((places, (best.values if best else logits).cpu(), best.indices.int().cpu() if best else None))
    width = max(kept.shape[1] for _, kept, _ in found)
    values = torch.full((int(starts[-1]), width), -torch.inf)  # rows may have fewer choices than others
    indices = torch.zeros(values.shape, dtype=torch.int32)
    for places, kept, chosen in found:
        values[places, : kept.shape[1]] = kept
        if chosen is not None:
            indices[places] = chosen
    are_chosen = any(chosen is not None for *_, chosen in found)
    return {"values": values, "starts": starts, **({"indices": indices} if are_chosen else {})}


def _logits(teacher: Loaded, encoded: Encoded, context: Context) -> Iterator[tuple[list[int], Tensor]]:
    """Each batch's rows and the logits of their targets, (targets, classes)."""
    import torch

    model, task, lengths = teacher.model, teacher.task, encoded["length"]
    device = next(model.parameters()).device
    multiple = pad_multiple(device.type)
    with context.reporter.bar("teacher", len(lengths), "rows") as bar, torch.inference_mode():
        for part in batches(range(len(lengths)), lengths, MAX_ROWS, eval_budget(device.type), multiple):
            columns: Any = encoded[part]
            batch = {k: v.to(device) for k, v in task.collate(columns, teacher.tokenizer, multiple).items()}
            yield part, task.target_logits(model(**task.inputs_of(batch)), batch)
            bar.advance(len(part))
