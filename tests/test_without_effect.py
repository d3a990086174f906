"""Settings without effect are reported; texts in suites are taken literally; a changed recipe gets a new name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pefttools import cli
from pefttools.bench import suite
from pefttools.recipe import recipes


@pytest.mark.parametrize(
    ("name", "overrides", "sentence"),
    [
        ("question-type-lora", ["strategy=frozen", "train.patience=2"], "because strategy=frozen trains nothing"),
        ("question-type-lora", ["train.head_lr_scale=5"], "with strategy=lora the head has the same learning rate"),
        ("gsm8k-smollm2-lora", ["data.labels.a=b"], "data.labels has no effect: the rows of task=causal_lm"),
        ("gsm8k-smollm2-lora", ["data.min_class_rows=3"], "data.min_class_rows has no effect"),
    ],
)
def test_settings_without_effect_are_noted(name: str, overrides: list[str], sentence: str) -> None:
    assert sentence in " ".join(recipes.load(name, overrides).notes)
    assert sentence not in " ".join(recipes.load(name).notes)


@pytest.mark.slow
def test_settings_without_effect_are_reported_before_training(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["strategy=frozen", "data.labels.Fruit=sweet", "data.labels.tool=thing", "--out", str(tmp_path / "run")]
    assert cli.run(["train", str(recipe_file), *words]) == 0
    message = " ".join(capsys.readouterr().err.split())
    assert "train.batch_size=16: has no effect, because strategy=frozen" in message
    assert "data.labels: no row has the label 'Fruit'; rows have" in message
    assert json.loads((tmp_path / "run" / "result.json").read_text())


def test_texts_in_a_suite_file_are_taken_literally(tmp_path: Path) -> None:
    """YAML's `no` and `007` under `set` and in tasks, where the recipe's settings are texts."""
    file = tmp_path / "s.yaml"
    file.write_text(
        "recipe: question-type-lora\n"
        "set: {data.labels: {0: no, 1: 007}, data.columns.text: 12:30, train.epochs: 1e-1, task.multi_label: no}\n"
        "axes:\n"
        "  strategies: [lora]\n"
        "  tasks: {mine: {recipe: question-type-lora, set: {data.labels.2: yes}}}\n"
    )
    (cell,) = suite.load(str(file)).cells()
    recipe = cell.recipe(0)
    assert recipe.data.labels == {"0": "no", "1": "007", "2": "yes"}
    assert recipe.data.columns["text"] == "12:30"
    assert recipe.train.epochs == 0.1
    assert recipe.task.as_dict()["multi_label"] is False


def test_changed_packaged_recipe_gets_a_new_name() -> None:
    plain = recipes.load("question-type-lora").recipe
    other = recipes.load("question-type-lora", ["strategy=bitfit"])
    assert (other.recipe.name, other.recipe.description) == ("question-type-bitfit", "")
    assert "description" in " ".join(other.notes)
    assert recipes.load("question-type-lora", ["base=models/my-bert"]).recipe.name == "question-type-lora-my-bert"
    assert recipes.load("question-type-lora", ["strategy=bitfit", "name=mine", "description=x"]).recipe.name == "mine"
    for same in (["strategy=lora"], ["strategy.rank=4"], ["train.epochs=1"]):
        found = recipes.load("question-type-lora", same).recipe
        assert (found.name, found.description) == (plain.name, plain.description)
