"""Measurements of a trained model in a suite: weight change, forgetting, and scores of blocks of rows."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_rows, train_tiny, write_recipe, write_rows

from pefttools.bench.forgetting import forgetting
from pefttools.bench.units import pseudo_values
from pefttools.tasks.text_classification import TextClassification
from pefttools.training.run import load
from pefttools.training.weight_change import effective_rank, moved


def test_effective_rank_counts_equal_directions() -> None:
    q, _ = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert effective_rank(q[:, :5] @ q[:5]) == pytest.approx(5, abs=1e-3)
    assert effective_rank(torch.outer(q[0], q[1])) == pytest.approx(1, abs=1e-3)
    unequal = q @ torch.diag(torch.tensor([3.0, 1.0] + [0.0] * 18, dtype=torch.float64)) @ q.T
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(unequal) == pytest.approx(math.exp(entropy), abs=1e-3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Callable[..., Path]:
    """Name and overrides -> a finished run, made once."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(name: str, *overrides: str) -> Path:
        if name not in made:
            made[name] = train_tiny(recipe_file, folder / name, *overrides)[0]
        return made[name]

    return run


@pytest.mark.slow
def test_weight_change_of_full_is_the_difference_of_weights(runs: Callable[..., Path]) -> None:
    run = runs("full", "strategy=full", "train.learning_rate=0.001")
    found = moved(load(run))
    trained: Any = load(run)
    start = trained.task.load(trained.recipe.base).model
    before, after = start.state_dict(), trained.model.state_dict()
    names = [name for name, _ in start.named_parameters() if ".layer.1." in name]
    square = sum(float((after[name] - before[name]).double().square().sum()) for name in names)
    assert found["blocks"][1] == pytest.approx(math.sqrt(square), rel=1e-6)
    assert found["elsewhere"] > 0
    assert found["relative"] > 0


@pytest.mark.slow
def test_effective_rank_of_lora_is_at_most_its_rank(runs: Callable[..., Path]) -> None:
    found = moved(load(runs("lora", "strategy.rank=2")))
    assert all(norm > 0 for norm in found["blocks"])
    assert found["elsewhere"] == 0
    assert 1 <= found["effective_rank"] <= 2 + 1e-6


@pytest.mark.slow
def test_weight_change_is_zero_if_only_the_head_is_trained(runs: Callable[..., Path]) -> None:
    found = moved(load(runs("head", "strategy=top_layers")))
    assert (found["blocks"], found["elsewhere"], found["effective_rank"]) == ([0.0, 0.0], 0.0, None)


@pytest.mark.slow
def test_adapters_change_no_weight_of_the_base(runs: Callable[..., Path]) -> None:
    found = moved(load(runs("adapter", "strategy=adapter", "strategy.bottleneck=4")))
    assert (found["relative"], found["merged"]) == (0.0, False)


@pytest.fixture(scope="module")
def retention(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> Path:
    """A masked_lm head that was trained on the frozen base."""
    folder = tmp_path_factory.mktemp("retention")
    rows = write_rows(folder / "texts.jsonl", ({"text": row["text"]} for row in make_rows(300, seed=3)))
    recipe = write_recipe(
        folder / "words.yaml", bases("bert"), rows, task={"name": "masked_lm", "max_length": 16},
        strategy="top_layers", train={"epochs": 2},
    )  # fmt: skip
    return train_tiny(recipe, folder / "run")[0]


@pytest.mark.slow
def test_training_only_the_head_forgets_nothing(runs: Callable[..., Path], retention: Path) -> None:
    found = forgetting(load(runs("head", "strategy=top_layers")), retention)
    assert found["after"] == pytest.approx(found["before"], abs=1e-6)


@pytest.mark.slow
def test_full_fine_tuning_forgets(runs: Callable[..., Path], retention: Path) -> None:
    found = forgetting(load(runs("rough", "strategy=full", "train.learning_rate=0.01")), retention)
    assert found["after"] > found["before"] + 0.01


@pytest.mark.slow
def test_forgetting_is_measured_with_lora_and_adapters_applied(runs: Callable[..., Path], retention: Path) -> None:
    for name, words in (("lora", ["strategy.rank=2"]), ("adapter", ["strategy=adapter", "strategy.bottleneck=4"])):
        found = forgetting(load(runs(name, *words)), retention)
        assert found["after"] != found["before"]


@pytest.mark.slow
def test_forgetting_is_not_measured_with_virtual_tokens(runs: Callable[..., Path], retention: Path) -> None:
    run = runs("prompt", "strategy=prompt", "strategy.tokens=4", "train.epochs=1")
    assert "virtual tokens" in forgetting(load(run), retention)["reason"]


def test_pseudo_values_of_accuracy_are_those_of_the_rows() -> None:
    """With as many blocks as rows, n·θ − (n−1)·θ₍₋ᵢ₎ is whether row i is right."""
    task = TextClassification(labels=("a", "b"))
    references = ["a", "b", "a", "a", "b"]
    predictions = [{"prediction": name} for name in ("a", "b", "b", "a", "a")]
    values = pseudo_values(task, predictions, references, 0.6)
    assert values == pytest.approx([1, 1, 0, 1, 0])


@pytest.mark.slow
def test_pseudo_values_of_f1_average_to_nearly_f1() -> None:
    draw = random.Random(0)
    task: Any = TextClassification(labels=("a", "b"))
    references = [draw.choice("ab") for _ in range(400)]
    predictions = [{"prediction": r if draw.random() < 0.8 else draw.choice("ab")} for r in references]

    class ByF1:
        primary = "f1"
        metrics = staticmethod(task.metrics)

    score = task.metrics(predictions, references)["f1"]
    values = pseudo_values(ByF1, predictions, references, score)
    assert len(values) == 100
    assert statistics.fmean(values) == pytest.approx(score, abs=0.005)
    error = statistics.stdev(values) / 10
    assert error == pytest.approx(math.sqrt(score * (1 - score) / 400), rel=0.35)
