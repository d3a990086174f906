"""The last block computed for the first token only: the same logits and gradients, where the model allows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import losses, train_tiny
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

from pefttools.compatibility import tiny_models
from pefttools.nn import first_token
from pefttools.strategies import strategies
from pefttools.training import preparation

INPUTS = {
    "input_ids": torch.arange(5, 29).view(4, 6),
    "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 0, 0, 0, 0]]),
}


def built(architecture: str, kind: Any = AutoModelForSequenceClassification, **values: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        **tiny_models.ARCHITECTURES[architecture].sizes,
        "vocab_size": 60,
        "num_labels": 3,
        "pad_token_id": 0,
        **values,
    }
    return kind.from_config(AutoConfig.for_model(architecture, **sizes)).eval()


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
def test_logits_and_gradients_equal_those_of_the_whole_block(architecture: str) -> None:
    model = built(architecture)
    last = first_token.last_block(model, INPUTS)
    assert last is not None
    shapes: list[Any] = []
    last.block.register_forward_hook(lambda _, __, output: shapes.append(output.shape[1]))

    def logits_and_gradients() -> list[torch.Tensor]:
        logits = model(**INPUTS).logits
        named = {n: p for n, p in model.named_parameters() if "position_embeddings" not in n}
        return [logits, *torch.autograd.grad(logits.square().sum(), list(named.values()), materialize_grads=True)]

    whole = logits_and_gradients()
    with last.restricted():
        alone = logits_and_gradients()
    again = logits_and_gradients()
    assert shapes == [6, 1, 6]
    for one, other, third in zip(whole, alone, again, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert torch.equal(one, third)


class _Mean(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.mean(1)


def _mean(model: Any) -> Any:
    model.bert.pooler = _Mean()
    return model


def _blind(model: Any) -> Any:
    nn.init.zeros_(model.classifier.weight)  # its logits do not depend on the input
    return model


OTHERS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: built(name) for name in ("distilbert", "modernbert", "deberta", "gpt2", "llama")},
    "a label a token": lambda: built("bert", AutoModelForTokenClassification),
    "the mean of all tokens": lambda: _mean(built("bert")),
    "a head of zeros": lambda: _blind(built("bert")),
    "eager attention": lambda: built("bert", attn_implementation="eager"),
    "no blocks": lambda: nn.Linear(2, 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_compute_the_whole_block(name: str) -> None:
    model = OTHERS[name]()
    before = {module: set(vars(module)) for module in model.modules()}
    assert first_token.last_block(model, INPUTS) is None
    assert {module: set(vars(module)) for module in model.modules()} == before


def test_rows_of_one_token_compute_the_whole_block() -> None:
    assert first_token.last_block(built("bert"), {"input_ids": INPUTS["input_ids"][:, :1]}) is None


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [name for name in strategies.names() if strategies.get(name)().trains])
def test_losses_of_a_run_equal_those_with_the_whole_block(
    strategy: str, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    last_block = first_token.last_block
    monkeypatch.setattr(preparation, "last_block", lambda *args: found.append(last_block(*args)) or found[-1])
    common = (f"strategy={strategy}", "base.dropout=0", "train.epochs=1", "data.train_rows=64", "train.precision=fp32")
    alone, result = train_tiny(recipe_file, tmp_path / "alone", *common)
    monkeypatch.setattr(preparation, "last_block", lambda *_: None)
    whole, other = train_tiny(recipe_file, tmp_path / "whole", *common)
    assert losses(alone) == pytest.approx(losses(whole), abs=1e-5)
    assert result["test"]["loss"] == pytest.approx(other["test"]["loss"], abs=1e-5)
    assert len(found) == 1
    assert (found[0] is not None) is (strategy != "prefix")  # prefix tuning adds keys of its own
