"""The feature cache: frozen features are computed once, and every loss stays the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import losses, power_cut, train_tiny, without_clock
from feature_runs import HEAD, LAST, LORA, assert_same_losses
from transformers.models.bert.modeling_bert import BertLayer, BertPooler

from pefttools.reporter import Reporter
from pefttools.tasks import tasks
from pefttools.tasks.text_classification import TextClassification
from pefttools.training import features, loop, preparation

ARCHITECTURES = ("bert", "distilbert", "roberta", "modernbert", "deberta", "deberta-v2", "electra", "gpt2", "llama")
WITH_LORA = ("roberta", "deberta", "llama")
TASK = TextClassification.example()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_equal_those_without_the_cache(
    architecture: str, recipe_of: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = recipe_of(architecture)
    for blocks, overrides in ((2, HEAD), (1, LORA if architecture in WITH_LORA else LAST)):
        plain, without = train_tiny(recipe, tmp_path / f"off-{blocks}", *overrides, "train.feature_cache=off")
        run, result = train_tiny(recipe, tmp_path / f"{blocks}", *overrides)
        assert result["train"]["feature_cache"]["blocks"] == blocks
        assert without["train"]["feature_cache"] is None
        assert_same_losses(run, plain)
        assert result["digest"] == without["digest"]
        assert result["test"]["loss"] == pytest.approx(without["test"]["loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_causal_lm_losses_equal_those_without_the_cache(
    architecture: str, recipe_of: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = recipe_of(architecture, task={"name": "causal_lm", "max_length": 32})
    plain = train_tiny(recipe, tmp_path / "off", *LORA, "train.feature_cache=off")[0]
    run, result = train_tiny(recipe, tmp_path / "run", *LORA)
    assert result["train"]["feature_cache"]["blocks"] == 1
    assert_same_losses(run, plain)


@pytest.mark.slow
def test_packed_rows_are_not_cached(recipe_of: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipe_of("llama", task={"name": "causal_lm", "max_length": 32, "packing": True})
    assert train_tiny(recipe, tmp_path / "run", *LORA)[1]["train"]["feature_cache"] is None


@pytest.mark.slow
def test_bf16_losses_are_close_to_those_without_the_cache(bert_recipe: Path, tmp_path: Path) -> None:
    common = [*LAST, "train.precision=bf16"]
    plain = train_tiny(bert_recipe, tmp_path / "off", *common, "train.feature_cache=off")[0]
    run, result = train_tiny(bert_recipe, tmp_path / "run", *common)
    assert result["train"]["feature_cache"]["blocks"] == 1
    assert_same_losses(run, plain, 0.02)


@pytest.mark.slow
def test_cache_is_shared_by_runs_with_other_seed_rate_and_strategy(
    bert_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, calls = [], []
    plain, forward, step = features.FeatureExtractor.compute, BertLayer.forward, loop.Loop.step

    def counted(self: Any, rows: Any, title: str, reporter: Reporter) -> Any:
        computed.append(title)
        return plain(self, rows, title, reporter)

    def called(self: Any, *arguments: Any, **values: Any) -> Any:
        calls.append(self)
        return forward(self, *arguments, **values)

    def stepped(self: Any) -> None:
        calls.clear()
        step(self)
        in_a_step.append(len(calls))

    monkeypatch.setattr(features.FeatureExtractor, "compute", counted)
    monkeypatch.setattr(BertLayer, "forward", called)
    monkeypatch.setattr(loop.Loop, "step", stepped)
    in_a_step: list[int] = []
    train_tiny(bert_recipe, tmp_path / "one", *LAST)
    assert computed == ["train", "validation"]
    assert set(in_a_step) == {1}  # only the upper block
    train_tiny(bert_recipe, tmp_path / "two", *LAST, "seed=1", "train.learning_rate=0.01")
    _, result = train_tiny(bert_recipe, tmp_path / "three", *LORA, "train.epochs=1")
    assert result["train"]["feature_cache"]["rows"] == ["train", "validation"]  # in the cache already
    assert set(in_a_step) == {1}
    assert computed == ["train", "validation"]
    train_tiny(bert_recipe, tmp_path / "head", *HEAD)  # another boundary
    assert computed == ["train", "validation"] * 2
    train_tiny(bert_recipe, tmp_path / "scratch", *LAST, "base.init=scratch", "seed=7")  # other weights
    assert computed == ["train", "validation"] * 3


@pytest.mark.slow
def test_rows_that_are_read_once_are_not_cached(bert_recipe: Path, tmp_path: Path) -> None:
    _, once = train_tiny(bert_recipe, tmp_path / "once", *LAST, "train.epochs=1")
    assert once["train"]["feature_cache"] is None
    _, evaluated = train_tiny(bert_recipe, tmp_path / "looking", *LAST, "train.epochs=1", "train.evaluate_every=0.5")
    assert evaluated["train"]["feature_cache"]["rows"] == ["validation"]


@pytest.mark.slow
def test_embeddings_are_not_computed_in_steps(
    bert_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.bert.modeling_bert import BertEmbeddings

    learning: list[bool] = []
    forward = BertEmbeddings.forward

    def watched(self: Any, *args: Any, **named: Any) -> Any:
        learning.append(torch.is_grad_enabled())
        return forward(self, *args, **named)

    monkeypatch.setattr(BertEmbeddings, "forward", watched)
    train_tiny(bert_recipe, tmp_path / "run", *HEAD)
    assert learning.count(True) == 2  # finding the boundary, and the trial step
    assert learning.count(False) > 1


@pytest.mark.parametrize(
    ("task", "settings", "fixed"),
    [
        ("text_classification", {}, True),
        ("token_classification", {}, True),
        ("question_answering", {}, True),
        ("causal_lm", {}, True),
        ("causal_lm", {"packing": True}, False),
        ("masked_lm", {}, False),
        ("multiple_choice", {}, False),
    ],
)
def test_fixed_inputs_of_tasks(task: str, settings: dict[str, Any], fixed: bool) -> None:
    assert tasks.get(task)(**settings).fixed_inputs == fixed


@pytest.mark.slow
def test_randomly_masked_rows_are_not_cached(recipe_of: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipe_of("bert", task={"name": "masked_lm", "max_length": 32})
    run, result = train_tiny(recipe, tmp_path / "run", *LORA, "train.feature_cache=memory")
    assert result["train"]["feature_cache"] is None
    assert len(losses(run)) == result["train"]["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["train.feature_cache=off"]])
def test_frozen_blocks_are_in_eval_mode_in_steps(
    overrides: list[str], bert_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    step = loop.Loop.step

    def stepped(self: Any) -> None:
        model = self.model.bert
        seen.append((model.encoder.layer[0].training, model.embeddings.training, model.encoder.layer[1].training))
        step(self)

    monkeypatch.setattr(loop.Loop, "step", stepped)
    train_tiny(bert_recipe, tmp_path / "run", *LAST, *overrides)
    assert set(seen) == {(False, False, True)}


@pytest.mark.slow
def test_model_that_reads_padding_is_not_cached(
    bert_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mean(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden_states.mean(1)))

    monkeypatch.setattr(BertPooler, "forward", mean)
    monkeypatch.setattr(preparation, "refuse_padding_readers", lambda *_: None)  # otherwise the base would be refused
    plain = train_tiny(bert_recipe, tmp_path / "off", *HEAD, "train.feature_cache=off", "train.learning_rate=0.1")[0]
    run, result = train_tiny(bert_recipe, tmp_path / "run", *HEAD, "train.learning_rate=0.1")
    assert result["train"]["feature_cache"] is None
    assert losses(run) == losses(plain)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["auto", "memory"])
def test_resumed_run_equals_an_uninterrupted_one(
    where: str, bert_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*LAST, f"train.feature_cache={where}", "train.evaluate_every=0.5"]
    whole, expected = train_tiny(bert_recipe, tmp_path / "whole", *overrides)
    with power_cut(5):
        train_tiny(bert_recipe, tmp_path / "died", *overrides, "train.checkpoint_seconds=0")
    monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / "cache"))
    died, resumed = train_tiny(bert_recipe, tmp_path / "died", *overrides, resume=True)
    assert losses(died) == losses(whole)
    assert without_clock(resumed) == without_clock(expected)


@pytest.mark.slow
def test_resumed_run_keeps_its_choice_not_to_cache(bert_recipe: Path, tmp_path: Path) -> None:
    """A run of one epoch caches nothing, even if another run has filled the cache before it resumes."""
    with power_cut(2):
        train_tiny(bert_recipe, tmp_path / "died", *LAST, "train.epochs=1", "train.checkpoint_seconds=0")
    train_tiny(bert_recipe, tmp_path / "other", *LAST)
    _, resumed = train_tiny(bert_recipe, tmp_path / "died", *LAST, "train.epochs=1", resume=True)
    assert resumed["train"]["feature_cache"] is None
