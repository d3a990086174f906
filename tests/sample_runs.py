"""Finished runs of every task on its sample rows, for tests of exporters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import train_tiny, write_recipe, write_rows

from pefttools.tasks import tasks

FAMILIES = {"AutoModelForCausalLM": "llama", "AutoModelForSeq2SeqLM": "bart"}


class SampleRuns:
    """A task's name and overrides -> a finished run on the task's sample rows, trained once."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> None:
        self.tmp_path_factory, self.bases = tmp_path_factory, bases
        self.finished: dict[tuple[str, ...], Path] = {}

    def __call__(self, name: str, *overrides: str) -> Path:
        if (name, *overrides) not in self.finished:
            folder, cls = self.tmp_path_factory.mktemp(name), tasks.get(name)
            rows = write_rows(folder / "rows.jsonl", [dict(row) for row in cls.samples] * 4)
            data = {"validation": str(rows), "test": str(rows), "deduplicate": False}
            task = {"name": name, "max_length": 32, **cls.sample_settings}
            family = FAMILIES.get(cls.auto_class, "bert")
            train = {"epochs": 2, "batch_size": 8}
            file = write_recipe(folder / "recipe.yaml", self.bases(family), rows, data=data, task=task, train=train)
            self.finished[name, *overrides] = train_tiny(file, folder / "run", *overrides)[0]
        return self.finished[name, *overrides]
