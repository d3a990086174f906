"""A suite over every task: each trial ends with a score, and a second start reads the records back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_recipe, write_rows

from pefttools import cli
from pefttools.bench import trial
from pefttools.tasks import tasks

pytestmark = pytest.mark.slow
FAMILIES = {"AutoModelForCausalLM": "llama", "AutoModelForSeq2SeqLM": "bart"}


def recipe(folder: Path, name: str, bases: Callable[[str], Path]) -> str:
    """A recipe that trains, validates and tests on the same few rows of a task."""
    cls = tasks.get(name)
    rows = write_rows(folder / f"{name}.jsonl", [dict(row) for row in cls.samples] * 4)
    data = {"validation": str(rows), "test": str(rows), "deduplicate": False}
    task: dict[str, Any] = {"name": name, "max_length": 32, **cls.sample_settings}
    base = bases(FAMILIES.get(cls.auto_class, "bert"))
    return str(write_recipe(folder / f"{name}.yaml", base, rows, data=data, task=task, train={"batch_size": 8}))


def test_every_task_in_one_suite(
    bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = {name: recipe(tmp_path, name, bases) for name in tasks.names()}
    values = {
        "description": "every task",
        "recipe": next(iter(recipes.values())),
        "set": {"train.epochs": 1},
        "axes": {"tasks": recipes, "strategies": ["layer_norm"]},
        "seeds": [0],
    }
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(values))
    for _ in range(2):
        assert cli.run(["bench", str(file), "--out", str(out), "--json"]) == 0
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert len(summary["problems"]) == len(recipes)
    records = {record["task"]: record for record in map(trial.read, out.glob("trials/*.json"))}
    assert records.keys() == recipes.keys()
    for name, record in records.items():
        cls = tasks.get(name)
        assert record["status"] == "done"
        assert record["metric"] == cls.primary
        assert record["score_range"] == (None if cls.score_range is None else list(cls.score_range))
        assert isinstance(record["test"][cls.primary], float)
