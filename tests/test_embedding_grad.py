"""Embeddings that reuse the memory of their gradient: torch's outputs and gradients in every step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pefttools.nn import embedding_grad

STEPS = ([[1, 2, 0], [5, 2, 2]], [[3, 3, 3]], [[0, 1, 7]])


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_grad, "LARGE", 0)


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("twice", [False, True])
def test_gradients_equal_torch_in_every_step(padding: int | None, twice: bool) -> None:
    torch.manual_seed(0)
    one, other = nn.Embedding(9, 4, padding_idx=padding), nn.Embedding(9, 4, padding_idx=padding)
    other.load_state_dict(one.state_dict())
    model = nn.Sequential(other)
    memory = set()
    with embedding_grad.replace_embeddings(model) as number:
        assert number == 1
        for ids in map(torch.tensor, STEPS):
            for _ in range(1 + twice):
                for table in (one, other):
                    output = table(ids)
                    (output * torch.arange(output.numel()).view_as(output)).sum().backward()
            assert one.weight.grad is not None
            assert other.weight.grad is not None
            assert torch.equal(one.weight.grad, other.weight.grad)
            memory.add(other.weight.grad.data_ptr())
            other.weight.grad.add_(1)  # as a penalty adds to it
            one.weight.grad = other.weight.grad = None
        assert len(memory) == 1
        model.eval()
        assert torch.equal(one(torch.tensor([1])), other(torch.tensor([1])))
    assert type(other) is nn.Embedding
    assert not hasattr(other, "kept")


def test_tied_embeddings_sum_the_gradients_of_both_uses() -> None:
    torch.manual_seed(0)
    gradients = []
    for inside in (False, True):
        torch.manual_seed(1)
        table, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        head.weight = table.weight
        model = nn.Sequential(table, head)
        with embedding_grad.replace_embeddings(model if inside else nn.Identity()):
            model(torch.tensor([[1, 2], [2, 6]])).logsumexp(-1).sum().backward()
        gradients.append(table.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_unsupported_embeddings_are_not_replaced() -> None:
    frozen, watched = nn.Embedding(7, 4), nn.Embedding(7, 4)
    frozen.requires_grad_(False)
    watched.weight.register_post_accumulate_grad_hook(lambda _: None)
    others = [frozen, watched, nn.Embedding(7, 4, sparse=True), nn.Embedding(7, 4, max_norm=1.0), nn.Linear(2, 2)]
    assert not any(map(embedding_grad.applies, [*others, nn.Embedding(7, 4, scale_grad_by_freq=True)]))
