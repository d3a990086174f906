"""Shared by tests of regularizers: a tiny BERT wrapped in every way, and a model small enough to compute by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import make_rows
from torch import Tensor, nn

from pefttools.bases.loading import Base, BaseSettings
from pefttools.data.settings import FileSettings
from pefttools.nn.low_rank import LowRankLinear
from pefttools.regularizers import regularizers
from pefttools.regularizers.base import Affected, Penalty, Regularizer
from pefttools.strategies import strategies
from pefttools.strategies.base import trained
from pefttools.tasks.text_classification import TextClassification

TASK = TextClassification(labels=("colour", "fruit", "tool"), max_length=32)
QUERIES = [f"bert.encoder.layer.{i}.attention.self.query" for i in range(2)]
HEAD = ("classifier",)


def mark(model: nn.Module, head: Sequence[str]) -> None:
    """Mark the parameters outside the head as pretrained, as loading a base does."""
    for name, parameter in model.named_parameters():
        if not any(f".{path}." in f".{name}" for path in head):
            parameter.pretrained = True  # type: ignore[attr-defined]


def by_strategy(name: str) -> Callable[[Base], Any]:
    return lambda base: strategies.get(name)().wrap(base)


def by_peft(config_name: str, **values: Any) -> Callable[[Base], Any]:
    def wrap(base: Base) -> Any:
        import peft

        values.setdefault("target_modules", QUERIES)
        config = getattr(peft, config_name)(task_type="SEQ_CLS", modules_to_save=list(base.head), **values)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # peft's, about the norms it tunes
            return peft.get_peft_model(base.model, config)

    return wrap


def by_projection(base: Base) -> Any:
    base.model.requires_grad_(False)
    base.model.get_submodule("classifier").requires_grad_(True)
    for path in QUERIES:
        thin = LowRankLinear(base.model.get_submodule(path), 4, keep_start=True)
        base.model.set_submodule(path, thin)
        assert thin.bias is not None
        thin.bias.requires_grad_(False)
    return base.model


def by_biases(base: Base) -> Any:
    for name, parameter in base.model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") and "classifier" not in name)
    return base.model


WRAPPINGS: dict[str, Callable[[Base], Any]] = {
    "full": by_strategy("full"),
    "lora": by_strategy("lora"),
    "rslora": by_peft("LoraConfig", r=4, use_rslora=True),
    "dora": by_peft("LoraConfig", r=4, use_dora=True),
    "adalora": by_peft("AdaLoraConfig", init_r=4, target_r=2, total_step=10),
    "vera": by_peft("VeraConfig", r=4),
    "ln_tuning": by_peft("LNTuningConfig", target_modules=["LayerNorm"]),
    "projection": by_projection,
    "biases": by_biases,
}


_FACTORS: set[Affected] = {"parameters", "matrices", "changed matrices", "factors"}
TRAINS: dict[str, set[Affected]] = {
    "full": {"parameters", "matrices", "pretrained", "pretrained matrices", "changed matrices"},
    **dict.fromkeys(("lora", "rslora", "dora", "adalora"), _FACTORS),
    **dict.fromkeys(("vera", "projection"), _FACTORS - {"factors"}),
    "ln_tuning": {"parameters", "matrices", "pretrained"},  # the only matrices are those of the head
    "biases": {"parameters", "pretrained"},
}
"""The kinds of parameters that each way of wrapping trains, in the terms of `Regularizer.affects`."""


class Wrapped:
    """A tiny BERT in float64, its head, and the losses of its rows."""

    def __init__(self, folder: Path, how: str) -> None:
        torch.manual_seed(0)
        self.base = TASK.load(BaseSettings(source=str(folder), dropout=0.0))
        mark(self.base.model, self.base.head)
        self.head = self.base.head
        self.original = {n: p.detach().clone().double() for n, p in self.base.model.named_parameters()}
        self.model = WRAPPINGS[how](self.base).double().eval()

    def row_losses(self, data: FileSettings | None, rows: int) -> Iterator[Tensor]:
        for row in make_rows(min(rows, 4), seed=5):
            batch = TASK.collate(TASK.encode([row], self.base.tokenizer), self.base.tokenizer, 8)
            yield TASK.loss(self.model(**{k: v for k, v in batch.items() if k != "labels"}), batch)

    def bind(self, regularizer: Regularizer) -> Penalty:
        return regularizer.bind(self.model, self.head, self.row_losses)


class Tiny(nn.Module):
    """A pretrained matrix with its bias and norm, and a new head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.norm, self.classifier = nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2)
        mark(self, HEAD)
        self.double()


def no_rows(data: FileSettings | None, rows: int) -> Iterator[Tensor]:
    yield from ()


def make(name: str, **values: Any) -> Regularizer:
    return regularizers.get(name)(**values)


def bound(name: str, model: nn.Module, row_losses: Any = no_rows, **values: Any) -> Penalty:
    return make(name, **values).bind(model, HEAD, row_losses)


def value_of(penalty: Penalty) -> float:
    value = penalty.value()
    assert value is not None
    return value.item()


def move(model: nn.Module, by: float = 0.05, seed: int = 3) -> dict[str, Tensor]:
    """Move every trained parameter by a random amount; returns the amounts by name."""
    draw = torch.Generator().manual_seed(seed)
    moves = {n: by * torch.randn(p.shape, generator=draw, dtype=p.dtype) for n, p in trained(model).items()}
    with torch.no_grad():
        for name, p in trained(model).items():
            p += moves[name]
    return moves
