"""Loss scaling in fp16. A scaler and autocast of the CPU take the place of CUDA's, which no test has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import losses, power_cut, train_tiny, without_clock
from test_train import assert_same_weights
from torch import Tensor, nn

from pefttools import cli, device
from pefttools.objectives._composition import Composed
from pefttools.objectives.base import Context
from pefttools.objectives.sam import Sam
from pefttools.training import driver, preparation, process, trial_step
from pefttools.training.loss_scale import Backward
from pefttools.training.step import MicroBatch, StepGradients, Update

ROWS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
TOO_LARGE = 2.0**24
"""A scale at which the gradients of `square_loss` overflow."""


class WeightDecay:
    """A penalty whose gradient is 0.1 for every weight."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter

    def perturbed(self) -> Any:
        return torch.enable_grad()

    def add_gradients(self) -> Tensor:
        assert self.parameter.grad is not None
        self.parameter.grad.add_(0.1)
        return torch.tensor(0.5)


def square_loss(forward: Any, batch: Any) -> Tensor:
    return forward(batch).half().float().square().sum()  # the gradient passes through fp16


def step(
    scale: float | None, objectives: Callable[[nn.Module], dict[str, Any]] = lambda model: {}, fused: bool = True
) -> tuple[list[Tensor], Any]:
    """One clipped step with a penalty and two micro-batches; returns the losses and the weights, and the scaler."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    accelerator: Any = SimpleNamespace(
        scaler=scaler, num_processes=1,
        backward=lambda loss: (loss if scaler is None else scaler.scale(loss)).backward(),
        clip_grad_norm_=nn.utils.clip_grad_norm_,
    )  # fmt: skip
    backward = Backward(accelerator, SimpleNamespace(optimizer=optimizer), list(model.parameters()))

    def take() -> None:
        if scaler is None:
            optimizer.step()
        else:  # as `AcceleratedOptimizer.step`
            scaler.step(optimizer)
            scaler.update()

    stepping: Any = SimpleNamespace(step=take, zero_grad=optimizer.zero_grad)
    penalties: Any = WeightDecay(model.weight)
    update = Update(
        Composed(square_loss, objectives(model)), penalties, stepping, backward.add, lambda: backward.clip(0.7),
        backward.unscale, backward.of,
    )  # fmt: skip
    run: Any = lambda batch, embeddings=None: model(batch["x"])  # noqa: E731
    found = update.step(lambda: (MicroBatch({"x": part}, run) for part in ROWS.split(4)), 6)
    return [*found, model.weight.detach().clone()], scaler


def sam(model: nn.Module) -> dict[str, Any]:
    nothing: Any = None
    return {"sam": Sam(rho=0.3).bind(Context(nothing, nothing, nothing, model))}


@pytest.mark.parametrize("objectives", [lambda model: {}, sam], ids=["plain", "sam"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("scale", [2.0**16, TOO_LARGE])
def test_a_scaled_step_equals_an_unscaled_one(scale: float, fused: bool, objectives: Any) -> None:
    expected, _ = step(None, objectives, fused)
    found, scaler = step(scale, objectives, fused)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
    if scale == TOO_LARGE:
        assert 1 < scaler.get_scale() < scale
    else:
        assert scaler.get_scale() == scale


def test_a_loss_that_is_not_finite_ends_the_repetitions_and_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.square_loss", lambda forward, batch: forward(batch).sum() * float("inf"))
    torch.manual_seed(0)
    before = nn.Linear(3, 2, bias=False).weight
    (_, _, norm, weight), scaler = step(2.0**16)
    assert not norm.isfinite()
    assert torch.equal(weight, before)
    assert scaler.get_scale() <= 1


def test_the_gradient_of_one_tensor_does_not_depend_on_the_scale() -> None:
    delta = torch.full((3,), 1e-4, dtype=torch.float16, requires_grad=True)
    accelerator: Any = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16))
    backward = Backward(accelerator, None, [])
    one = StepGradients(MicroBatch({}, lambda *_: None), 1, backward.add, backward.of)  # type: ignore[arg-type]
    found = one.of(lambda: (delta.float() * 1e-6).square().sum(), delta)
    assert found.dtype is torch.float16
    plain = torch.autograd.grad((delta.float() * 1e-6).square().sum(), delta)[0]
    assert not plain.any()  # 2e-16 is 0 in fp16; scaled by 65536 it is 1e-11 and still 0
    assert torch.equal(found, plain)
    larger = one.of(lambda: (delta.float() * 1e-2).square().sum(), delta)
    torch.testing.assert_close(larger.float(), torch.full((3,), 2e-8), rtol=0.5, atol=6e-8)


@pytest.fixture
def fp16(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs compute in fp16 on the CPU, with the scale at which the first passes overflow; filled with their scalers."""
    scalers: list[Any] = []
    accelerator_for = process.accelerator_for

    def with_scaler(*args: Any) -> Any:
        accelerator = accelerator_for(*args)
        scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=7))
        accelerator.state._mixed_precision, accelerator.native_amp, accelerator.scaler = "fp16", True, scalers[-1]
        return accelerator

    monkeypatch.setattr(driver, "accelerator_for", with_scaler)
    for module in (driver, preparation, trial_step):
        monkeypatch.setattr(module, "precision_of", lambda setting: "fp16")
    return scalers


@pytest.mark.slow
def test_an_fp16_run_learns_like_one_in_fp32(recipe_file: Path, tmp_path: Path, fp16: list[Any]) -> None:
    words = ["train.precision=fp32", "train.log_every=1", "regularizers=[l2]", "train.micro_batch_size=8"]
    half, result = train_tiny(recipe_file, tmp_path / "half", *words)
    assert result["train"]["precision"] == "fp16"
    assert fp16[0].get_scale() < 2.0**30  # it overflowed and was lowered
    with pytest.MonkeyPatch.context() as patch:
        for module in (driver, preparation, trial_step):
            patch.setattr(module, "precision_of", device.precision_of)
        patch.setattr(driver, "accelerator_for", process.accelerator_for)
        whole, expected = train_tiny(recipe_file, tmp_path / "whole", *words)
    assert result["train"]["steps"] == expected["train"]["steps"]
    torch.testing.assert_close(losses(half), losses(whole), rtol=0.02, atol=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("fp16")
def test_an_fp16_run_resumes_exactly(recipe_file: Path, tmp_path: Path) -> None:
    words = ["train.precision=fp32", "base.dropout=0.1", "train.log_every=3", "objectives=[fgm]", "train.epochs=2"]
    whole, expected = train_tiny(recipe_file, tmp_path / "whole", *words)
    with power_cut(9):
        train_tiny(recipe_file, tmp_path / "died", *words, "train.checkpoint_seconds=0", resume=True)
    died, resumed = train_tiny(recipe_file, tmp_path / "died", *words, resume=True)
    assert losses(died) == losses(whole)
    assert_same_weights(whole, died)
    assert without_clock(resumed) == without_clock(expected)


@pytest.mark.parametrize("command", ["train", "plan"])
def test_fp16_without_a_gpu_is_refused(
    command: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--out", str(tmp_path / "run")] if command == "train" else []
    assert cli.run([command, str(recipe_file), "train.precision=fp16", *more]) == 2
    assert "train.precision: fp16 needs a CUDA GPU, but this machine computes on cpu" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
