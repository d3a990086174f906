"""`train --from RUN`: training goes on from a finished run, with more classes, in place or on top of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import NO_HASHES, make_rows, train_in_two, train_tiny, write_rows
from continued_runs import Continued, refused, result, train, write
from resuming import assert_resumes_exactly
from test_train import assert_same_weights

import pefttools
from pefttools import cli
from pefttools.recipe import recipes
from pefttools.strategies.base import read
from pefttools.training.preparation import prepare

pytestmark = pytest.mark.slow
TEXTS = ("word1 apple word2", "word3 saw word4", "green word5 word6 word7")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> Continued:
    return Continued(tmp_path_factory.mktemp("chain"), bases)


@pytest.fixture(scope="module")
def second(chain: Continued, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that continues the first one."""
    out = tmp_path_factory.mktemp("second") / "two"
    assert train(chain.recipe, "--from", chain.first, "--out", out) == 0
    return out


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**tokenizer(list(TEXTS), padding=True, return_tensors="pt")).logits


@pytest.mark.parametrize("adapter", ["continue", "stack"])
def test_old_classes_keep_their_logits_bit_for_bit_before_the_first_step(adapter: str, chain: Continued) -> None:
    words = [f"start.source={chain.first}", f"start.adapter={adapter}"]
    ready = prepare(recipes.load(str(chain.recipe), words).recipe)
    labels = ready.recipe.task.labels  # type: ignore[attr-defined]
    before = pefttools.load(chain.first)
    assert (before.task.labels, labels) == (("fruit", "tool"), ("fruit", "tool", "colour"))  # type: ignore[attr-defined]
    model = before.model if adapter == "continue" else before.recipe.strategy.merge(before.model)
    was, now = logits(model, before.base.tokenizer), logits(ready.model, ready.base.tokenizer)
    assert torch.equal(now[:, :2], was)
    assert now.shape == (3, 3)


def test_the_folder_has_the_source_and_gives_the_same_run_again(
    chain: Continued, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = yaml.safe_load((second / "recipe.yaml").read_text())["start"]
    assert start["source"] == str(chain.first)
    assert len(start["sha256"]) == 64
    given = recipes.load(str(chain.recipe), [f"start.source={chain.first}"]).recipe
    assert result(second)["digest"] == given.digest != recipes.load(str(chain.recipe)).recipe.digest
    assert given.digest == recipes.load(str(second / "recipe.yaml")).recipe.digest
    assert train(second / "recipe.yaml", "--out", tmp_path / "again") == 0
    assert_same_weights(second, tmp_path / "again")
    capsys.readouterr()
    assert train(chain.recipe, "--from", chain.first, "--out", second, "--resume") == 0
    assert "already finished" in capsys.readouterr().err
    assert cli.run(["show", str(chain.recipe), f"start.source={chain.first}"]) == 0
    assert start["sha256"] in capsys.readouterr().out


@pytest.mark.parametrize("more", [(), ("start.adapter=stack", "data.replay.share=0.2", "regularizers=[l2_sp,ewc]")])
def test_a_run_that_died_continues_bit_for_bit(more: tuple[str, ...], chain: Continued, tmp_path: Path) -> None:
    words = [f"start.source={chain.first}", "train.checkpoint_seconds=1000", *more]
    whole, expected = train_tiny(chain.recipe, tmp_path / "whole", *words)
    assert_resumes_exactly(chain.recipe, tmp_path / "died", words[:1] + list(more), whole, expected)


@pytest.mark.parametrize("strategy", ["full", "adapter", "bitfit", "top_layers", "prompt", "low_rank", "ia3", "vera"])
def test_strategies_are_continued(strategy: str, chain: Continued, tmp_path: Path) -> None:
    words = (f"strategy={strategy}", "train.epochs=1")
    train_tiny(chain.first_recipe, tmp_path / "one", *words)
    _, found = train_tiny(chain.recipe, tmp_path / "two", f"start.source={tmp_path / 'one'}", "train.epochs=1")
    assert found["strategy"] == strategy  # without being named again
    own = found["ledger"]["own"]["scores"]
    assert found["ledger"]["before"]["own"] == pytest.approx(own[0])


@pytest.mark.parametrize("upper", ["lora", "full"])
def test_a_stack_needs_no_source_and_is_exported(
    upper: str, chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, run = tmp_path / "first", tmp_path / "stacked"
    shutil.copytree(chain.first, first)
    words = ("--from", first, "start.adapter=stack", f"strategy={upper}", "train.epochs=1")
    assert train(chain.recipe, *words, "--out", run) == 0
    third = tmp_path / "third"
    assert train(chain.first_recipe, "--from", run, "train.epochs=1", "--out", third) == 0
    for folder in (first, run / "checkpoints"):
        shutil.rmtree(folder, ignore_errors=True)
    assert (third / "previous" / "0").is_dir()  # goes on from the upper adapter; the lower one stays below it
    for one in (run, third):
        capsys.readouterr()
        assert cli.run(["predict", str(one), "--text", TEXTS[0], "--precision", "fp32"]) == 0
        predicted = json.loads(capsys.readouterr().out)["probabilities"]
        assert list(predicted) == ["fruit", "tool", "colour"]
        assert cli.run(["export", str(one), "--to", "merged"]) == 0
        capsys.readouterr()
        assert cli.run(["predict", str(one / "export/merged"), "--text", TEXTS[0], "--precision", "fp32"]) == 0
        assert json.loads(capsys.readouterr().out)["probabilities"] == pytest.approx(predicted, abs=1e-5)
        assert cli.run(["export", str(one), "--to", "adapter"]) == 2
        assert "as_lora=RANK" in capsys.readouterr().err
    assert cli.run(["export", str(run), "as_lora=16", "--to", "adapter"]) == 0


def test_siblings_on_one_stack_are_merged(chain: Continued, tmp_path: Path) -> None:
    for seed in (0, 1):
        words = ("--from", chain.first, "start.adapter=stack", "train.epochs=1", f"seed={seed}")
        assert train(chain.recipe, *words, "--out", tmp_path / str(seed)) == 0
    out = tmp_path / "merged"
    assert cli.run(["merge", str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(out), "--weights", "1", "0"]) == 0
    mine, theirs = (logits(t.model, t.base.tokenizer) for t in map(pefttools.load, (out, tmp_path / "0")))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert "ledger" not in result(out)


def test_a_continued_run_is_exported_as_any_other(second: Path) -> None:
    for to in ("adapter", "merged"):
        assert cli.run(["export", str(second), "--to", to]) == 0


def test_a_merged_model_is_a_base_whose_head_grows(
    chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged"
    assert cli.run(["export", str(chain.first), "--to", "merged", "--out", str(merged)]) == 0
    resolved = recipes.load(str(chain.recipe), [f"start.source={merged}"])
    assert resolved.recipe.base.source == str(merged)
    assert any("the base is now the merged model" in note for note in resolved.notes)
    ready, before = prepare(resolved.recipe), pefttools.load(chain.first)
    was, now = logits(before.model, before.base.tokenizer), logits(ready.model, ready.base.tokenizer)
    torch.testing.assert_close(now[:, :2], was, rtol=0, atol=1e-5)
    assert train(chain.recipe, "--from", merged, "train.epochs=1", "--out", tmp_path / "run") == 0
    (merged / "model.safetensors").write_bytes(b"changed")
    (merged / "hashes.json").unlink()
    assert "has changed" in refused(capsys, tmp_path / "other", tmp_path / "run" / "recipe.yaml")


def test_two_processes_give_the_same_run(chain: Continued, tmp_path: Path) -> None:
    words = (f"start.source={chain.first}", "data.replay.share=0.2", "train.epochs=1")
    _, alone = train_tiny(chain.recipe, tmp_path / "alone", *words)
    train_in_two(chain.recipe, tmp_path / "two", *words)
    both = result(tmp_path / "two")
    for kind in ("all", "own"):
        assert both["ledger"][kind]["scores"][1] == pytest.approx(alone["ledger"][kind]["scores"][1])


# Penalties toward the earlier weights, and rows that are trained on again.


def test_penalties_start_at_zero_and_pull_to_the_earlier_weights(chain: Continued) -> None:
    words = [f"start.source={chain.first}", "regularizers.l2_sp.alpha=2", "regularizers.l2_sp.beta=0"]
    ready = prepare(recipes.load(str(chain.recipe), [*words, "regularizers.ewc.weight=2"]).recipe)
    assert float(ready.penalties.add_gradients()) == 0
    name, head = next((n, p) for n, p in ready.model.named_parameters() if p.requires_grad and "classifier" in n)
    assert name.endswith("classifier.modules_to_save.default.weight")
    l2_sp, ewc = ready.penalties.bound

    def value(penalty: Any) -> float:
        return penalty.value().item()

    with torch.no_grad():
        head[2] += 1  # the new class has no earlier weights
        assert value(l2_sp) == value(ewc) == 0
        head[0] += 1
    assert value(l2_sp) == pytest.approx(32)
    assert value(ewc) > 0


def test_l2_sp_with_a_large_weight_keeps_the_adapter(chain: Continued, second: Path, tmp_path: Path) -> None:
    words = (f"start.source={chain.first}", "regularizers.l2_sp.alpha=1000")
    train_tiny(chain.recipe, tmp_path / "near", *words)
    start, near, free = (read(run / "adapter") for run in (chain.first, tmp_path / "near", second))

    def far(tensors: Any) -> float:
        return sum(float((t - start[n]).norm()) for n, t in tensors.items() if "lora" in n)

    assert far(near) < far(free) / 2


def test_a_share_of_every_class_is_replayed(
    chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some, more = (
        prepare(recipes.load(str(chain.recipe), [f"start.source={chain.first}", f"data.replay.share={s}"]).recipe)
        for s in (0.1, 0.5)
    )
    (rows,), (others,) = some.replayed.values(), more.replayed.values()
    number = len(some.encoded["train"]) - len(some.splits.train)
    assert number == len(rows) < len(others)
    assert {row["label"] for row in rows} == {"fruit", "tool"}
    assert all(row in others for row in rows)
    first = result(chain.first)["data"]["rows"]["train"]
    assert number == pytest.approx(0.1 * first, abs=1)
    assert len(others) == pytest.approx(0.5 * first, abs=1)
    out = tmp_path / "run"
    assert train(chain.recipe, "--from", chain.first, "data.replay.share=0.1", "train.epochs=1", "--out", out) == 0
    assert result(out)["data"]["replayed"] == {str(chain.first): number}
    assert "rows of earlier runs are trained on again" in capsys.readouterr().err


@pytest.mark.parametrize("adapter", ["continue", "stack"])
def test_the_plan_counts_the_grown_head(
    adapter: str, chain: Continued, second: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    penalties = ("regularizers.l2_sp.alpha=0.1", "regularizers.ewc.rows=2")
    words = (f"start.source={chain.first}", f"start.adapter={adapter}", *penalties)
    assert cli.run(["plan", str(chain.recipe), *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["params"] == result(second)["params"]


# What is refused.


def test_a_run_of_another_base_task_or_strategy_is_refused(
    chain: Continued, bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (chain.recipe, "--from", chain.first)
    assert "was trained on another base" in refused(capsys, out, *words, f"base.source={bases('roberta')}")
    assert "base.layers is (0,), not None" in refused(capsys, out, *words, "base.layers=[0]")
    assert "was trained for task=text_classification" in refused(capsys, out, *words, "task=masked_lm")
    assert "task.multi_label: is True" in refused(capsys, out, *words, "task.multi_label=true")
    message = refused(capsys, out, *words, "strategy.rank=4")
    assert "strategy.rank is 4, not 8" in message
    assert "start.adapter=stack" in message
    assert "strategy.name is full, not lora" in refused(capsys, out, *words, "strategy=full")


def test_a_base_with_another_tokenizer_is_refused(
    chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(chain.base, base)
    file = base / "tokenizer.json"
    file.write_text(file.read_text().replace("word39", "word99"))
    message = refused(capsys, tmp_path / "out", chain.recipe, "--from", chain.first, f"base.source={base}")
    assert "was trained on another base" in message


def test_unfinished_damaged_and_missing_runs_are_refused(
    chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "there is no such folder" in refused(capsys, out, chain.recipe, "--from", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "neither a run, nor an adapter" in refused(capsys, out, chain.recipe, "--from", tmp_path / "empty")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(chain.first, unfinished, ignore=NO_HASHES)
    (unfinished / "result.json").unlink()
    assert "is not finished; finish it with" in refused(capsys, out, chain.recipe, "--from", unfinished)
    damaged = tmp_path / "damaged"
    shutil.copytree(chain.first, damaged)
    (damaged / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    assert "has changed since it was written" in refused(capsys, out, chain.recipe, "--from", damaged)
    (damaged / "adapter" / "adapter_model.safetensors").unlink()
    assert "is missing" in refused(capsys, out, chain.recipe, "--from", damaged)
    (damaged / "hashes.json").unlink()
    assert "its adapter lacks adapter_model.safetensors" in refused(capsys, out, chain.recipe, "--from", damaged)


def test_a_source_that_changed_is_refused(chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, run = tmp_path / "first", tmp_path / "run"
    shutil.copytree(chain.first, first)
    assert train(chain.recipe, "--from", first, "train.epochs=1", "--out", run) == 0
    shutil.rmtree(first)
    assert "there is no such folder" in refused(capsys, tmp_path / "again", run / "recipe.yaml")
    assert train(chain.first_recipe, "train.epochs=1", "--out", first) == 0
    assert "the sha256 of its weights is" in refused(capsys, tmp_path / "again", run / "recipe.yaml")
    message = refused(capsys, tmp_path / "third", chain.first_recipe, "--from", run)
    assert "which has changed since" in message
    capsys.readouterr()
    assert cli.run(["predict", str(run), "--text", TEXTS[0]]) == 0  # the run itself does not need its source


@pytest.mark.parametrize("share", ["0", "1.5", "-1"])
def test_a_share_must_be_in_0_to_1(
    share: str, chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (chain.recipe, "--from", chain.first, f"data.replay.share={share}")
    assert "data.replay.share: input should be" in refused(capsys, tmp_path / "out", *words)


def test_rows_that_are_gone_or_changed_are_not_replayed(
    chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write(tmp_path / "own", chain.base, ("fruit", "tool"), 3)
    run, out = tmp_path / "run", tmp_path / "out"
    assert train(own, "train.epochs=1", "--out", run) == 0
    words = (chain.recipe, "--from", run)
    write_rows(tmp_path / "own" / "rows.jsonl", make_rows(110, 3, ("fruit", "tool")))
    for more in ("data.replay.share=0.1", "regularizers=ewc"):
        assert "are gone or were changed" in refused(capsys, out, *words, more)
    (tmp_path / "own" / "rows.jsonl").unlink()
    assert "are gone or were changed" in refused(capsys, out, *words, "data.replay.share=0.1")


def test_replay_and_ewc_need_a_run(chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert "data.replay.run: is required" in refused(capsys, out, chain.recipe, "data.replay.share=0.1")
    assert "regularizers.ewc.data: is required" in refused(
        capsys, out, chain.recipe, "strategy=full", "regularizers=ewc"
    )
    adapter = chain.first / "adapter"
    words = (chain.recipe, f"data.replay.run={adapter}", "data.replay.share=0.1")
    assert "is not a run" in refused(capsys, out, *words)
    words = (chain.recipe, f"data.replay.run={chain.first}", "data.replay.share=0.1")
    assert "labels the model does not know: 'fruit'" in refused(capsys, out, *words)


def test_class_names_that_differ_only_in_case_or_space_are_warned_of(
    chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "case", chain.base, ("colour", "tool"), 5, data={"labels": {"tool": "Tool "}})
    out = tmp_path / "out"
    assert train(file, "--from", chain.first, "train.epochs=1", "--out", out) == 0
    message = capsys.readouterr().err
    assert "the class 'Tool ' is new, although the model that training goes on from has 'tool'" in message
    words = (chain.recipe, "--from", chain.first, "task.labels=[tool,colour]")
    assert "new classes come after them" in refused(capsys, tmp_path / "other", *words)


def test_a_quantised_base_is_not_stacked_on(
    chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("base.quantize=nf4", "train.epochs=1")
    assert train(chain.first_recipe, *words, "--out", tmp_path / "one") == 0
    stacked = (chain.recipe, *words, "--from", tmp_path / "one", "start.adapter=stack")
    assert "a quantised base would be rounded again" in refused(capsys, tmp_path / "two", *stacked)
    assert train(chain.recipe, *words, "--from", tmp_path / "one", "--out", tmp_path / "three") == 0


def test_methods_that_cannot_be_merged_or_continued_say_so(
    chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for strategy in ("prompt", "adalora"):
        assert train(chain.first_recipe, f"strategy={strategy}", "train.epochs=1", "--out", tmp_path / strategy) == 0
    words = (chain.recipe, "--from", tmp_path / "prompt", "start.adapter=stack")
    assert "cannot be merged into the base; use start.adapter=continue" in refused(capsys, tmp_path / "out", *words)
    words = (chain.recipe, "--from", tmp_path / "adalora")
    assert "use start.adapter=stack" in refused(capsys, tmp_path / "out", *words)
