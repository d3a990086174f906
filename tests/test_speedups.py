"""Faster layers compute what torch and peft compute: weights bit for bit, outputs, gradients, dropout rates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import make_rows
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pefttools.bases.loading import BaseSettings
from pefttools.errors import UserError
from pefttools.nn import attention, bf16_split, dropout, lora_linear
from pefttools.recipe.train_settings import TrainSettings
from pefttools.strategies import strategies
from pefttools.strategies.base import trained
from pefttools.tasks.text_classification import TextClassification
from pefttools.training import speedups

TASK = TextClassification(labels=("colour", "fruit", "tool"), max_length=32)


@pytest.mark.slow
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20))
def test_bf16_split_is_lossless_and_its_upper_half_the_nearest_bf16(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    upper, lower = bf16_split.split(values)
    assert torch.equal(bf16_split.joined(upper, lower).view(torch.int32), values.view(torch.int32))
    largest = torch.finfo(torch.bfloat16).max
    inside = values.abs() <= largest
    nearest = values[inside].bfloat16()
    assert ((upper[inside].float() - values[inside]).abs() <= (nearest.float() - values[inside]).abs()).all()


def test_only_frozen_matrices_are_stored_in_bf16_and_restored() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    model[3].weight = model[0].weight  # tied
    model[0].weight.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    model[1].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    restore = bf16_split.keep_upper(model)
    assert {name: p.dtype for name, p in model.named_parameters()} == {
        "0.weight": torch.bfloat16, "1.weight": torch.float32, "1.bias": torch.float32, "2.weight": torch.bfloat16,
        "2.bias": torch.float32,
    }  # fmt: skip
    assert model[3].weight is model[0].weight
    restore()
    restore()  # a second call changes nothing
    assert all(torch.equal(p, before[name]) and p.dtype is torch.float32 for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5, 0.9])
def test_dropout_zeroes_the_share_p_and_keeps_the_mean(dtype: torch.dtype, p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(301, 997, dtype=dtype, requires_grad=True)
    y = dropout.dropout(x, p)
    y.sum().backward()
    kept = y != 0
    scale = y[kept][0].item()
    share = 1 - kept.float().mean().item()
    assert abs(share - p) <= 0.02 * p + 4 * (p * (1 - p) / x.numel()) ** 0.5
    assert (y[kept] == scale).all()
    assert y.float().mean().item() == pytest.approx(1, abs=0.01)
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    by_row, by_column = (1 - kept.float().mean(dim) for dim in (1, 0))
    for shares, number in ((by_row, 997), (by_column, 301)):  # no row or column is favoured
        assert shares.std().item() == pytest.approx((p * (1 - p) / number) ** 0.5, rel=0.2)
    halves_differ = (kept[:, :498] != kept[:, 498:996]).float().mean().item()
    assert halves_differ == pytest.approx(2 * p * (1 - p), rel=0.05)


def test_dropout_follows_the_torch_seed_and_handles_edge_cases() -> None:
    x = torch.randn(3, 5, 7)
    torch.manual_seed(3)
    first, second = dropout.dropout(x, 0.4), dropout.dropout(x, 0.4)
    torch.manual_seed(3)
    assert torch.equal(first, dropout.dropout(x, 0.4))
    assert not torch.equal(first, second)
    assert torch.equal(dropout.dropout(x, 0.0), x)
    assert not dropout.dropout(x, 1.0).any()
    changed = dropout.dropout(x.clone().requires_grad_(), 0.5)
    changed /= 2  # as a model may do
    changed.sum().backward()
    assert dropout.dropout(x.transpose(0, 2), 0.5).shape == (7, 5, 3)
    assert dropout.dropout(x.double(), 0.5).dtype is torch.float64  # torch's own dropout
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout1d(0.5))
    with dropout.replace_dropout(model):
        assert [type(m) for m in model] == [dropout.Dropout, nn.Dropout1d]
        model.eval()
        assert torch.equal(model[0](x), x)
    assert type(model[0]) is nn.Dropout


class _Attends(nn.Module):
    num_key_value_groups = 2


@pytest.mark.parametrize("tokens", [2, 9, 40])
@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
def test_attention_outputs_and_gradients_equal_sdpa(tokens: int, mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "FEW", {False: 64})
    torch.manual_seed(0)
    inputs = [torch.randn(3, tokens, heads, 8).transpose(1, 2).requires_grad_() for heads in (4, 2, 2)]
    allowed = torch.ones(3, 1, tokens, tokens, dtype=torch.bool)
    allowed[0, ..., -1:] = False
    arguments: dict[str, Any] = {
        "attention_mask": allowed if mask == "padding" else None,
        "is_causal": mask == "causal",
    }

    def outputs_and_gradients() -> list[torch.Tensor]:
        out, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](_Attends(), *inputs, scaling=0.3, dropout=0.0, **arguments)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    expected = outputs_and_gradients()
    called: list[int] = []
    ours = attention.attention
    monkeypatch.setattr(attention, "attention", lambda *args: called.append(1) or ours(*args))
    with attention.replace_sdpa():
        found = outputs_and_gradients()
    assert called == [1]
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("unusual", ["float mask", "one query", "more keys", "long", "bias"])
def test_attention_falls_back_to_torch_for_unsupported_inputs(unusual: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attention", lambda *_: pytest.fail("not to be called"))
    queries, keys = {"one query": (1, 4), "more keys": (3, 5), "long": (60, 60)}.get(unusual, (5, 5))
    query, key = torch.randn(1, 2, queries, 8), torch.randn(1, 2, keys, 8)
    more: dict[str, Any] = {"position_bias": torch.randn(1, 2, 5, 5)} if unusual == "bias" else {}
    mask = torch.zeros(1, 1, 5, 5) if unusual == "float mask" else None
    with attention.replace_sdpa():
        output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](nn.Module(), query, key, key, mask, is_causal=True, **more)
    assert output.shape == (1, queries, 2, 8)


def lora_layer(**settings: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20))
    config = peft.LoraConfig(target_modules=["0"], r=4, lora_alpha=12, init_lora_weights=False, **settings)
    return peft.get_peft_model(model, config)  # type: ignore[arg-type]


@pytest.mark.parametrize("rslora", [False, True])
def test_lora_equals_pefts_outputs_and_gradients(rslora: bool) -> None:
    model = lora_layer(use_rslora=rslora)
    x = torch.randn(2, 7, 12, requires_grad=True)
    weights = [x, *trained(model).values()]

    def outputs_and_gradients() -> list[torch.Tensor]:
        out = model(x)
        out /= 2  # as DeBERTa does
        return [out, *torch.autograd.grad(out.pow(2).sum(), weights)]

    expected = outputs_and_gradients()
    with lora_linear.replace_lora_layers(model) as number:
        assert number == 1
        found = outputs_and_gradients()
        assert "_LoraLinear" in str(model(x).grad_fn.next_functions)
        state = {name: value.clone() for name, value in peft.get_peft_model_state_dict(model).items()}
    assert "_LoraLinear" not in str(model(x).grad_fn.next_functions)
    assert state.keys() == peft.get_peft_model_state_dict(model).keys()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_lora_in_bf16_is_as_near_to_fp32_as_pefts() -> None:
    model = lora_layer()
    x = torch.randn(64, 12, requires_grad=True)
    weights = [x, *trained(model).values()]

    def outputs_and_gradients(bf16: bool) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model(x)
        return [out.float(), *torch.autograd.grad(out.float().pow(2).sum(), weights)]

    def error(values: list[torch.Tensor]) -> list[float]:
        return [((a - b).norm() / b.norm()).item() for a, b in zip(values, exact, strict=True)]

    exact = outputs_and_gradients(bf16=False)
    pefts = error(outputs_and_gradients(bf16=True))
    with lora_linear.replace_lora_layers(model):
        outputs = outputs_and_gradients(bf16=True)
        ours = error(outputs)
    assert all(one <= 2 * other for one, other in zip(ours, pefts, strict=True)), (ours, pefts)
    assert all(value.dtype is torch.float32 for value in outputs)


def test_lora_falls_back_to_peft_for_unsupported_layers() -> None:
    for settings in ({"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}):
        assert not lora_linear.applies(lora_layer(**settings).base_model.model[0]), settings
    for change in ("merged", "two", "trained", "off"):
        model = lora_layer()
        layer = model.base_model.model[0]
        assert lora_linear.applies(layer)
        match change:
            case "merged":
                layer.merge()
            case "two":
                model.add_adapter("more", peft.LoraConfig(target_modules=["0"], r=2))
                model.base_model.set_adapter(["default", "more"])
            case "trained":
                layer.base_layer.weight.requires_grad_(True)
            case "off":
                layer.enable_adapters(False)
        assert not lora_linear.applies(layer), change


def test_lora_with_a_frozen_input_has_gradients() -> None:
    model = lora_layer()
    with lora_linear.replace_lora_layers(model):
        model(torch.randn(3, 12)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in trained(model).values())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama", "bart"])
@pytest.mark.parametrize("name", strategies.names())
def test_every_strategy_steps_in_bf16_and_restores_its_frozen_weights(
    name: str, family: str, bases: Callable[[str], Path]
) -> None:
    strategy = strategies.get(name)()
    base = TASK.load(BaseSettings(source=str(bases(family)), dropout=0.1))
    try:
        model = strategy.wrap(base)
    except UserError as error:
        pytest.skip(str(error))
    if not strategy.trains:
        pytest.skip("trains nothing")
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    rows = [TASK.read(row) for row in make_rows(8)]
    batch = TASK.collate(TASK.encode(rows, base.tokenizer), base.tokenizer, 8)
    parameters = list(trained(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    with speedups.steps(model, TrainSettings(), "cpu", "bf16"):
        model.train()
        for _ in range(6):
            with torch.autocast("cpu", torch.bfloat16):
                outputs = model(**TASK.inputs_of(batch))
            loss = TASK.loss(outputs, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], values) for name, values in frozen.items())
    assert all(p.dtype is torch.float32 for p in parameters)
