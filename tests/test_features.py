"""Frozen features: computed once, and no loss differs for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import losses, make_rows, make_tokenizer, power_cut, train_in_two, train_tiny, without_clock
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.bert.modeling_bert import BertLayer, BertPooler

from pefttools import cli
from pefttools.compatibility import tiny_models
from pefttools.reporter import Reporter
from pefttools.sources.cache import cache_dir
from pefttools.tasks import tasks
from pefttools.tasks.text_classification import TextClassification
from pefttools.training import features, loop, preparation
from pefttools.training.run import Run

ARCHITECTURES = ("bert", "distilbert", "roberta", "modernbert", "deberta", "deberta-v2", "electra", "gpt2", "llama")
WITH_LORA = ("roberta", "deberta", "llama")
HEAD = ["strategy=top_layers"]
LAST = ["strategy=top_layers", "strategy.layers=1"]
LORA = ["strategy=lora", "strategy.targets=['*.1.*']"]
TASK = TextClassification.example()


class Said(Reporter):
    """Keeps what is noted and warned of."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Path]:
    """Architecture and sections of a recipe -> a recipe on an untaught tiny base with dropout and 80 rows."""

    def write(architecture: str, **sections: Any) -> Path:
        tokenizer = make_tokenizer()
        values = {**tiny_models.ARCHITECTURES[architecture].sizes, "vocab_size": len(tokenizer), "num_labels": 3}
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(architecture, **values))
        model.base_model.save_pretrained(tmp_path / architecture)
        tokenizer.save_pretrained(tmp_path / architecture)
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in make_rows(80)))
        recipe = {
            "base": str(tmp_path / architecture),
            "data": {"train": str(rows)},
            "task": {"name": "text_classification", "max_length": 32},
            "strategy": "top_layers",
            "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.003, "precision": "fp32", "log_every": 1,
                      "trackers": []},
            **sections,
        }  # fmt: skip
        path = tmp_path / f"{architecture}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return write


@pytest.fixture
def bert(recipe_of: Callable[..., Path]) -> Path:
    return recipe_of("bert")


def looks(run: Path) -> list[float]:
    return [line["validation"]["loss"] for line in Run(run).lines() if "validation" in line]


def assert_same_losses(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    for values in (losses, looks):
        assert max(abs(a - b) for a, b in zip(values(one), values(other), strict=True)) <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_are_those_of_a_run_without(architecture: str, recipe_of: Callable[..., Path], tmp_path: Path) -> None:
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
def test_a_language_model(architecture: str, recipe_of: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipe_of(architecture, task={"name": "causal_lm", "max_length": 32})
    plain = train_tiny(recipe, tmp_path / "off", *LORA, "train.feature_cache=off")[0]
    run, result = train_tiny(recipe, tmp_path / "run", *LORA)
    assert result["train"]["feature_cache"]["blocks"] == 1
    assert_same_losses(run, plain)


@pytest.mark.slow
def test_packed_rows_are_not_kept(recipe_of: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipe_of("llama", task={"name": "causal_lm", "max_length": 32, "packing": True})
    assert train_tiny(recipe, tmp_path / "run", *LORA)[1]["train"]["feature_cache"] is None


@pytest.mark.slow
def test_bf16(bert: Path, tmp_path: Path) -> None:
    common = [*LAST, "train.precision=bf16"]
    plain = train_tiny(bert, tmp_path / "off", *common, "train.feature_cache=off")[0]
    run, result = train_tiny(bert, tmp_path / "run", *common)
    assert result["train"]["feature_cache"]["blocks"] == 1
    assert_same_losses(run, plain, 0.02)


@pytest.mark.slow
def test_another_seed_rate_and_strategy_compute_nothing_anew(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, calls = [], []
    plain, forward, step = features.FeatureExtractor.computed, BertLayer.forward, loop.Loop.step

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

    monkeypatch.setattr(features.FeatureExtractor, "computed", counted)
    monkeypatch.setattr(BertLayer, "forward", called)
    monkeypatch.setattr(loop.Loop, "step", stepped)
    in_a_step: list[int] = []
    train_tiny(bert, tmp_path / "one", *LAST)
    assert computed == ["train", "validation"]
    assert set(in_a_step) == {1}  # the upper block alone
    train_tiny(bert, tmp_path / "two", *LAST, "seed=1", "train.learning_rate=0.01")
    _, result = train_tiny(bert, tmp_path / "three", *LORA, "train.epochs=1")
    assert result["train"]["feature_cache"]["rows"] == ["train", "validation"]  # there already
    assert set(in_a_step) == {1}
    assert computed == ["train", "validation"]
    train_tiny(bert, tmp_path / "head", *HEAD)  # another boundary
    assert computed == ["train", "validation"] * 2
    train_tiny(bert, tmp_path / "scratch", *LAST, "base.init=scratch", "seed=7")  # other weights
    assert computed == ["train", "validation"] * 3


@pytest.mark.slow
def test_a_single_pass_is_not_worth_it(bert: Path, tmp_path: Path) -> None:
    _, once = train_tiny(bert, tmp_path / "once", *LAST, "train.epochs=1")
    assert once["train"]["feature_cache"] is None
    _, looking = train_tiny(bert, tmp_path / "looking", *LAST, "train.epochs=1", "train.evaluate_every=0.5")
    assert looking["train"]["feature_cache"]["rows"] == ["validation"]


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_where_they_are_kept(kept: str, bert: Path, tmp_path: Path) -> None:
    plain = train_tiny(bert, tmp_path / "off", *LAST, "train.feature_cache=off")[0]
    run, result = train_tiny(bert, tmp_path / "run", *LAST, f"train.feature_cache={kept}")
    assert result["train"]["feature_cache"]["where"] == kept
    sizes = [file.stat().st_size for file in cache_dir("features").glob("*.bin")]
    assert sum(sizes) == (result["train"]["feature_cache"]["bytes"] if kept == "disk" else 0)
    assert_same_losses(run, plain)


@pytest.mark.slow
def test_what_memory_has_no_room_for_is_mapped(bert: Path, tmp_path: Path) -> None:
    _, result = train_tiny(bert, tmp_path / "run", *LAST, "train.feature_cache_bytes=1000")
    assert result["train"]["feature_cache"]["where"] == "disk"


@pytest.mark.slow
def test_without_room_it_is_computed_in_every_epoch_and_told(bert: Path, tmp_path: Path) -> None:
    from pefttools.recipe import recipes
    from pefttools.training import driver

    plain = train_tiny(bert, tmp_path / "off", *LAST, "train.feature_cache=off")[0]
    said = Said()
    overrides = [*LAST, "train.feature_cache_bytes=1000", "train.feature_disk_bytes=1000"]
    result = driver.train(recipes.load(str(bert), overrides).recipe, tmp_path / "run", reporter=said)
    assert result["train"]["feature_cache"] is None
    (warning,) = said.warnings
    assert warning.startswith("1 frozen block will be computed in every epoch, because caching their output needs 0 MB")
    assert losses(tmp_path / "run") == losses(plain)


@pytest.mark.slow
def test_memory_alone_keeps_what_is_read_again(bert: Path, tmp_path: Path) -> None:
    once = ("train.feature_cache=memory", "train.evaluate_every=2")
    facts = train_tiny(bert, tmp_path / "run", *HEAD, *once)[1]["train"]["feature_cache"]
    assert facts["rows"] == ["train"]
    assert train_tiny(bert, tmp_path / "short", *HEAD, *once, "train.epochs=1")[1]["train"]["feature_cache"] is None


@pytest.mark.slow
def test_what_feeds_the_blocks_is_not_computed_in_steps(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.bert.modeling_bert import BertEmbeddings

    learning: list[bool] = []
    forward = BertEmbeddings.forward

    def watched(self: Any, *args: Any, **named: Any) -> Any:
        learning.append(torch.is_grad_enabled())
        return forward(self, *args, **named)

    monkeypatch.setattr(BertEmbeddings, "forward", watched)
    train_tiny(bert, tmp_path / "run", *HEAD)
    assert learning.count(True) == 2  # where the boundary was looked for, and the step that is tried first
    assert learning.count(False) > 1


@pytest.mark.slow
def test_what_was_not_read_for_longest_goes_first(bert: Path, tmp_path: Path) -> None:
    train_tiny(bert, tmp_path / "first", *LAST)
    size = train_tiny(bert, tmp_path / "size", *HEAD, "train.feature_cache=memory")[1]["train"]["feature_cache"][
        "bytes"
    ]
    old = sorted(cache_dir("features").glob("*.bin"))
    for file in old:
        os.utime(file, (1, 1))
    train_tiny(bert, tmp_path / "second", *HEAD, f"train.feature_disk_bytes={size}")
    left = sorted(cache_dir("features").glob("*.bin"))
    assert len(left) == 2
    assert not set(left) & set(old)


@pytest.mark.slow
def test_the_note_says_what_is_kept(bert: Path, tmp_path: Path) -> None:
    from pefttools.recipe import recipes
    from pefttools.training import driver

    computed, read = "computed once: 0 MB in memory", "read from an earlier run: "
    notes = {"one": f"output of 2 frozen blocks {computed}", "two": f"output of 2 frozen blocks {read}"}
    for name, note in notes.items():
        said = Said()
        driver.train(recipes.load(str(bert), HEAD).recipe, tmp_path / name, reporter=said)
        assert any(line.startswith(note) for line in said.notes)
        assert not said.warnings


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
def test_which_inputs_are_fixed(task: str, settings: dict[str, Any], fixed: bool) -> None:
    assert tasks.get(task)(**settings).fixed_inputs == fixed


@pytest.mark.slow
def test_masks_drawn_anew_are_not_kept(recipe_of: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipe_of("bert", task={"name": "masked_lm", "max_length": 32})
    run, result = train_tiny(recipe, tmp_path / "run", *LORA, "train.feature_cache=memory")
    assert result["train"]["feature_cache"] is None
    assert len(losses(run)) == result["train"]["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["train.feature_cache=off"]])
def test_a_run_holds_it_so(overrides: list[str], bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = loop.Loop.step

    def stepped(self: Any) -> None:
        model = self.bare.bert
        seen.append((model.encoder.layer[0].training, model.embeddings.training, model.encoder.layer[1].training))
        step(self)

    monkeypatch.setattr(loop.Loop, "step", stepped)
    train_tiny(bert, tmp_path / "run", *LAST, *overrides)
    assert set(seen) == {(False, False, True)}


@pytest.mark.slow
def test_a_model_that_reads_padding_keeps_nothing(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mean(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden_states.mean(1)))

    monkeypatch.setattr(BertPooler, "forward", mean)
    monkeypatch.setattr(preparation, "refuse_padding_readers", lambda *_: None)  # by this measure it would be refused
    plain = train_tiny(bert, tmp_path / "off", *HEAD, "train.feature_cache=off", "train.learning_rate=0.1")[0]
    run, result = train_tiny(bert, tmp_path / "run", *HEAD, "train.learning_rate=0.1")
    assert result["train"]["feature_cache"] is None
    assert losses(run) == losses(plain)


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["auto", "memory"])
def test_died_and_resumed_is_never_interrupted(
    kept: str, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*LAST, f"train.feature_cache={kept}", "train.evaluate_every=0.5"]
    whole, expected = train_tiny(bert, tmp_path / "whole", *overrides)
    with power_cut(5):
        train_tiny(bert, tmp_path / "died", *overrides, "train.checkpoint_seconds=0")
    monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / "cache"))
    died, resumed = train_tiny(bert, tmp_path / "died", *overrides, resume=True)
    assert losses(died) == losses(whole)
    assert without_clock(resumed) == without_clock(expected)


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_it_began(bert: Path, tmp_path: Path) -> None:
    """One epoch computes nothing beforehand; that another run has done so since changes nothing."""
    with power_cut(2):
        train_tiny(bert, tmp_path / "died", *LAST, "train.epochs=1", "train.checkpoint_seconds=0")
    train_tiny(bert, tmp_path / "other", *LAST)
    _, resumed = train_tiny(bert, tmp_path / "died", *LAST, "train.epochs=1", resume=True)
    assert resumed["train"]["feature_cache"] is None


@pytest.mark.slow
def test_two_processes_read_the_same_file(bert: Path, tmp_path: Path) -> None:
    common = [*LAST, "base.dropout=0", "train.epochs=2"]
    one = train_tiny(bert, tmp_path / "one", *common, "train.feature_cache=off")[0]
    train_in_two(bert, tmp_path / "two", *common)
    result = Run(tmp_path / "two").result()
    assert result["train"]["processes"] == 2
    assert result["train"]["feature_cache"]["blocks"] == 1
    assert len(list(cache_dir("features").glob("*.bin"))) == 2
    assert_same_losses(one, tmp_path / "two")


@pytest.mark.slow
def test_on_the_command_line(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", str(bert), "strategy=top_layers", "--out", str(tmp_path / "run"), "--json"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)["train"]["feature_cache"]
    assert facts["blocks"] == 2
    assert facts["where"] == "memory"
    assert "2 frozen blocks computed once" in captured.err
    off = ["strategy=top_layers", "train.feature_cache=off", "--out", str(tmp_path / "off")]
    assert cli.run(["train", str(bert), *off, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["feature_cache"] is None


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [HEAD, LORA, [*HEAD, "train.feature_cache_bytes=9"], ["strategy=full"]])
def test_the_plan_counts_them(overrides: list[str], bert: Path, tmp_path: Path) -> None:
    from pefttools.planning import planner
    from pefttools.recipe import recipes

    planned = planner.plan(recipes.load(str(bert), overrides).recipe).bytes
    facts = train_tiny(bert, tmp_path / "run", *overrides)[1]["train"]["feature_cache"]
    assert planned["features"] == (facts["bytes"] if facts and facts["where"] == "memory" else 0)
    assert planned["peak"] == sum(size for part, size in planned.items() if part != "peak")


@pytest.mark.slow
def test_a_disk_that_refuses_is_told(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pefttools.errors import UserError

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features.FeatureExtractor, "compute", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); set train.feature_cache=mem"):
        train_tiny(bert, tmp_path / "run", *LAST)
