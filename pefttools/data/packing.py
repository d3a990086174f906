"""Several encoded rows in one row of a batch, each with positions of its own, so that none sees another.

Decoders of transformers read from positions that begin anew where a row ends, provided that they are given no
attention mask and keep no cache; then their attention is block-diagonal. `keeps_apart` sees whether a model does so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

POSITIONS = "position_ids"


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows laid into as few bins of `room` tokens as first-fit finds, longest first; a longer one has its own."""
    bins: list[list[int]] = []
    left: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((i for i, free in enumerate(left) if free >= lengths[row]), None)
        if place is None:
            bins.append([])
            left.append(room)
            place = len(bins) - 1
        bins[place].append(row)
        left[place] -= lengths[row]
    return bins


def packed(
    columns: Mapping[str, Sequence[Any]], room: int, multiple: int, padding: int, ignored: int
) -> dict[str, Tensor]:
    """`input_ids`, `labels` and `position_ids` of the rows laid one after another.

    A row's first token is no target, since what stands before it is another row's. Padding is a row of its own.

    Args:
        room: tokens a packed row may have.
        multiple: packed rows are padded to a multiple of so many tokens.
    """
    import torch

    rows, labels = columns["input_ids"], columns["labels"]
    bins = first_fit([len(ids) for ids in rows], room)
    longest = max(sum(len(rows[i]) for i in one) for one in bins)
    shape = (len(bins), -(-longest // multiple) * multiple)
    batch = {
        "input_ids": torch.full(shape, padding),
        "labels": torch.full(shape, ignored),
        POSITIONS: torch.arange(shape[1]).repeat(shape[0], 1),
    }
    for line, one in enumerate(bins):
        start = 0
        for row in one:
            end = start + len(rows[row])
            batch["input_ids"][line, start:end] = torch.tensor(rows[row])
            batch["labels"][line, start + 1 : end] = torch.tensor(labels[row][1:])
            batch[POSITIONS][line, start:end] = torch.arange(end - start)
            start = end
        batch[POSITIONS][line, start:] = torch.arange(shape[1] - start)
    return batch


def refuse_virtual(outputs: Any, batch: Mapping[str, Tensor]) -> None:
    """Raises UserError when packed rows were read after virtual tokens, which stand before the first of them only."""
    if POSITIONS in batch and (
        getattr(outputs, "past_key_values", None) is not None or outputs.logits.shape[1] != batch["input_ids"].shape[1]
    ):
        raise UserError("task.packing: virtual tokens stand before a row, not before each packed one; set it to false")


def refuse_one_text(model: nn.Module) -> None:
    """Raises UserError when a model reads packed rows as one text."""
    config: Any = model.config
    if not keeps_apart(model):
        raise UserError(
            f"task.packing: a {config.model_type} model reads packed rows as one text, measured on two rows;"
            " set task.packing=false"
        )


def keeps_apart(model: nn.Module) -> bool:
    """Whether packed rows see nothing of each other in this model: measured, on two rows of four tokens."""
    import torch

    config: Any = model.config
    device = next(model.parameters()).device
    ids = torch.arange(3, 11, device=device).remainder(config.vocab_size)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        positions = torch.arange(4, device=device).repeat(1, 2)
        together = model(input_ids=ids[None], position_ids=positions, use_cache=False).logits.view(2, 4, -1).float()
        alone = model(input_ids=ids.view(2, 4), use_cache=False).logits.float()
    model.train(was_training)
    return bool((together - alone).abs().max() <= 1e-3 * alone.abs().max())
