"""Check that a base can carry a method: enough positions for prompt tokens, past_key_values for prefix tuning, and
matrices at least as large as a rank."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError

if TYPE_CHECKING:
    from pefttools.bases.loading import Base

MIN_TOKENS = 4
"""The smallest length to which a task truncates texts."""


def take_positions(base: Base, number: int, key: str) -> None:
    """Reserve `number` positions for virtual tokens, by truncating texts earlier.

    Raises:
        UserError: too few positions are left, or peft does not support virtual tokens for this model and task.
    """
    if base.task_type is None:
        raise UserError("strategy: peft does not support virtual tokens for this task; use lora, adapter or ia3")
    if base.model.config.is_encoder_decoder and base.task_type != "SEQ_2_SEQ_LM":
        raise UserError(
            f"strategy: {base.source} is an encoder-decoder, and peft does not support virtual tokens for"
            " classification with one; use lora, adapter or ia3"
        )
    limit = base.tokenizer.model_max_length
    if limit - number < MIN_TOKENS:
        raise UserError(
            f"{key}: {number} virtual tokens leave {max(limit - number, 0)} of the {limit} positions of {base.source};"
            f" a text needs at least {MIN_TOKENS}; set at most {limit - MIN_TOKENS} virtual tokens"
        )
    base.tokenizer.model_max_length = limit - number


def refuse_last_token(base: Base) -> None:
    """Raises UserError when the model classifies by its last token, which it cannot find in embeddings with padding."""
    left = getattr(base.tokenizer, "padding_side", "right") == "left"  # XLNet's
    if base.task_type == "SEQ_CLS" and (left or hasattr(base.model, "score")):  # the name of decoders' heads
        raise UserError(
            f"strategy: {base.source} ({type(base.model).__name__}) classifies by the last token, and cannot find it"
            " after virtual tokens when texts are padded; use lora or adapter"
        )


def refuse_without_past(base: Base) -> None:
    """Raises UserError when the model does not accept past keys and values."""
    forwards = (base.model.forward, base.model.base_model.forward)
    if not any("past_key_values" in inspect.signature(forward).parameters for forward in forwards):
        raise UserError(
            f"strategy: {base.source} ({type(base.model).__name__}) does not accept past keys and values, which this"
            " strategy needs; use lora or adapter"
        )


def refuse_rank_beyond(base: Base, paths: Iterable[str], rank: int, key: str = "strategy.rank") -> None:
    """Raises UserError when the rank exceeds the smaller side of one of the matrices."""
    modules = {path: base.model.get_submodule(path) for path in paths}
    sides = {path: min(_sides(module)) for path, module in modules.items()}
    smallest = min(sides, key=lambda path: sides[path])
    if rank > sides[smallest]:
        raise UserError(
            f"{key}: {rank} is more than {sides[smallest]}, the smaller side of {smallest}; set at most that"
        )


def _sides(module: Any) -> tuple[int, int]:
    """(in, out) of an `nn.Linear` or a `Conv1D`; the shape of a quantised weight would be that of its packed form."""
    import torch

    return (module.in_features, module.out_features) if isinstance(module, torch.nn.Linear) else (module.nx, module.nf)
