"""What `doctor` finds in run folders: each fault is planted in a copy of a sound run, which has no finding itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import NO_HASHES, train_tiny
from examining import examine
from safetensors.torch import load_file, save_file

from pefttools import cli

pytestmark = pytest.mark.slow

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def damaged(finished_run: Path, tmp_path: Path) -> Callable[[Callable[[Tensors], Mapping[str, torch.Tensor]]], Path]:
    """A function of the saved tensors -> a copy of the sound run with its results as tensors."""

    def copy(change: Callable[[Tensors], Mapping[str, torch.Tensor]]) -> Path:
        run = tmp_path / "copy"
        shutil.copytree(finished_run, run, ignore=NO_HASHES)
        file = run / "adapter" / "adapter_model.safetensors"
        save_file(dict(change(load_file(file))), file)
        return run

    return copy


def test_sound_run_has_no_findings(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in finished_run.rglob("*") if file.is_file()}
    assert cli.run(["doctor", str(finished_run), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["findings"], values["warnings"]) == ([], [])
    assert values["checked"] == [
        "head missing", "tensors that never moved", "effect of the adapter", "labels that do not line up"
    ]  # fmt: skip
    assert values["skipped"] == {"bf16 underflow": "the run was not computed in bf16"}
    assert before == {file: file.read_bytes() for file in finished_run.rglob("*") if file.is_file()}


def test_tensors_that_never_moved(damaged: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """B of LoRA starts at zero. A's start is random, and frozen in some variants; those are not trained tensors."""
    run = damaged(lambda saved: {n: v * 0 if "layer.0" in n and "lora_B" in n else v for n, v in saved.items()})
    found = examine(capsys, run)["tensors that never moved"]
    assert found["evidence"].startswith("6 of ")
    assert "encoder.layer.0.attention.self.key.lora_B.weight" in found["evidence"]
    assert found["cure"].startswith(f"pefttools train {run}/recipe.yaml train.learning_rate=0.001 --out ")


def test_random_starts_that_never_moved(
    finished_run: Path, damaged: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from pefttools.doctor.saved import RunToCheck, unwrapped
    from pefttools.reporter import SILENT
    from pefttools.strategies.base import trained
    from pefttools.training.run import Run

    start = trained(RunToCheck(Run.open(finished_run), SILENT).start.model)
    still = {unwrapped(name): value.detach() for name, value in start.items() if "layer.1" in name and "lora_A" in name}
    run = damaged(lambda saved: {n: still.get(unwrapped(n), v) for n, v in saved.items()})
    assert examine(capsys, run)["tensors that never moved"]["evidence"].startswith(f"{len(still)} of ")


def test_missing_head(damaged: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = damaged(lambda saved: {name: value for name, value in saved.items() if "classifier" not in name})
    assert cli.run(["doctor", str(run), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    (found,) = values["findings"]
    assert found["check"] == "head missing"
    assert "2 of 2 tensors of the head are not among the 24 in" in found["evidence"]
    assert "classifier.bias" in found["evidence"]
    assert "the adapter is incomplete" in values["skipped"]["tensors that never moved"]


def test_adapter_without_effect(damaged: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = damaged(lambda saved: {name: value * 1e-4 if "lora_B" in name else value for name, value in saved.items()})
    found = examine(capsys, run)["effect of the adapter"]
    assert found["what"] == "the adapter hardly changes the outputs"


def test_adapter_that_overwhelms_the_base(damaged: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = damaged(lambda saved: {name: value * 1e4 if "lora_B" in name else value for name, value in saved.items()})
    found = examine(capsys, run)["effect of the adapter"]
    assert found["what"].startswith("the adapter overwhelms the base")
    assert "times as large" in found["evidence"]


def test_labels_in_another_order(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(finished_run, tmp_path / "copy", ignore=NO_HASHES)
    lines = (run / "recipe.yaml").read_text().splitlines(keepends=True)
    values = yaml.safe_load("".join(lines))
    assert values["task"]["labels"] == ["colour", "fruit", "tool"]
    values["task"]["labels"] = ["fruit", "tool", "colour"]
    (run / "recipe.yaml").write_text("".join(lines[:2]) + yaml.safe_dump(values))
    found = examine(capsys, run)["labels that do not line up"]
    assert found["what"].startswith("the labels in the run's recipe are not in the order")
    assert "'colour' became 'fruit'" in found["evidence"]
    assert found["cure"].endswith("'task.labels=[colour, fruit, tool]'")


def test_predictions_of_other_weights(damaged: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    draw = torch.Generator().manual_seed(0)

    def noisy(saved: Tensors) -> dict[str, Any]:
        return {n: v + torch.randn(v.shape, generator=draw) if "classifier" in n else v for n, v in saved.items()}

    found = examine(capsys, damaged(noisy))["labels that do not line up"]
    assert found["what"] == "the run predicts other classes than it saved"


@pytest.mark.parametrize("rate", ["1e-7", "5e-4"])
def test_bf16_underflow(rate: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["strategy=full", f"train.learning_rate={rate}", "train.head_lr_scale=1", "train.precision=bf16"]
    run, _ = train_tiny(recipe_file, tmp_path / "run", *overrides, "train.epochs=1")
    found = examine(capsys, run)
    if rate == "5e-4":
        assert found == {}
    else:
        assert "are equal to their start in bf16" in found["bf16 underflow"]["evidence"]


@pytest.mark.parametrize(
    "strategy", ["lora strategy.init=pissa", "adalora", "adapter", "bitfit", "ia3", "low_rank", "prefix", "top_layers"]
)
def test_sound_runs_of_other_strategies_have_no_findings(
    strategy: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *more = strategy.split()
    train_tiny(recipe_file, tmp_path / "run", f"strategy={name}", *more, "train.learning_rate=3e-3")
    assert examine(capsys, tmp_path / "run") == {}
