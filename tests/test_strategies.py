"""One contract over the registry: a new strategy file is tested with no edit here."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_rows

from pefttools.models import Base, BaseSettings
from pefttools.settings import explain_field
from pefttools.strategies import strategies
from pefttools.strategies.base import Strategy, restore, trained
from pefttools.tasks.text_classification import TextClassification

TASK = TextClassification(labels=("colour", "fruit", "tool"), max_length=32)
FAMILIES = ("bert", "roberta", "llama")


@pytest.fixture(params=strategies.names())
def strategy(request: pytest.FixtureRequest) -> Strategy:
    return strategies.get(request.param)()


@pytest.fixture(params=FAMILIES)
def fresh(request: pytest.FixtureRequest, bases: Callable[[str], Path]) -> Callable[..., Base]:
    folder = bases(request.param)

    def load(seed: int = 0) -> Base:
        torch.manual_seed(seed)
        return TASK.load(BaseSettings(source=str(folder), dropout=0.0))

    return load


def logits(model: Any, base: Base) -> torch.Tensor:
    model.eval()
    batch = batch_of(base, 16)
    with torch.no_grad():
        return model(**{k: v for k, v in batch.items() if k != "labels"}).logits


def batch_of(base: Base, number: int) -> dict[str, torch.Tensor]:
    columns = TASK.encode(make_rows(number, seed=5), base.tokenizer)
    return TASK.collate(columns, base.tokenizer, 8)


def learn(model: Any, base: Base, strategy: Strategy, num_steps: int = 5) -> list[float]:
    """A few steps of SGD-free AdamW at a rate that moves everything; the losses."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=strategy.default_lr)
    batch, said = batch_of(base, 48), []
    model.train()
    for step in range(1, num_steps + 1):
        outputs = model(**{k: v for k, v in batch.items() if k != "labels"})
        loss = TASK.loss(outputs, batch) / 48
        loss.backward()
        optimizer.step()
        strategy.updated(model, step, num_steps)
        optimizer.zero_grad()
        said.append(loss.item())
    return said


def test_start_is_exact_where_claimed(strategy: Strategy, fresh: Callable[..., Base]) -> None:
    base = fresh()
    plain = logits(base.model, base)
    wrapped = logits(strategy.wrap(fresh()), base)
    if strategy.exact_start:
        assert (plain - wrapped).abs().max() == 0


def test_what_is_trained_moves_and_nothing_else(strategy: Strategy, fresh: Callable[..., Base]) -> None:
    base = fresh()
    model = strategy.wrap(base)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = set(trained(model))
    learn(model, base, strategy)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == names
    for path in base.head:
        assert any(f".{path}." in f".{name}" for name in names), f"the head's {path} is not trained"


def test_loss_falls(strategy: Strategy, fresh: Callable[..., Base]) -> None:
    base = fresh()
    said = learn(strategy.wrap(base), base, strategy, 30)
    assert said[-1] < said[0]


def test_save_and_load_are_bit_equal(strategy: Strategy, fresh: Callable[..., Base], tmp_path: Path) -> None:
    base = fresh()
    model = strategy.wrap(base)
    learn(model, base, strategy)
    strategy.save(model, tmp_path)
    again = strategy.load(fresh(seed=99), tmp_path)  # another start of the head: a lost head would show
    assert torch.equal(logits(model, base), logits(again, base))


def test_merged_answers_the_same(strategy: Strategy, fresh: Callable[..., Base]) -> None:
    base = fresh()
    model = strategy.wrap(base)
    learn(model, base, strategy)
    before = logits(model, base)
    if not strategy.mergeable:
        pytest.skip(f"{strategy.name} says it cannot merge")
    merged = strategy.merge(model)
    assert (logits(merged, base) - before).abs().max() <= 1e-5
    foreign = {type(m).__module__.split(".")[0] for m in merged.modules()} - {"torch", "transformers"}
    assert not foreign


def test_settings_survive_yaml(strategy: Strategy) -> None:
    again, problems = strategies.parse(yaml.safe_load(yaml.safe_dump(strategy.as_dict())), "strategy")
    assert not problems
    assert again == strategy


def test_every_setting_is_explained(strategy: Strategy) -> None:
    for name, field in type(strategy).model_fields.items():
        assert explain_field(field), f"{strategy.name}.{name} has no docstring under it"


def test_learning_rate_is_in_its_range(strategy: Strategy) -> None:
    low, high = strategy.lr_range
    assert low <= strategy.default_lr <= high


@pytest.mark.parametrize("package", ["strategies", "tasks", "exporters"])
def test_siblings_do_not_import_each_other(package: str) -> None:
    folder = Path(__file__).parent.parent / "pefttools" / package
    files = [f for f in folder.glob("*.py") if f.stem not in ("__init__", "base")]
    assert files
    for file in files:
        imported = {
            n.module for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom) and n.module
        }
        siblings = {f"pefttools.{package}.{other.stem}" for other in files if other != file}
        assert not imported & siblings


def test_a_tensor_too_few_is_refused(bases: Callable[[str], Path]) -> None:
    from pefttools.errors import UserError

    base = TASK.load(BaseSettings(source=str(bases("bert"))))
    model = strategies.get("full")().wrap(base)
    tensors = dict(list(trained(model).items())[1:])
    with pytest.raises(UserError, match="not those this model trains"):
        restore(model, tensors, "here")  # type: ignore[arg-type]
