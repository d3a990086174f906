"""Penalties by hand: L1, L2, L2-SP, the distance of the merged matrices, and orthogonality."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from regularized import TASK, Tiny, Wrapped, bound, by_peft, make, move, no_rows, value_of
from torch import Tensor, nn

from pefttools.bases.loading import BaseSettings
from pefttools.errors import UserError
from pefttools.nn.low_rank import LowRankLinear
from pefttools.nn.orthogonal import off_orthonormal, orthogonality
from pefttools.regularizers import regularizers
from pefttools.regularizers.base import product_square
from pefttools.strategies.base import trained


def svd_projection(rank: int = 3, keep_start: bool = True) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    plain = nn.Linear(5, 7, bias=False).requires_grad_(False)
    model = nn.Module()
    model.add_module("inner", LowRankLinear(plain, rank, keep_start))
    return model.double(), plain.weight.detach().double()


# L1.


def test_l1_by_hand() -> None:
    model = Tiny()
    total = sum(p.abs().sum().item() for p in model.parameters())
    assert value_of(bound("l1", model, weight=0.5)) == pytest.approx(0.5 * total, rel=1e-12)
    penalty = bound("l1", model, weight=0.5, toward="start")
    assert value_of(penalty) == 0
    moves = move(model)
    old = sum(m.abs().sum().item() for n, m in moves.items() if "classifier" not in n)
    assert value_of(penalty) == pytest.approx(0.5 * old, rel=1e-9)


def test_l1_toward_the_start_requires_pretrained_parameters(wrapped: Callable[[str], Wrapped]) -> None:
    with pytest.raises(UserError, match=r"no pretrained parameter \(toward: start\) among the .*lora_A"):
        wrapped("lora").bind(make("l1", toward="start"))


# L2 and weight decay.


def test_l2_by_hand() -> None:
    model = Tiny()
    matrices = sum(m.weight.square().sum().item() for m in (model.inner, model.classifier))
    everything = sum(p.square().sum().item() for p in model.parameters())
    assert value_of(bound("l2", model, weight=0.3)) == pytest.approx(0.15 * matrices, rel=1e-12)
    assert value_of(bound("l2", model, weight=0.3, biases=True)) == pytest.approx(0.15 * everything, rel=1e-12)


def one_step(optimizer: Any, weight: float, **values: Any) -> Tensor:
    model = Tiny()
    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    loss = model.classifier(model.norm(model.inner(x))).square().sum()
    if weight:
        added = bound("l2", model, weight=weight, biases=True).value()
        assert added is not None
        loss = loss + added
    loss.backward()
    optimizer(model.parameters(), lr=0.01, **values).step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_l2_equals_weight_decay_with_sgd_but_not_with_adam() -> None:
    def difference(optimizer: Any) -> float:
        return (one_step(optimizer, 0.2) - one_step(optimizer, 0.0, weight_decay=0.2)).abs().max().item()

    assert difference(torch.optim.SGD) <= 1e-7
    assert (one_step(torch.optim.SGD, 0.2) - one_step(torch.optim.SGD, 0.0)).abs().max() > 1e-4
    assert difference(torch.optim.AdamW) > 1e-4


# L2-SP.


def test_l2_sp_by_hand() -> None:
    model = Tiny()
    penalty = bound("l2_sp", model, alpha=0.6, beta=0.2)
    head = sum(p.square().sum().item() for p in model.classifier.parameters())
    assert value_of(penalty) == pytest.approx(0.1 * head, rel=1e-12), "the pretrained part is zero at the start"
    moves = move(model)
    old = sum(m.square().sum().item() for n, m in moves.items() if "classifier" not in n)
    head = sum(p.square().sum().item() for p in model.classifier.parameters())
    assert value_of(penalty) == pytest.approx(0.3 * old + 0.1 * head, rel=1e-9)


def test_l2_sp_without_beta_requires_pretrained_parameters(wrapped: Callable[[str], Wrapped]) -> None:
    assert value_of(wrapped("lora").bind(make("l2_sp"))) > 0
    with pytest.raises(UserError, match="no pretrained parameter"):
        wrapped("lora").bind(make("l2_sp", beta=0))


# Frobenius.


@pytest.mark.parametrize("how", ["full", "lora", "rslora", "dora", "adalora", "vera", "projection"])
def test_frobenius_is_the_distance_of_the_merged_matrices(how: str, wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped(how)
    penalty = made.bind(make("frobenius", weight=0.4))
    move(made.model)
    value = value_of(penalty)
    merged: nn.Module = made.model.merge_and_unload() if hasattr(made.model, "merge_and_unload") else made.model
    matrices = {n: p.detach() for n, p in merged.named_parameters()}
    matrices |= {f"{n}.weight": m.weight().detach() for n, m in merged.named_modules() if isinstance(m, LowRankLinear)}
    change = sum(
        (matrices[name] - w).square().sum().item()
        for name, w in made.original.items()
        if w.ndim == 2 and not any(name.startswith(f"{path}.") for path in made.head)
    )
    assert change > 1e-4
    assert value == pytest.approx(0.2 * change, rel=1e-6)


def test_frobenius_of_a_truncated_svd_start() -> None:
    model, weight = svd_projection(rank=3)
    value = bound("frobenius", model, weight=0.8).value()
    assert value is not None
    tail = torch.linalg.svdvals(weight)[3:].square().sum().item()
    assert value.item() == pytest.approx(0.4 * tail, rel=1e-6)
    gradients = torch.autograd.grad(value, list(model.parameters()))
    assert max(g.abs().max().item() for g in gradients) < 1e-5


def test_penalties_without_building_the_product_equal_those_with_it() -> None:
    model, weight = svd_projection(rank=3)
    penalty = bound("frobenius", model, weight=2.0)
    move(model, by=0.3)
    inner: Any = model.get_submodule("inner")
    product = inner.U @ inner.V.T
    assert value_of(penalty) == pytest.approx((product - weight).square().sum().item(), rel=1e-10)
    assert product_square(inner.U, inner.V).item() == pytest.approx(product.square().sum().item(), rel=1e-10)
    assert value_of(bound("l2", model, weight=2.0, of="product")) == pytest.approx(product.square().sum().item())


def test_l2_of_the_factors_is_the_nuclear_norm_at_the_start() -> None:
    model, weight = svd_projection(rank=3)
    nuclear = torch.linalg.svdvals(weight)[:3].sum().item()
    assert value_of(bound("l2", model, weight=1.0)) == pytest.approx(nuclear, rel=1e-6)


def test_l2_of_the_product_includes_the_head(wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped("projection")
    head = sum(p.square().sum() for n, p in trained(made.model).items() if p.ndim == 2 and n.startswith("classifier"))
    inner = sum(m.weight().square().sum() for m in made.model.modules() if isinstance(m, LowRankLinear))
    value = value_of(made.bind(make("l2", weight=0.5, of="product")))
    assert value == pytest.approx(0.25 * torch.as_tensor(head + inner).item(), rel=1e-9)


def test_l2_of_the_product_requires_a_low_rank_projection(wrapped: Callable[[str], Wrapped]) -> None:
    with pytest.raises(UserError, match=r"no low-rank projection \(of: product\)"):
        wrapped("full").bind(make("l2", of="product"))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_frobenius_refuses_an_initialization_that_changes_the_base(start: str, bases: Callable[[str], Path]) -> None:
    base = TASK.load(BaseSettings(source=str(bases("bert")), dropout=0.0))
    model = by_peft("LoraConfig", r=4, init_lora_weights=start)(base)
    with pytest.raises(UserError, match=rf"regularizers\.frobenius: a start by {start} changes"):
        make("frobenius").bind(model, base.head, no_rows)


def test_frobenius_refuses_a_weight_change_without_a_formula(wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped("vera")
    layer: Any = next(m for m in made.model.modules() if hasattr(m, "vera_lambda_b"))
    layer.get_delta_weight = lambda adapter: torch.zeros(2, 2)
    with pytest.raises(UserError, match="has no differentiable formula"):
        made.bind(make("frobenius"))


def test_frobenius_without_the_initial_weights_is_an_assertion_error() -> None:
    assert regularizers.get("frobenius").needs_start
    with pytest.raises(AssertionError, match="inner was wrapped without its start"):
        bound("frobenius", svd_projection(keep_start=False)[0])


# Orthogonality.


def test_off_orthonormal_by_hand() -> None:
    assert off_orthonormal(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).item() == 4.0**2 + 2 * 6.0**2 + 8.0**2
    assert off_orthonormal(torch.eye(2, 5)).item() == 0


@pytest.mark.parametrize("how", ["lora", "adalora"])
def test_orthogonal_sums_over_both_factors_of_every_pair(how: str, wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped(how)
    penalty = made.bind(make("orthogonal", weight=0.3))
    move(made.model)
    total = 0.0
    for name, p in trained(made.model).items():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            total += (gram - torch.eye(len(gram))).square().sum().item()
    assert value_of(penalty) == pytest.approx(0.3 * total, rel=1e-9)


def test_orthogonality_is_none_without_factors() -> None:
    assert orthogonality(Tiny()) is None
