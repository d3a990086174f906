"""Add tokens to a frozen vocabulary, with their embeddings in a separate module, so that only these are trained.

Resizing the table itself would make all its rows trainable, or need a mask on its gradient. Here the pretrained table
stays unchanged (the same parameter, so tied weights stay tied). The new rows are a child module `extra`, which any
strategy trains and saves as a part of the head. `fold` merges both into one plain table.

Only input embeddings have the new tokens; output layers cannot predict them before `fold`. If several modules share the
table (encoder-decoders), the first in the model's order has the `extra`, and the others refer to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

NOISE = 0.1
"""Noise of new rows around the mean of the table, in standard deviations of its columns."""


class Extended(nn.Embedding):
    """A table `weight` (V, d), and `extra` (k, d) for the tokens of `ids` (k)."""

    ids: Tensor
    extra: nn.Embedding
    owner: Extended
    """The module with the `extra`; not registered as a child of the modules that share it."""

    def forward(self, input: Tensor) -> Tensor:
        same = input.unsqueeze(-1) == self.ids
        added = same.any(-1)
        known = super().forward(input.masked_fill(added, 0))
        rows = self.owner.extra((same * torch.arange(len(self.ids), device=input.device)).sum(-1))
        return torch.where(added.unsqueeze(-1), rows.to(known.dtype), known)


@cache
def _extended(kind: type[nn.Embedding]) -> type[Extended]:
    """A subclass of `kind` with two tables, which processes new rows (scales them) like old ones.

    `Extended` follows `kind` in the method resolution order, so the `super().forward` of `kind` is the lookup in both
    tables.
    """
    return Extended if kind is nn.Embedding else type(f"Extended{kind.__name__}", (kind, Extended), {})  # pyright: ignore[reportGeneralTypeIssues]


@torch.no_grad()
def extend(model: Any, number: int, ids: Sequence[int] | None = None, known: Sequence[int] = ()) -> list[str]:
    """Add `number` tokens to the model, and return the full paths of the modules with their embeddings.

    Args:
        ids: the tokens' distinct ids; those after the table when None. They may be inside of it: a table often has more
            rows than its tokenizer has tokens, and a tokenizer assigns the first spare rows to new tokens.
        known: the `ids` whose existing rows are meaningful and become the initial values. Other tokens start at the
            mean of the table with a little noise.

    Raises:
        ValueError: the input embeddings are not an `nn.Embedding`, or encoder and decoder have different ones.
    """
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise ValueError(f"the input embeddings of {type(model).__name__} are a {type(table).__name__}, not a table")
    weight = table.weight
    _refuse_second(model, weight)
    places = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Embedding) and m.weight is weight]
    chosen = list(range(len(weight), len(weight) + number)) if ids is None else list(ids)
    assert len(set(chosen)) == number, f"{number} tokens with the ids {chosen}"
    extra = nn.Embedding(number, weight.shape[1], device=weight.device, dtype=weight.dtype)
    deviation, mean = torch.std_mean(weight.float(), dim=0)
    extra.weight.copy_(mean + NOISE * deviation * torch.randn(number, len(mean), device=weight.device))
    for row, token in enumerate(chosen):
        if token in known:
            extra.weight[row] = weight[token]
    path, owner = places[0]
    for _, place in places:
        kind = type(place)
        place.__class__ = _extended(kind)
        place.register_buffer("ids", torch.tensor(chosen, device=weight.device), persistent=False)
        object.__setattr__(place, "owner", owner)  # bypasses the registration as a child module
    owner.extra = extra
    for _, place in places:
        if not _uses(place, extra):
            problem = f"{type(place).__mro__[1].__name__} looks up tokens in an unsupported way"
            for _, other in places:
                _restore(other)
            raise ValueError(problem)
    return [f"{path}.extra"]


def _refuse_second(model: Any, weight: Tensor) -> None:
    """Raises ValueError if the encoder or the decoder has other embeddings than this table."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return
    for path, module in model.named_modules():
        if path and hasattr(module, "get_input_embeddings"):
            other = module.get_input_embeddings()
            if other is not None and getattr(other, "weight", None) is not weight:
                raise ValueError(f"{type(model).__name__} has two vocabularies: {path} has other embeddings")


def _uses(place: nn.Embedding, extra: nn.Embedding) -> bool:
    """Whether a lookup in the table calls the module of new rows."""
    calls = []
    handle = extra.register_forward_hook(lambda *_: calls.append(True))
    place(torch.zeros(1, 1, dtype=torch.long, device=place.weight.device))
    handle.remove()
    return bool(calls)


def _restore(place: Any) -> None:
    """Restore an extended table's original class."""
    for name in ("ids", "extra"):
        if hasattr(place, name):
            delattr(place, name)
    object.__delattr__(place, "owner")
    kind = type(place)
    place.__class__ = nn.Embedding if kind is Extended else kind.__mro__[1]


@torch.no_grad()
def fold(model: Any) -> Any:
    """Merge all tokens into one plain table, and update the configuration; models without new tokens stay unchanged.

    Tied weights are resized with the table; a separate output layer gets new rows initialised by transformers.
    """
    places = list(_places(model))
    if not places:
        return model
    owner, ids = places[0].owner, places[0].ids.tolist()
    assert type(owner.extra) is nn.Embedding, "first merge the strategy's replacement of the new rows"
    rows = owner.extra.weight.detach().clone()
    for place in places:
        _restore(place)
    if max(ids) >= len(owner.weight):
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    table = model.get_input_embeddings()
    table.weight[ids] = rows.to(table.weight)
    for place in places:
        place.num_embeddings = len(table.weight)
    return model


def _places(model: nn.Module) -> Iterator[Extended]:
    return (module for module in model.modules() if isinstance(module, Extended))
