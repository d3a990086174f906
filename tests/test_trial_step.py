"""The trial step: a strategy that cannot train a base is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_bases
from conftest import make_rows, train_tiny, write_recipe, write_rows

from pefttools import cli
from pefttools.errors import UserError
from pefttools.planning.planner import plan
from pefttools.recipe import recipes


def recipe_of(folder: Path, base: Path, number: int = 12) -> Path:
    rows = write_rows(folder / "rows.jsonl", make_rows(number))
    task = {"name": "text_classification", "max_length": 32}
    return write_recipe(
        folder / "recipe.yaml", base, rows, task=task, data={"train": str(rows), "validation_share": 0.3},
        train={"epochs": 1, "batch_size": 64},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("overrides", [("strategy=adalora",), ("strategy=lora", "strategy.init=eva")])
def test_runs_of_one_step_with_data_driven_initialization(
    overrides: tuple[str, ...], precision: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    file = recipe_of(tmp_path, bases("bert"))
    _, result = train_tiny(file, tmp_path / "run", *overrides, f"train.precision={precision}")
    assert result["train"]["steps"] == 1
    assert result["test"] is not None or result["validation"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [2, 3])
def test_adalora_prunes_to_its_rank_in_few_steps(epochs: int, bases: Callable[[str], Path], tmp_path: Path) -> None:
    file = recipe_of(tmp_path, bases("bert"))
    _, result = train_tiny(file, tmp_path / "run", "strategy=adalora", f"train.epochs={epochs}")
    ranks = result["facts"]["ranks"].values()
    assert result["train"]["steps"] == epochs
    assert sum(ranks) <= 8 * len(ranks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "overrides", "cure"),
    [
        ("deberta-v2", ("strategy=vera", "train.precision=bf16"), "in bf16: .*; train.precision=fp32 works"),
        ("deberta-v2", ("strategy=peft", "strategy.type=LOHA", "train.precision=bf16"), "train.precision=fp32 works"),
        ("falcon", ("strategy=prefix", "strategy.tokens=4"), "FalconForSequenceClassification"),
        ("longformer", ("strategy=prompt", "strategy.tokens=4"), "LongformerForSequenceClassification"),
    ],
)
def test_unsupported_strategy_is_refused_in_one_line(
    kind: str, overrides: tuple[str, ...], cure: str, tmp_path: Path
) -> None:
    file, out = recipe_of(tmp_path, tiny_bases.write(tmp_path / "base", kind)), tmp_path / "run"
    with pytest.raises(UserError, match=cure) as caught:
        train_tiny(file, out, *overrides)
    assert len(str(caught.value).splitlines()) == 1
    assert cli.run(["train", str(file), *overrides, "--out", str(out)]) == 2
    assert not out.exists()


def test_plan_of_an_unsupported_strategy_is_refused(tmp_path: Path) -> None:
    file = recipe_of(tmp_path, tiny_bases.write(tmp_path / "base", "falcon"))
    with pytest.raises(UserError, match="cannot take a step"):
        plan(recipes.load(str(file), ["strategy=prefix", "strategy.tokens=4"]).recipe)
