"""Recipes on rows of some of the classes, and a first run that others go on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_rows, write_recipe, write_rows

from pefttools import cli

TASK = {"name": "text_classification", "max_length": 32}


def write(folder: Path, base: Path, labels: tuple[str, ...], seed: int = 0, **sections: Any) -> Path:
    """A recipe on 120 rows of these classes, in a new folder."""
    folder.mkdir()
    rows = write_rows(folder / "rows.jsonl", make_rows(120, seed, labels))
    train = {"epochs": 2, "learning_rate": 0.003, "log_every": 1}
    return write_recipe(folder / f"{folder.name}.yaml", base, rows, task=TASK, train=train, **sections)


def train(*words: object) -> int:
    """The exit code of `pefttools train`."""
    return cli.run(["train", *map(str, words)])


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


class Continued:
    """A first run on `fruit` and `tool`, and a recipe on `colour` and `tool` for runs that go on from it."""

    def __init__(self, folder: Path, bases: Callable[[str], Path]) -> None:
        self.base = bases("bert")
        self.first_recipe = write(folder / "first", self.base, ("fruit", "tool"))
        self.recipe = write(folder / "second", self.base, ("colour", "tool"), 1)
        self.first = folder / "runs" / "one"
        assert train(self.first_recipe, "--out", self.first) == 0


def refused(capsys: pytest.CaptureFixture[str], out: Path, *words: object) -> str:
    """The message with which `train` refuses; nothing is written."""
    capsys.readouterr()
    assert train(*words, "--out", out) == 2
    assert not out.exists()
    return capsys.readouterr().err
