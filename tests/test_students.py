"""`base.layers`: smaller models from some of a base's blocks, of several families, saved and loaded like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train_tiny

from pefttools import cli
from pefttools.bases.loading import BaseSettings
from pefttools.nn import module_paths
from pefttools.recipe import recipes
from pefttools.tasks import tasks

FAMILIES = {"bert": "text_classification", "roberta": "text_classification", "llama": "causal_lm", "bart": "seq2seq"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("empty", [False, True])
def test_a_student_keeps_the_chosen_blocks(family: str, empty: bool, bases: Callable[[str], Path]) -> None:
    task = tasks.get(FAMILIES[family]).example()
    source = str(bases(family))
    whole, student = (
        task.load(BaseSettings(source=source, layers=layers), empty=empty).model for layers in (None, (1,))
    )
    stacks = len(module_paths.blocks(whole)) // 2
    assert len(module_paths.blocks(student)) == stacks
    kept = {name: weight for name, weight in whole.state_dict().items() if any(f".{i}." in name for i in (1,))}
    if not empty:
        mine = student.state_dict()
        for name, weight in kept.items():
            if "layer" in name:
                torch.testing.assert_close(mine[name.replace(".1.", ".0.")], weight, rtol=0, atol=0)
    assert {tuple(w.shape) for w in student.state_dict().values()} <= {
        tuple(w.shape) for w in whole.state_dict().values()
    }


def test_a_smaller_decoder_generates_with_its_cache(bases: Callable[[str], Path]) -> None:
    model: Any = tasks.get("causal_lm").example().load(BaseSettings(source=str(bases("llama")), layers=(1,))).model
    ids = torch.tensor([[2, 7, 9, 11]])
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(ids, use_cache=True, **settings)
    assert with_cache.tolist() == model.generate(ids, use_cache=False, **settings).tolist()


@pytest.mark.parametrize(
    ("layers", "message"),
    [("[2]", "has 2 blocks in"), ("[1, 0]", "in rising order"), ("[-1]", "in rising order"), ("[0, 0]", "in rising")],
)
def test_layers_that_do_not_exist_are_refused(
    layers: str, message: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(recipe_file), f"base.layers={layers}", "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_layers_the_digest_is_as_before(recipe_file: Path) -> None:
    plain, student = (recipes.load(str(recipe_file), words).recipe for words in ([], ["base.layers=[0]"]))
    assert plain.digest == recipes.load(str(recipe_file), ["base.layers=null"]).recipe.digest != student.digest


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_a_students_run_is_exported_and_predicts(strategy: str, recipe_file: Path, tmp_path: Path) -> None:
    run, result = train_tiny(recipe_file, tmp_path / "run", "base.layers=[1]", f"strategy={strategy}", "train.epochs=1")
    whole = recipes.load(str(recipe_file)).recipe
    assert result["params"]["total"] < 2 * 32**2 * 12 + 64 * 32 * 4
    assert cli.run(["export", str(run), "--to", "merged"]) == 0
    config = json.loads((run / "export" / "merged" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    texts = ["--text", "word1 apple word3", "--text", "saw word2"]
    assert cli.run(["predict", str(run), *texts]) == cli.run(["predict", str(run / "export" / "merged"), *texts]) == 0
    assert whole.base.layers is None


@pytest.mark.slow
def test_a_students_adapter_is_refused(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = train_tiny(recipe_file, tmp_path / "run", "base.layers=[1]", "train.epochs=1")
    assert cli.run(["export", str(run), "--to", "adapter"]) == 2
    assert "keeps only some blocks" in capsys.readouterr().err


def test_the_plan_counts_a_students_parameters(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = []
    for words in ([], ["base.layers=[0]"]):
        assert cli.run(["plan", str(recipe_file), "strategy=full", *words, "--json"]) == 0
        numbers.append(json.loads(capsys.readouterr().out)["params"]["total"])
    block = 4 * (32**2 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    assert numbers[0] - numbers[1] == block
