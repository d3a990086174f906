"""Every task under every objective: either the recipe is refused with a sentence, or the loss falls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import train_tiny, write_recipe, write_rows

from pefttools import cli
from pefttools.bases.loading import BaseSettings
from pefttools.data.rows import Splits
from pefttools.objectives import objectives
from pefttools.objectives.base import cross_entropies
from pefttools.tasks import tasks

FAMILIES = {"AutoModelForCausalLM": "llama", "AutoModelForSeq2SeqLM": "bart"}
"""The auto class of a task -> the tiny base; BERT for others."""


@pytest.fixture
def tiny_recipe(bases: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Task -> a recipe on its sample rows, with dropout."""

    def written(name: str) -> Path:
        cls = tasks.get(name)
        rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in cls.samples] * 4)
        return write_recipe(
            tmp_path / "tiny.yaml", bases(FAMILIES.get(cls.auto_class, "bert")), rows,
            base={"dropout": 0.1},
            data={"validation": str(rows), "test": str(rows), "deduplicate": "none"},
            task={"name": name, "max_length": 32, **cls.sample_settings},
            train={"epochs": 6, "batch_size": 8},
        )  # fmt: skip

    return written


@pytest.mark.slow
@pytest.mark.parametrize("objective", objectives.names())
@pytest.mark.parametrize("name", tasks.names())
def test_every_task_trains_or_is_refused(
    name: str,
    objective: str,
    tiny_recipe: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, settings = tiny_recipe(name), dict(objectives.get(objective).sample_settings)
    if "teacher" in settings:
        settings["teacher"] = train_tiny(file, tmp_path / "teacher")[0]
    words = [f"objectives.{objective}.{key}={value}" for key, value in settings.items()] or [f"objectives={objective}"]
    code = cli.run(["train", str(file), *words, "--out", str(tmp_path / "run")])
    if code:
        refused = " ".join(capsys.readouterr().err.split())
        assert code == 2
        assert f"objectives.{objective}: " in refused
        assert not (tmp_path / "run").exists()
        return
    _, result = train_tiny(file, tmp_path / "run", *words, resume=True)
    assert result["validation"]["loss"] < result["before"]["loss"]


@pytest.mark.parametrize("name", [name for name in tasks.names() if tasks.get(name).example().has_target_logits])
def test_loss_is_the_cross_entropy_of_targets(name: str, bases: Callable[[str], Path]) -> None:
    """Objectives that change the loss of every target rely on it."""
    cls = tasks.get(name)
    unfitted = cls.model_validate({"max_length": 32, **cls.sample_settings})
    rows = [unfitted.read(dict(row)) for row in cls.samples]
    task = unfitted.fit(Splits(rows, rows, rows))
    base = task.load(BaseSettings(source=str(bases(FAMILIES.get(cls.auto_class, "bert")))))
    batch = task.collate(task.encode(rows, base.tokenizer), base.tokenizer, 4)
    with torch.no_grad():
        outputs = base.model(**task.inputs_of(batch))
    losses = cross_entropies(task.target_logits(outputs, batch), task.target_classes(batch))
    torch.testing.assert_close(losses.sum(), task.loss(outputs, batch))
