"""What the input embedding of a model returns for the tokens of a batch, taken out and put back changed.

`inputs_embeds` would not do: several models refuse it where they read the ids as well (BART looks for the end of a
text), and under virtual tokens peft takes it for its own. Here the embedding module itself returns the tensor that it
is given, when it is called with those ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def table(model: nn.Module) -> Any:
    """The module that turns `input_ids` into vectors; an encoder's where there is a decoder, too."""
    prefix = "PREFIX" in str(getattr(getattr(model, "active_peft_config", None), "peft_type", ""))
    if "word_embeddings" in model._modules and not prefix:  # peft looks ids up itself, and puts virtual tokens first
        return model.get_submodule("word_embeddings")
    whole: Any = model
    plain = whole.get_base_model() if hasattr(model, "get_base_model") else whole
    return (plain.get_encoder() if plain.config.is_encoder_decoder else plain).get_input_embeddings()


def of(model: nn.Module, ids: Tensor) -> Tensor:
    """The input embeddings of `ids`, (…, tokens) -> (…, tokens, width), with their graph."""
    return table(model)(ids)


@contextmanager
def substituted(model: nn.Module, ids: Tensor, embeddings: Tensor | None) -> Iterator[None]:
    """Inside, the input embedding returns `embeddings` for `ids`; for other ids (a decoder's) it does as always.

    Without `embeddings` nothing changes.
    """
    if embeddings is None:
        yield
        return
    used: list[bool] = []

    def put_in_place(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor | None:
        del module
        asked = given[0] if given else next(iter(named.values()))
        if asked.numel() != ids.numel() or not torch.equal(asked.reshape(-1), ids.reshape(-1)):
            return None
        used.append(True)
        return embeddings.reshape(output.shape).to(output.dtype)

    hook = table(model).register_forward_hook(put_in_place, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
    assert used, "the model looked up none of the embeddings that were changed"
