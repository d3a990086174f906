"""Runs with gradient checkpointing or compilation: the same losses and names; refused where unsupported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import losses, train_tiny
from torch import nn

from pefttools.errors import UserError
from pefttools.recipe.train_settings import TrainSettings
from pefttools.training import speedups

SHORT = ("train.epochs=1", "data.train_rows=96")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lora", "full", "bitfit"])
def test_gradient_checkpointing_gives_the_same_losses(strategy: str, recipe_file: Path, tmp_path: Path) -> None:
    common = (f"strategy={strategy}", "base.dropout=0.1", *SHORT)
    plain, result = train_tiny(recipe_file, tmp_path / "plain", *common)
    again, other = train_tiny(recipe_file, tmp_path / "again", *common, "train.gradient_checkpointing=true")
    assert losses(again) == pytest.approx(losses(plain), abs=1e-5)
    assert other["digest"] == result["digest"]  # the digest does not depend on how steps are computed


@pytest.mark.slow
def test_gradient_checkpointing_is_disabled_again(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    within = speedups._checkpointing

    def watched(model: Any) -> Any:
        seen.append(speedups._plain(model))
        return within(model)

    monkeypatch.setattr(speedups, "_checkpointing", watched)
    train_tiny(recipe_file, tmp_path / "run", "train.gradient_checkpointing=true", *SHORT)
    assert [model.is_activation_checkpointing for model in seen] == [False, False]  # the trial step, the run


@pytest.mark.slow
def test_compiled_steps_give_the_same_losses_and_names(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedups, "BACKEND", "eager")  # traced as for the compiler, which would take half a minute
    monkeypatch.setattr(speedups, "_compilers", lambda: ["g++"])
    compiled: list[Any] = []
    compile_it = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **kw: compiled.append(kw) or compile_it(self, **kw))
    plain, _ = train_tiny(recipe_file, tmp_path / "plain", *SHORT)
    again, _ = train_tiny(recipe_file, tmp_path / "again", "train.compile=true", *SHORT)
    torch._dynamo.reset()
    assert compiled == [{"backend": "eager", "dynamic": True}]
    assert losses(again) == pytest.approx(losses(plain), abs=1e-5)
    names = [sorted(file.name for file in (run / "adapter").iterdir()) for run in (plain, again)]
    assert names[0] == names[1]


def test_unsupported_compilation_and_checkpointing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    settings = TrainSettings(compile=True, gradient_checkpointing=True)
    with pytest.raises(UserError, match="Linear does not support it") as caught:
        speedups.refuse_impossible(nn.Linear(2, 2), settings, "cpu")
    assert "train.compile: needs a C++ compiler" in str(caught.value)
    with speedups.steps(nn.Linear(2, 2), TrainSettings(), "cpu", "bf16"):
        pass
