"""Frozen features: what the frozen lowest blocks make of every row, computed once and put in their place later.

They are the last frozen block's answers to the real tokens, in the type that it gives them, or to the first alone where
no other is read: a step with them has the loss of one without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pefttools.data.batching import batches, eval_budget, pad_multiple
from pefttools.data.encoding import code_files
from pefttools.nn import attention, first_token, frozen, onednn
from pefttools.nn.frozen import Frozen
from pefttools.reporter import Reporter
from pefttools.sources.cache import entry
from pefttools.training.evaluation import MAX_ROWS

if TYPE_CHECKING:
    from datasets import Dataset

    from pefttools.bases.loading import Base
    from pefttools.nn.first_token import LastBlock
    from pefttools.tasks.base import Task

FOLDER = "features"
"""In the cache."""
CODE = tuple(Path(file) for file in (__file__, *(str(module.__file__) for module in (attention, first_token, frozen))))
"""What computes features: other code, other files."""
PADDED = 8
"""What the rows that features are tried on are padded to a multiple of: a model that reads padding shows."""
SAME = 1e-3
"""Largest relative difference of a loss with the features from that without; rounding makes far smaller ones."""


@dataclass(frozen=True, eq=False)
class Features:
    """Those of one set of encoded rows."""

    frozen: Frozen
    values: Tensor
    """(tokens of all rows, width), the longest row first; of each row its tokens, or the first."""
    starts: Sequence[int]
    """Where a row's first token is."""
    lengths: Sequence[int]
    """How many of a row's tokens there are."""
    first_alone: bool = False
    """Whether the blocks answer with one token a row."""

    @contextmanager
    def substituted(self, rows: Sequence[int], batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the frozen blocks answer with these rows' features, in this batch of them, and zeros as padding."""
        ids = batch["input_ids"]
        if self.first_alone:
            hidden = self.values[[self.starts[row] for row in rows], None]
        else:
            hidden = self.values.new_zeros((*ids.shape, self.values.shape[1]))
            for line, row in enumerate(rows):
                start, length = self.starts[row], self.lengths[row]
                hidden[line, :length] = self.values[start : start + length]
        with self.frozen.substituted(hidden.to(ids.device, non_blocking=True), ids.shape[-1]):
            yield


@dataclass(frozen=True)
class FeatureExtractor:
    """What features are computed by."""

    model: nn.Module
    """Whose forward computes in the steps' precision, without a wrapper for several processes."""
    frozen: Frozen
    task: Task
    base: Base
    precision: str
    last: LastBlock | None = None
    """As the steps compute it."""

    @property
    def first_alone(self) -> bool:
        """Whether the last of the frozen blocks answers with one token a row."""
        return self.last is not None and self.last.block in self.frozen.blocks

    def of(self, rows: Dataset, values: Tensor) -> Features:
        """These rows' features, of values that were `computed` before."""
        lengths = self.kept(rows)
        return Features(self.frozen, values, starts(rows["length"][:], lengths), lengths, self.first_alone)

    def kept(self, rows: Dataset) -> list[int]:
        """How many tokens' features each row has."""
        return [1] * len(rows) if self.first_alone else rows["length"][:]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def batch(self, rows: Dataset, indices: Sequence[int], multiple: int) -> dict[str, Tensor]:
        columns: Any = rows[indices]
        batch = self.task.collate(columns, self.base.tokenizer, multiple)
        return {name: value.to(self.device) for name, value in batch.items()}

    @torch.no_grad()
    def sample(self, rows: Dataset) -> Tensor | None:
        """Some features, (tokens, width); None when a loss with them is another one than without.

        Tried on the shortest and the longest row: this finds a model whose upper blocks look past the boundary, or at
        padding.
        """
        lengths: list[int] = rows["length"][:]
        chosen = [lengths.index(min(lengths)), lengths.index(max(lengths))]
        batch, few = self.batch(rows, chosen, PADDED), [1 if self.first_alone else lengths[i] for i in chosen]
        inputs = self.task.inputs_of(batch)
        hidden = self.frozen.forward_to_boundary(self.model, inputs)
        if max(few) > hidden.shape[1]:
            return None
        values = torch.cat([line[:n] for line, n in zip(hidden.cpu(), few, strict=True)])
        plain = self.task.loss(self.model(**inputs), batch)
        with Features(self.frozen, values, (0, few[0]), few, self.first_alone).substituted((0, 1), batch):
            again = self.task.loss(self.model(**inputs), batch)
        return values if torch.isclose(again, plain, SAME, SAME) else None

    @torch.no_grad()
    def computed(self, rows: Dataset, title: str, reporter: Reporter) -> Iterator[Tensor]:
        """The features of all rows, a few at a time, (tokens, width), in the order they are laid in."""
        lengths, kept = rows["length"][:], self.kept(rows)
        multiple = pad_multiple(self.device.type)
        limits = (MAX_ROWS, eval_budget(self.device.type), multiple)
        with reporter.bar(f"frozen blocks, {title}", len(lengths), "rows") as bar:
            for part in batches(range(len(lengths)), lengths, *limits):
                hidden = self.frozen.forward_to_boundary(
                    self.model, self.task.inputs_of(self.batch(rows, part, multiple))
                )
                yield torch.cat([line[: kept[i]] for line, i in zip(hidden, part, strict=True)]).cpu()
                bar.advance(len(part))

    def path(self, rows: Dataset, dtype: torch.dtype) -> Path:
        """Where the features of these rows are kept."""
        config: Any = getattr(self.model, "config", None)
        depends_on = [
            self.base.sha256,
            [self.frozen.digest, self.first_alone],
            type(config).__name__,
            str(getattr(config, "_attn_implementation", None)),
            str(getattr(config, "pad_token_id", None)),
            _tokens_digest(rows, self.task),
            [self.precision, str(dtype), onednn.allowance(), self.device.type],
        ]
        return entry(FOLDER, depends_on, [*code_files(self.task), *CODE], ".bin")


def starts(lengths: Sequence[int], kept: Sequence[int]) -> list[int]:
    """Where each row's first token is, rows laid longest first, of each as many tokens as are kept."""
    places, place = [0] * len(lengths), 0
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        places[row] = place
        place += kept[row]
    return places


def _tokens_digest(rows: Dataset, task: Task) -> str:
    """sha256 of what the model is given of every row."""
    seen = hashlib.sha256()
    for name in ("length", *sorted(set(task.model_inputs) & set(rows.column_names))):
        seen.update(name.encode())
        for chunk in rows.data.column(name).chunks:
            flat = chunk if name == "length" else chunk.flatten()
            seen.update(flat.to_numpy(zero_copy_only=False).tobytes())
    return seen.hexdigest()
