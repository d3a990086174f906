"""What a base leaves a method: positions for virtual tokens, a place for keys and values before a text, a rank."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError

if TYPE_CHECKING:
    from pefttools.bases.loading import Base

MIN_TOKENS = 4
"""The shortest text a task cuts to."""


def take_positions(base: Base, number: int, key: str) -> None:
    """Leave room for `number` virtual tokens: longer texts are cut.

    Raises:
        UserError: there is no room, or peft has no virtual tokens for this kind of model and task.
    """
    if base.task_type is None:
        raise UserError("strategy: peft has no virtual tokens for this task; use lora, adapter or ia3")
    if base.model.config.is_encoder_decoder and base.task_type != "SEQ_2_SEQ_LM":
        raise UserError(
            f"strategy: {base.source} is an encoder-decoder, and peft cannot put virtual tokens before one that"
            " classifies; use lora, adapter or ia3"
        )
    limit = base.tokenizer.model_max_length
    if limit - number < MIN_TOKENS:
        raise UserError(
            f"{key}: {number} virtual tokens leave {max(limit - number, 0)} of the {limit} positions of {base.source};"
            f" a text needs at least {MIN_TOKENS}; set at most {limit - MIN_TOKENS} virtual tokens"
        )
    base.tokenizer.model_max_length = limit - number


def refuse_last_token(base: Base) -> None:
    """Raises UserError when the model classifies by its last token: given embeddings, it would take padding for it."""
    left = getattr(base.tokenizer, "padding_side", "right") == "left"  # XLNet's
    if base.task_type == "SEQ_CLS" and (left or hasattr(base.model, "score")):  # so decoders' heads are named
        raise UserError(
            f"strategy: {base.source} ({type(base.model).__name__}) reads its answer at the last token, and cannot find"
            " that behind virtual tokens when texts are padded; strategy=lora and adapter work"
        )


def refuse_without_past(base: Base) -> None:
    """Raises UserError when the model takes no keys and values from before the text."""
    forwards = (base.model.forward, base.model.base_model.forward)
    if not any("past_key_values" in inspect.signature(forward).parameters for forward in forwards):
        raise UserError(
            f"strategy: {base.source} ({type(base.model).__name__}) takes no keys and values from before the text;"
            " strategy=lora and adapter work"
        )


def refuse_rank_beyond(base: Base, paths: Iterable[str], rank: int, key: str = "strategy.rank") -> None:
    """Raises UserError when the rank exceeds the smaller side of one of the matrices."""
    modules = {path: base.model.get_submodule(path) for path in paths}
    sides = {path: min(_sides(module)) for path, module in modules.items()}
    smallest = min(sides, key=lambda path: sides[path])
    if rank > sides[smallest]:
        raise UserError(f"{key}: {rank} is more than {smallest} allows, whose smaller side is {sides[smallest]}")


def _sides(module: Any) -> tuple[int, int]:
    """(in, out) of an `nn.Linear`, quantised or not (a packed weight's shape says nothing), or of a `Conv1D`."""
    import torch

    return (module.in_features, module.out_features) if isinstance(module, torch.nn.Linear) else (module.nx, module.nf)
