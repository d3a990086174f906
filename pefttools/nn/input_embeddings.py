"""Get a model's input embeddings for a batch, and substitute changed ones.

`inputs_embeds` does not work: several models reject it because they also read the ids (BART looks for the end of a
text), and with virtual tokens peft uses it itself. Instead, a hook makes the embedding module return the given tensor
when it is called with these ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


class NotLookedUp(AssertionError):
    """A model did not look up its `input_ids` in its table of input embeddings."""


def table(model: nn.Module) -> Any:
    """The module that converts `input_ids` to vectors; the encoder's for encoder-decoders."""
    prefix = "PREFIX" in str(getattr(getattr(model, "active_peft_config", None), "peft_type", ""))
    if "word_embeddings" in model._modules and not prefix:  # peft looks up ids itself, and puts virtual tokens first
        return model.get_submodule("word_embeddings")
    whole: Any = model
    plain = whole.get_base_model() if hasattr(model, "get_base_model") else whole
    return (plain.get_encoder() if plain.config.is_encoder_decoder else plain).get_input_embeddings()


def of(model: nn.Module, ids: Tensor) -> Tensor:
    """The input embeddings of `ids`, (…, tokens) -> (…, tokens, width), with their graph."""
    return table(model)(ids)


@contextmanager
def substituted(model: nn.Module, ids: Tensor, embeddings: Tensor | None) -> Iterator[None]:
    """A context in which the input embedding returns `embeddings` for `ids`; other ids (a decoder's) are looked up as
    usual.

    With `embeddings=None` nothing changes.

    Raises:
        NotLookedUp: at the end, if the model did not look up the ids.
    """
    if embeddings is None:
        yield
        return
    used: list[bool] = []

    def substitute(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        del module
        looked_up = args[0] if args else next(iter(kwargs.values()))
        if not _same(looked_up, ids):
            return None
        used.append(True)
        return embeddings.reshape(output.shape).to(output.dtype)

    hook = table(model).register_forward_hook(substitute, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
    if not used:
        raise NotLookedUp("the model did not look up the substituted embeddings")


def _same(ids: Tensor, others: Tensor) -> bool:
    """Whether two tensors contain the same ids; fake tensors have no values, so that their sizes decide."""
    if ids.numel() != others.numel() or isinstance(ids, FakeTensor):
        return ids.numel() == others.numel()
    return torch.equal(ids.reshape(-1), others.reshape(-1))
