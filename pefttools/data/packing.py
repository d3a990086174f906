"""Pack several encoded rows into one row of a batch, each with its own positions, so that none attends to another.

Decoders of transformers infer the borders of rows from positions that restart at 0, provided that they get no attention
mask and use no cache; then their attention is block-diagonal. `keeps_apart` tests whether a model does this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

POSITIONS = "position_ids"


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Assign rows to bins of `room` tokens by first-fit, longest first; a row longer than that gets its own bin."""
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
    """`input_ids`, `labels` and `position_ids` of packed rows.

    A row's first token is not a target, since the token before it belongs to another row. Padding counts as a row of
    its own.

    Args:
        room: maximum tokens of a packed row.
        multiple: packed rows are padded to a multiple of this number of tokens.
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
    """Raises UserError if packed rows followed virtual tokens, which would precede only the first of them."""
    if POSITIONS in batch and (
        getattr(outputs, "past_key_values", None) is not None or outputs.logits.shape[1] != batch["input_ids"].shape[1]
    ):
        raise UserError(
            "task.packing: the strategy's virtual tokens would precede only the first packed row; set it to false"
        )


def refuse_mixed_attention(model: nn.Module) -> None:
    """Raises UserError if a model's attention crosses the borders of packed rows."""
    config: Any = model.config
    if not keeps_apart(model):
        raise UserError(
            f"task.packing: in a {config.model_type} model, packed rows attend to each other, as a test with two rows"
            " showed; set task.packing=false"
        )


def keeps_apart(model: nn.Module) -> bool:
    """Whether packed rows do not attend to each other in this model, tested on two rows of four tokens."""
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
