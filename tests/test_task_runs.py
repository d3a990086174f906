"""Tasks on the command line: training, prediction and export on tiny bases, and common mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_recipe, write_rows

from pefttools import cli
from pefttools.bases.loading import BaseSettings
from pefttools.data.splitting import Splits
from pefttools.recipe import recipes
from pefttools.recipe.train_settings import TrainSettings
from pefttools.strategies import strategies
from pefttools.strategies.base import trained
from pefttools.tasks import tasks
from pefttools.tasks.text_classification import TextClassification
from pefttools.training.optimizer_setup import build


def tiny_recipe(folder: Path, base: Path, rows: Path, task: dict[str, Any]) -> Path:
    """A recipe that trains, validates and tests on the same few rows."""
    data = {"validation": str(rows), "test": str(rows), "deduplicate": False}
    train = {"epochs": 1, "batch_size": 8}
    return write_recipe(folder / "recipe.yaml", base, rows, data=data, task={"max_length": 32, **task}, train=train)


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.names())
def test_every_task_trains_predicts_and_exports(
    name: str, bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = tasks.get(name)
    family = {"AutoModelForCausalLM": "llama", "AutoModelForSeq2SeqLM": "bart"}.get(cls.auto_class, "bert")
    rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in cls.samples] * 4)
    task = {"name": name, **cls.sample_settings}
    file, out = tiny_recipe(tmp_path, bases(family), rows, task), tmp_path / "run"
    assert cli.run(["train", str(file), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(result["test"][cls.primary], float)
    assert result["test"]["loss"] < result["before"]["loss"]
    unlabeled = [{k: v for k, v in row.items() if k not in cls.targets} for row in cls.samples]
    write_rows(tmp_path / "unlabeled.jsonl", unlabeled)
    assert cli.run(["predict", str(out), str(tmp_path / "unlabeled.jsonl")]) == 0
    predictions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(predictions) == len(unlabeled)
    assert all("prediction" in prediction for prediction in predictions)
    assert cli.run(["export", str(out), "--to", "merged", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert manifest["max_logit_error"] <= manifest["tolerance"]
    assert cli.run(["plan", str(file), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert planned["params"] == result["params"]


def test_sample_marks_the_target_tokens(
    bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = tasks.get("causal_lm")
    rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in cls.samples])
    file = tiny_recipe(tmp_path, bases("llama"), rows, {"name": "causal_lm", "max_new_tokens": 8})
    assert cli.run(["show", str(file), "--sample", "1"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("--- 1\n")
    assert "⟦" in output
    assert cli.run(["list", "tasks", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["task_rows"]
    assert listed.keys() == set(tasks.names())
    assert listed["regression"]["required"] == ["text", "label"]


def test_long_rows_can_be_refused(
    bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [{"text": f"apple word{i} " * 20, "label": "ab"[i % 2]} for i in range(16)]
    rows = write_rows(tmp_path / "rows.jsonl", texts)
    file = tiny_recipe(tmp_path, bases("bert"), rows, {"name": "text_classification", "truncation": "refuse"})
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 2
    assert "16 of 16 train rows are longer than 32 tokens" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_unknown_tokens_warn(bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [{"text": f"苹果 word{i}", "label": "ab"[i % 2]} for i in range(16)]
    file = tiny_recipe(
        tmp_path, bases("bert"), write_rows(tmp_path / "rows.jsonl", texts), {"name": "text_classification"}
    )
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 0
    assert "of the train tokens are unknown to the tokenizer" in capsys.readouterr().err


@pytest.mark.slow
def test_unusable_rows_are_counted(
    bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [dict(row) for row in tasks.get("question_answering").samples]
    bad = {"question": "word1", "context": "word2 apple", "answers": [{"text": "nowhere", "answer_start": 3}]}
    rows = write_rows(tmp_path / "rows.jsonl", [*good, *good, bad])
    file = tiny_recipe(tmp_path, bases("bert"), rows, {"name": "question_answering"})
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run"), "--json"]) == 0
    left_out = json.loads(capsys.readouterr().out.splitlines()[-1])["data"]["left_out"]
    assert list(left_out.values()) == [3]
    (reason,) = left_out
    assert "not in its context" in reason
    write_rows(tmp_path / "rows.jsonl", [bad])
    assert cli.run(["train", str(file), "--out", str(tmp_path / "other")]) == 2
    assert "no row can be used" in capsys.readouterr().err


def test_run_folder_as_base_is_refused(
    finished_run: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["plan", str(recipe_file), f"base={finished_run}"]) == 2
    assert f"pefttools export {finished_run} --to merged" in capsys.readouterr().err


@pytest.mark.slow
def test_causal_lm_refuses_encoders_and_encoder_decoders(
    bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in tasks.get("causal_lm").samples] * 4)
    for family, hint in (("bert", "is an encoder (bert)"), ("bart", "task=seq2seq")):
        file = tiny_recipe(tmp_path, bases(family), rows, {"name": "causal_lm", "max_new_tokens": 8})
        assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 2
        assert hint in capsys.readouterr().err


def fitted() -> TextClassification:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    return TextClassification().fit(Splits(rows, rows, rows))


def test_base_from_scratch_keeps_shapes_but_no_weights(bases: Callable[[str], Path]) -> None:
    task = fitted()
    settings = BaseSettings(source=str(bases("bert")))
    torch.manual_seed(0)
    pretrained = task.load(settings)
    scratch = task.load(settings.with_values(init="scratch"))
    assert set(scratch.head) >= set(pretrained.head)
    for (name, ours), (_, theirs) in zip(
        scratch.model.named_parameters(), pretrained.model.named_parameters(), strict=True
    ):
        assert ours.shape == theirs.shape
        if name.endswith("weight") and "norm" not in name.lower():
            assert not torch.equal(ours, theirs), name
    empty = task.load(settings.with_values(init="scratch"), empty=True)
    assert empty.head == scratch.head
    assert all(p.is_meta for p in empty.model.parameters())


def test_new_head_has_a_larger_learning_rate_under_full(bases: Callable[[str], Path], recipe_file: Path) -> None:
    from pefttools.training.penalties import mark_pretrained

    base = fitted().load(BaseSettings(source=str(bases("bert"))))
    mark_pretrained(base)
    strategy = strategies.get("full")()
    model = strategy.wrap(base)
    names = {id(p): name for name, p in trained(model).items()}
    for setting, scale in ((None, 20.0), (3.0, 3.0)):
        optimizer = build(model, strategy, TrainSettings(learning_rate=1e-5, head_lr_scale=setting))
        scales = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
        heads = {name for name in scales if name.startswith(tuple(f"{path}." for path in base.head))}
        assert heads
        assert {scales[name] for name in heads} == {scale}
        assert {value for name, value in scales.items() if name not in heads} == {1.0}
    filled = recipes.load(str(recipe_file), ["strategy=full"]).recipe.train.head_lr_scale
    assert filled == 20.0
