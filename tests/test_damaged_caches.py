"""Cached files that are damaged, incomplete or from another version are made again, with a note."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Listener, losses, train_tiny, without_clock
from test_train import assert_same_weights

from pefttools import atomic, cli
from pefttools.sources import checksums
from pefttools.sources.cache import stored
from pefttools.training.run import Run


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_checksums(file: Path) -> None:
    for found in file.parents[2].rglob(".*.checksums.json"):
        found.unlink()


def cached_files(cache: Path) -> dict[str, Path]:
    """Folder in the cache -> one of the files in it, the largest."""
    files = [file for file in cache.rglob("*") if file.is_file() and not file.name.startswith(".")]
    by_size = sorted((file for file in files if file.suffix != ".lock"), key=lambda file: file.stat().st_size)
    return {file.relative_to(cache).parts[0]: file for file in by_size}


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, without_checksums], ids=lambda it: it.__name__)
def test_runs_do_not_depend_on_damaged_caches(
    damage: Callable[[Path], Any], recipe_file: Path, finished_run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / "cache"))
    words = ["strategy=top_layers", "train.feature_cache=disk", f"objectives.distillation.teacher={finished_run}"]
    words += ["train.epochs=2", "data.train_rows=60"]
    whole, expected = train_tiny(recipe_file, tmp_path / "whole", *words)
    files = cached_files(tmp_path / "cache")
    assert {*files} >= {"tokenised", "features", "baseline", "soft-labels"}
    for folder, file in files.items():
        kept = tmp_path / f"cache-{folder}"
        shutil.copytree(tmp_path / "cache", kept)
        monkeypatch.setenv("PEFTTOOLS_CACHE", str(kept))
        damage(kept / file.relative_to(tmp_path / "cache"))
        run = tmp_path / f"run-{folder}"
        capsys.readouterr()
        assert cli.run(["train", str(recipe_file), *words, "--out", str(run)]) == 0
        told = " ".join(capsys.readouterr().err.split())
        assert "so it is made again" in told, file
        assert losses(run) == losses(whole)
        assert_same_weights(whole, run)
        assert without_clock(Run(run).result()) == without_clock(expected)
        shutil.rmtree(kept)


@pytest.mark.parametrize("damage", [flip, halve, Path.unlink, without_checksums], ids=lambda it: it.__name__)
def test_damage_of_a_folder_is_noticed(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    file = tmp_path / "entry" / "part" / "rows"
    atomic.write_text(file, "rows")
    checksums.write(tmp_path / "entry")
    assert checksums.damage(tmp_path / "entry") is None
    damage(file)
    assert checksums.damage(tmp_path / "entry")


def test_a_value_is_created_once_until_it_is_damaged(tmp_path: Path) -> None:
    listener, created = Listener(), []

    def create() -> None:
        created.append(1)
        atomic.write_text(tmp_path / "value", "seven")

    for _ in range(3):
        assert stored(tmp_path / "value", create, "number", listener).read_text() == "seven"
    assert (len(created), listener.notes) == (1, [])
    (tmp_path / "value").write_text("eight")
    assert stored(tmp_path / "value", create, "number", listener).read_text() == "seven"
    assert len(created) == 2
    assert listener.notes == [
        f"cached number: {tmp_path / 'value'} has changed since it was written, so it is made again"
    ]
