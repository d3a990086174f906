"""EWC and mixout: Fisher values by hand, mixed weights with the right mean, gradients and masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from regularized import Tiny, bound, move, no_rows, value_of
from torch import Tensor

from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.regularizers import regularizers
from pefttools.regularizers.base import Penalty

# EWC.


def linear_rows(model: Tiny, num_rows: int = 3) -> Callable[[FileSettings, int], Iterator[Tensor]]:
    """The loss of row i is ½(Σ w ⊙ i)²; its gradient is i²·Σw for every weight."""

    def row_losses(data: FileSettings, rows: int) -> Iterator[Tensor]:
        assert data.source == "old.csv"
        for i in range(1, min(rows, num_rows) + 1):
            yield (i * model.inner.weight.sum()).square() / 2

    return row_losses


def test_ewc_fisher_by_hand() -> None:
    model = Tiny()
    penalty = bound("ewc", model, linear_rows(model), weight=0.6, data="old.csv", rows=2)
    total = model.inner.weight.sum().item()
    fisher = ((1 * total) ** 2 + (4 * total) ** 2) / 2  # the gradient of row i is i²·Σw, the same for every weight
    assert value_of(penalty) == 0
    moves = move(model)
    expected = 0.3 * fisher * moves["inner.weight"].square().sum().item()
    assert value_of(penalty) == pytest.approx(expected, rel=1e-9)


def test_ewc_refuses_zero_fisher_values_and_empty_data() -> None:
    model = Tiny()
    with pytest.raises(UserError, match=r"every Fisher value is zero over 2 rows of old\.csv"):
        bound("ewc", model, lambda data, rows: (model.classifier.weight.sum() for _ in range(2)), data="old.csv")
    with pytest.raises(UserError, match=r"regularizers\.ewc\.data: old\.csv has no rows"):
        bound("ewc", model, no_rows, data="old.csv")


def test_ewc_data_in_a_recipe() -> None:
    ewc, problems = regularizers.parse({"name": "ewc", "data": "old.csv"}, "regularizers.0")
    assert not problems
    assert ewc is not None
    assert ewc.data == FileSettings(source="old.csv")
    ewc, problems = regularizers.parse("ewc", "regularizers.0")
    assert not problems
    assert ewc is not None
    assert ewc.data is None  # the rows of the run that training goes on from
    _, problems = regularizers.parse({"name": "ewc", "data": {"sourc": "x"}}, "regularizers.0")
    assert any("did you mean 'source'?" in problem for problem in problems)


# Mixout.


def mixed_once(penalty: Penalty, weight: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    with penalty.perturbed():
        return weight.detach().clone()


@pytest.mark.slow
def test_mixout_weights_have_the_right_mean() -> None:
    model = Tiny()
    start = model.inner.weight.detach().clone()
    penalty = bound("mixout", model, p=0.7)
    assert (mixed_once(penalty, model.inner.weight, 0) - start).abs().max() < 1e-12, (
        "without weight change, mixout changes nothing"
    )
    move(model, by=0.5)
    weight = model.inner.weight.detach().clone()
    draws = torch.stack([mixed_once(penalty, model.inner.weight, seed) for seed in range(2000)])
    swapped = (draws - start).abs() < 1e-9
    assert torch.allclose(draws[~swapped], ((weight - 0.7 * start) / 0.3).expand_as(draws)[~swapped])
    assert swapped.double().mean().item() == pytest.approx(0.7, abs=0.01)
    assert (draws.mean(0) - weight).abs().max() < 4 * (weight - start).abs().max() * (0.7 / 0.3 / 2000) ** 0.5


def test_mixout_restores_bit_for_bit_even_after_an_error() -> None:
    model = Tiny().float()
    penalty = bound("mixout", model)
    move(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyError), penalty.perturbed():
        assert not torch.equal(model.inner.weight, before["inner.weight"])
        for name in ("inner.bias", "norm.weight", "classifier.weight"):
            assert torch.equal(model.state_dict()[name], before[name]), "vectors and new parameters are not mixed"
        raise KeyError
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_mixout_gradient_is_that_of_the_mixed_loss() -> None:
    model = Tiny()
    penalty = bound("mixout", model, p=0.4)
    move(model)
    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)

    def step(backward: bool) -> float:
        torch.manual_seed(11)
        with penalty.perturbed():
            total = 0.0
            for row in x:  # two passes accumulate
                loss = model.classifier(model.inner(row)).square().sum()
                if backward:
                    loss.backward()
                total += loss.item()
        return total

    step(backward=True)
    gradients = {id(p): p.grad for p in model.parameters()}
    model.zero_grad()
    for p in (model.inner.weight, model.inner.bias, model.classifier.weight):
        gradient = gradients[id(p)]
        assert gradient is not None
        direction = torch.randn_like(p)
        ends = []
        for sign in (1, -2):
            with torch.no_grad():
                p += sign * 1e-6 * direction
            ends.append(step(backward=False))
        with torch.no_grad():
            p += 1e-6 * direction
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx((gradient * direction).sum().item(), rel=1e-6)
    mixed = gradients[id(model.inner.weight)]
    assert mixed is not None
    assert (mixed == 0).any(), "swapped weights get no gradient"


def test_mixout_masks_differ_between_steps_and_agree_between_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny()
    penalty: Any = bound("mixout", model, p=0.5)
    masks = [penalty.masks()[0] for _ in range(20)]
    assert any(not torch.equal(masks[0], mask) for mask in masks[1:])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: tensor.fill_(7))
    assert all(torch.equal(penalty.masks()[0], penalty.masks()[0]) for _ in range(20))
