"""Tokens added to a frozen vocabulary: their embeddings in a module of their own, so that they alone can be trained.

Growing the table itself would make its every row trainable, or need a mask on its gradient. Here the pretrained table
stays what it was (the same parameter, so whatever is tied to it stays tied) and the new rows are a child `extra`, which
any strategy trains and saves as a part of the head. `fold` makes one plain table of both.

Only what goes into a model knows the new tokens; an output layer says none of them before `fold`. Where several modules
hold the same table (an encoder-decoder), the first in the model's order has the `extra` and the others ask it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

NOISE = 0.1
"""How far new rows start from the mean of the table, in standard deviations of its columns."""


class Extended(nn.Embedding):
    """A table `weight` (V, d), and `extra` (k, d) for the tokens of `ids` (k)."""

    ids: Tensor
    extra: nn.Embedding
    owner: Extended
    """The module whose `extra` is looked up; not a child of those that share it."""

    def forward(self, input: Tensor) -> Tensor:
        same = input.unsqueeze(-1) == self.ids
        added = same.any(-1)
        known = super().forward(input.masked_fill(added, 0))
        rows = self.owner.extra((same * torch.arange(len(self.ids), device=input.device)).sum(-1))
        return torch.where(added.unsqueeze(-1), rows.to(known.dtype), known)


@cache
def _extended(kind: type[nn.Embedding]) -> type[Extended]:
    """`kind` with two tables. What it does to looked-up rows (scales them) it does to the new ones as well.

    `Extended` comes behind `kind` in the order of methods, so the `super().forward` of `kind` is the joined lookup.
    """
    return Extended if kind is nn.Embedding else type(f"Extended{kind.__name__}", (kind, Extended), {})  # pyright: ignore[reportGeneralTypeIssues]


@torch.no_grad()
def extend(model: Any, number: int, ids: Sequence[int] | None = None, known: Sequence[int] = ()) -> list[str]:
    """Give the model `number` more tokens and answer the full paths of the modules with their embeddings.

    Args:
        ids: the tokens' ids, distinct; those behind the table when None. They may lie inside it: a table often has more
            rows than its tokenizer has tokens, and the first of the spare rows are what a tokenizer gives out.
        known: those of `ids` that mean something already and start at the row they have. Others start at the mean of
            the table and a little noise.

    Raises:
        ValueError: the model's input embeddings are no table of rows, or it has several that are not one.
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
        object.__setattr__(place, "owner", owner)  # past the registration as a child
    owner.extra = extra
    for _, place in places:
        if not _is_asked(place, extra):
            problem = f"{type(place).__mro__[1].__name__} looks tokens up in a way of its own"
            for _, other in places:
                _restore(other)
            raise ValueError(problem)
    return [f"{path}.extra"]


def _refuse_second(model: Any, weight: Tensor) -> None:
    """Raises ValueError when the encoder or the decoder has embeddings that are not this table."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return
    for path, module in model.named_modules():
        if path and hasattr(module, "get_input_embeddings"):
            other = module.get_input_embeddings()
            if other is not None and getattr(other, "weight", None) is not weight:
                raise ValueError(f"{type(model).__name__} has two vocabularies: {path} has embeddings of its own")


def _is_asked(place: nn.Embedding, extra: nn.Embedding) -> bool:
    """Whether a lookup comes by the new rows."""
    asked = []
    handle = extra.register_forward_hook(lambda *_: asked.append(True))
    place(torch.zeros(1, 1, dtype=torch.long, device=place.weight.device))
    handle.remove()
    return bool(asked)


def _restore(place: Any) -> None:
    """Make an extended table the plain one it was."""
    for name in ("ids", "extra"):
        if hasattr(place, name):
            delattr(place, name)
    object.__delattr__(place, "owner")
    kind = type(place)
    place.__class__ = nn.Embedding if kind is Extended else kind.__mro__[1]


@torch.no_grad()
def fold(model: Any) -> Any:
    """The model with every token in one plain table, and its configuration to match; as it is if it was not extended.

    What is tied to the table grows with it; an output layer of its own gets rows as transformers starts them.
    """
    places = list(_places(model))
    if not places:
        return model
    owner, ids = places[0].owner, places[0].ids.tolist()
    assert type(owner.extra) is nn.Embedding, "merge what a strategy put in place of the new rows first"
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
