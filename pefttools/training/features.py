"""Cached features: the frozen lowest blocks' output for every row, computed once and substituted in later passes.

A feature is the last frozen block's hidden states of a row's tokens, without padding, in the block's dtype; or of the
first token alone, where no other token is read. A step with cached features has the same loss as one without.
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
from pefttools.device import sent
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
"""Subfolder of the cache."""
CODE = tuple(Path(file) for file in (__file__, *(str(module.__file__) for module in (attention, first_token, frozen))))
"""Source files that compute features; a change in them gives cache files a new name."""
PADDED = 8
"""The sample rows are padded to a multiple of this, so that a model that reads padding is noticed."""
SAME = 1e-3
"""Largest relative difference of the losses with and without features; rounding causes far smaller ones."""


@dataclass(frozen=True, eq=False)
class Features:
    """The features of one split's encoded rows."""

    frozen: Frozen
    values: Tensor
    """Hidden states (tokens of all rows, width), the longest row first; all tokens of a row, or its first."""
    starts: Sequence[int]
    """Index of each row's first token in `values`."""
    lengths: Sequence[int]
    """Number of each row's tokens in `values`."""
    first_alone: bool = False
    """Whether the blocks return the first token only."""

    @contextmanager
    def substituted(self, rows: Sequence[int], batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the frozen blocks return the features of these rows, which make up `batch`, with zeros as padding."""
        ids = batch["input_ids"]
        if self.first_alone:
            hidden = self.values[[self.starts[row] for row in rows], None]
        else:
            hidden = self.values.new_zeros((*ids.shape, self.values.shape[1]))
            for line, row in enumerate(rows):
                start, length = self.starts[row], self.lengths[row]
                hidden[line, :length] = self.values[start : start + length]
        with self.frozen.substituted(sent(hidden, ids.device), ids.shape[-1]):
            yield


@dataclass(frozen=True)
class FeatureExtractor:
    """Computes features and checks that they can replace the frozen blocks."""

    model: nn.Module
    """The model without a data-parallel wrapper; its forward computes in the steps' precision."""
    frozen: Frozen
    task: Task
    base: Base
    precision: str
    last: LastBlock | None = None
    """The last block, where one token of it is read."""

    @property
    def first_alone(self) -> bool:
        """Whether the last frozen block returns the first token only."""
        return self.last is not None and self.last.block in self.frozen.blocks

    def of(self, rows: Dataset, values: Tensor) -> Features:
        """The features of these rows, from the concatenated values of `compute`."""
        lengths = self.num_tokens(rows)
        return Features(self.frozen, values, starts(rows["length"][:], lengths), lengths, self.first_alone)

    def num_tokens(self, rows: Dataset) -> list[int]:
        """Number of tokens of each row whose features are cached."""
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
        """The features of two rows, (tokens, width); None if the loss with them differs from that without.

        The shortest and the longest row reveal models whose upper blocks read more than the last frozen block's output,
        or read padding.
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
    def compute(self, rows: Dataset, title: str, reporter: Reporter) -> Iterator[Tensor]:
        """The features of all rows, batch by batch, each (tokens, width), in the order of `Features.values`."""
        lengths, num_tokens = rows["length"][:], self.num_tokens(rows)
        multiple = pad_multiple(self.device.type)
        limits = (MAX_ROWS, eval_budget(self.device.type), multiple)
        with reporter.bar(f"frozen blocks, {title}", len(lengths), "rows") as bar:
            for part in batches(range(len(lengths)), lengths, *limits):
                hidden = self.frozen.forward_to_boundary(
                    self.model, self.task.inputs_of(self.batch(rows, part, multiple))
                )
                yield torch.cat([line[: num_tokens[i]] for line, i in zip(hidden, part, strict=True)]).cpu()
                bar.advance(len(part))

    def path(self, rows: Dataset, dtype: torch.dtype) -> Path:
        """The cache file of these rows' features."""
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


def starts(lengths: Sequence[int], num_tokens: Sequence[int]) -> list[int]:
    """The index of each row's first token, where rows are stored longest first with `num_tokens` tokens each."""
    places, place = [0] * len(lengths), 0
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        places[row] = place
        place += num_tokens[row]
    return places


def _tokens_digest(rows: Dataset, task: Task) -> str:
    """sha256 of the model's inputs for every row."""
    seen = hashlib.sha256()
    for name in ("length", *sorted(set(task.model_inputs) & set(rows.column_names))):
        seen.update(name.encode())
        for chunk in rows.data.column(name).chunks:
            flat = chunk if name == "length" else chunk.flatten()
            seen.update(flat.to_numpy(zero_copy_only=False).tobytes())
    return seen.hexdigest()
