"""Where frozen features are cached, what is removed, and what is reported and planned."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import Listener, losses, train_in_two, train_tiny
from feature_runs import HEAD, LAST, LORA, assert_same_losses

from pefttools import cli
from pefttools.sources.cache import cache_dir
from pefttools.training import features
from pefttools.training.run import Run


@pytest.mark.slow
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_features_are_cached_in_memory_or_on_disk(where: str, bert_recipe: Path, tmp_path: Path) -> None:
    plain = train_tiny(bert_recipe, tmp_path / "off", *LAST, "train.feature_cache=off")[0]
    run, result = train_tiny(bert_recipe, tmp_path / "run", *LAST, f"train.feature_cache={where}")
    assert result["train"]["feature_cache"]["where"] == where
    sizes = [file.stat().st_size for file in cache_dir("features").glob("*.bin")]
    assert sum(sizes) == (result["train"]["feature_cache"]["bytes"] if where == "disk" else 0)
    assert_same_losses(run, plain)


@pytest.mark.slow
def test_features_beyond_the_memory_limit_are_on_disk(bert_recipe: Path, tmp_path: Path) -> None:
    _, result = train_tiny(bert_recipe, tmp_path / "run", *LAST, "train.feature_cache_bytes=1000")
    assert result["train"]["feature_cache"]["where"] == "disk"


@pytest.mark.slow
def test_without_room_nothing_is_cached_and_a_warning_is_given(bert_recipe: Path, tmp_path: Path) -> None:
    from pefttools.recipe import recipes
    from pefttools.training import driver

    plain = train_tiny(bert_recipe, tmp_path / "off", *LAST, "train.feature_cache=off")[0]
    listener = Listener()
    overrides = [*LAST, "train.feature_cache_bytes=1000", "train.feature_disk_bytes=1000"]
    result = driver.train(recipes.load(str(bert_recipe), overrides).recipe, tmp_path / "run", reporter=listener)
    assert result["train"]["feature_cache"] is None
    (warning,) = listener.warnings
    assert warning.startswith("1 frozen block will be computed in every epoch, because caching their output needs 0 MB")
    assert losses(tmp_path / "run") == losses(plain)


@pytest.mark.slow
def test_memory_cache_contains_only_rows_that_are_read_again(bert_recipe: Path, tmp_path: Path) -> None:
    once = ("train.feature_cache=memory", "train.evaluate_every=2")
    facts = train_tiny(bert_recipe, tmp_path / "run", *HEAD, *once)[1]["train"]["feature_cache"]
    assert facts["rows"] == ["train"]
    assert (
        train_tiny(bert_recipe, tmp_path / "short", *HEAD, *once, "train.epochs=1")[1]["train"]["feature_cache"] is None
    )


@pytest.mark.slow
def test_least_recently_read_files_are_removed_first(bert_recipe: Path, tmp_path: Path) -> None:
    train_tiny(bert_recipe, tmp_path / "first", *LAST)
    size = train_tiny(bert_recipe, tmp_path / "size", *HEAD, "train.feature_cache=memory")[1]["train"]["feature_cache"][
        "bytes"
    ]
    old = sorted(cache_dir("features").glob("*.bin"))
    for file in old:
        os.utime(file, (1, 1))
    train_tiny(bert_recipe, tmp_path / "second", *HEAD, f"train.feature_disk_bytes={size}")
    left = sorted(cache_dir("features").glob("*.bin"))
    assert len(left) == 2
    assert not set(left) & set(old)


@pytest.mark.slow
def test_note_reports_the_cached_blocks(bert_recipe: Path, tmp_path: Path) -> None:
    from pefttools.recipe import recipes
    from pefttools.training import driver

    computed, read = "computed once: 0 MB in memory", "read from the cache: "
    notes = {"one": f"output of 2 frozen blocks {computed}", "two": f"output of 2 frozen blocks {read}"}
    for name, note in notes.items():
        listener = Listener()
        driver.train(recipes.load(str(bert_recipe), HEAD).recipe, tmp_path / name, reporter=listener)
        assert any(line.startswith(note) for line in listener.notes)
        assert not listener.warnings


@pytest.mark.slow
def test_two_processes_read_the_same_file(bert_recipe: Path, tmp_path: Path) -> None:
    common = [*LAST, "base.dropout=0", "train.epochs=2"]
    one = train_tiny(bert_recipe, tmp_path / "one", *common, "train.feature_cache=off")[0]
    train_in_two(bert_recipe, tmp_path / "two", *common)
    result = Run(tmp_path / "two").result()
    assert result["train"]["processes"] == 2
    assert result["train"]["feature_cache"]["blocks"] == 1
    assert len(list(cache_dir("features").glob("*.bin"))) == 2
    assert_same_losses(one, tmp_path / "two")


@pytest.mark.slow
def test_result_and_note_on_the_command_line(
    bert_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(bert_recipe), "strategy=top_layers", "--out", str(tmp_path / "run"), "--json"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)["train"]["feature_cache"]
    assert facts["blocks"] == 2
    assert facts["where"] == "memory"
    assert "2 frozen blocks computed once" in captured.err
    off = ["strategy=top_layers", "train.feature_cache=off", "--out", str(tmp_path / "off")]
    assert cli.run(["train", str(bert_recipe), *off, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["feature_cache"] is None


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [HEAD, LORA, [*HEAD, "train.feature_cache_bytes=9"], ["strategy=full"]])
def test_plan_counts_the_cached_features(overrides: list[str], bert_recipe: Path, tmp_path: Path) -> None:
    from pefttools.planning import planner
    from pefttools.recipe import recipes

    planned = planner.plan(recipes.load(str(bert_recipe), overrides).recipe).bytes
    facts = train_tiny(bert_recipe, tmp_path / "run", *overrides)[1]["train"]["feature_cache"]
    assert planned["features"] == (facts["bytes"] if facts and facts["where"] == "memory" else 0)
    assert planned["peak"] == sum(size for part, size in planned.items() if part != "peak")


@pytest.mark.slow
def test_disk_error_is_one_message(bert_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pefttools.errors import UserError

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features.FeatureExtractor, "compute", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); set train.feature_cache=mem"):
        train_tiny(bert_recipe, tmp_path / "run", *LAST)
