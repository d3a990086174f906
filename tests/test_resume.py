"""Runs that die, are killed, are interrupted or meet a loss that is not finite can be resumed without loss."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import losses, power_cut, train_tiny, without_clock
from test_train import LEARNING, assert_same_weights

from pefttools import signals
from pefttools.errors import Interrupted, Paused, UserError
from pefttools.recipe import recipes
from pefttools.subprocesses import started
from pefttools.training import checkpoint, driver
from pefttools.training.run import Run

HANGS = 150
"""Seconds after which a process that does not end prints where it is, and exits."""


def start(recipe_file: Path, out: Path, overrides: list[str], delay: float = 0.0) -> None:
    """Train in this process, resuming an earlier run; each step waits `delay` seconds, so that it can be killed."""
    from pefttools.training import loop

    faulthandler.dump_traceback_later(HANGS, exit=True)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # as in the run that it is compared with
    plain = loop.Loop.step

    def slow(self: Any) -> None:
        time.sleep(delay)
        plain(self)

    loop.Loop.step = slow  # type: ignore[method-assign]
    train_tiny(recipe_file, out, *overrides, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", LEARNING)
def test_resumed_run_equals_an_uninterrupted_one(strategy: str, recipe_file: Path, tmp_path: Path) -> None:
    overrides = [f"strategy={strategy}", "base.dropout=0.1", "data.train_rows=200", "train.log_every=3"]
    overrides += ["train.evaluate_every=0.4", "regularizers=[l2]"]
    whole, expected = train_tiny(recipe_file, tmp_path / "whole", *overrides)
    moments = (5, 17, 30) if strategy == "adalora" else (5, 30)  # before, during and after pruning
    for moment in moments:
        with power_cut(moment):
            train_tiny(recipe_file, tmp_path / "died", *overrides, "train.checkpoint_seconds=0", resume=True)
    died, resumed = train_tiny(recipe_file, tmp_path / "died", *overrides, resume=True)
    assert losses(died) == losses(whole)
    assert_same_weights(whole, died)
    assert without_clock(resumed) == without_clock(expected)


@pytest.mark.slow
def test_a_run_that_pauses_after_some_steps_ends_like_an_uninterrupted_one(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["base.dropout=0.1", "data.train_rows=200", "train.log_every=3", "train.evaluate_every=0.4"]
    whole, expected = train_tiny(recipe_file, tmp_path / "whole", *overrides)
    recipe, out = recipes.load(str(recipe_file), overrides).recipe, tmp_path / "paused"
    for steps in (4, 11):
        with pytest.raises(Paused):
            driver.train(recipe, out, resume=True, stop_after=steps)
        assert Run(out).lines()[-1]["step"] <= steps
        last = checkpoint.latest(out / "checkpoints")
        assert last
        assert checkpoint.step_of(last) == steps
    resumed = driver.train(recipe, out, resume=True)
    assert losses(out) == losses(whole)
    assert_same_weights(whole, out)
    assert without_clock(resumed) == without_clock(expected)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lora"])
def test_killed_and_resumed_run_equals_an_uninterrupted_one(strategy: str, recipe_file: Path, tmp_path: Path) -> None:
    overrides = [
        f"strategy={strategy}",
        "base.dropout=0.1",
        "train.epochs=2",
        "train.log_every=3",
        "train.evaluate_every=0.3",
    ]
    whole, expected = train_tiny(recipe_file, tmp_path / "whole", *overrides)
    broken = tmp_path / "broken"
    draw = random.Random(strategy)
    moments = [*sorted(draw.sample(range(1, 55), 4)), 57]
    overrides.append("train.checkpoint_seconds=0.2")
    for moment in moments:
        process = started(start, recipe_file, broken, overrides, 0.02)
        while process.is_alive() and not (broken / "result.json").exists():
            written = Run(broken).lines() if (broken / "metrics.jsonl").exists() else []
            if written and written[-1]["step"] >= moment:
                break
            time.sleep(0.005)
        assert process.is_alive(), f"it ended by itself before step {moment}"
        process.kill()
        process.join()
        assert not (broken / "result.json").exists()
    process = started(start, recipe_file, broken, overrides)
    process.join()
    assert process.exitcode == 0
    resumed = Run(broken).result()
    plain = [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in Run(broken).lines()]
    assert plain == [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in Run(whole).lines()]
    assert_same_weights(whole, broken)
    for file in (whole / "adapter").iterdir():  # sets have another order in every process
        assert (broken / "adapter" / file.name).read_bytes() == file.read_bytes()
    assert without_clock(resumed) == without_clock(expected)
    assert not (broken / "checkpoints").exists()


@pytest.mark.slow
def test_resuming_on_changed_data_is_refused(recipe_file: Path, rows_file: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(rows_file.read_text())
    overrides = [f"data.train={tmp_path / 'rows.jsonl'}", "train.keep_checkpoints=true", "train.epochs=1"]
    run, _ = train_tiny(recipe_file, tmp_path / "run", *overrides)
    (run / "result.json").unlink()  # as if it had died at the very end
    (tmp_path / "rows.jsonl").write_text("".join(rows_file.read_text().splitlines(keepends=True)[:300]))
    with pytest.raises(UserError, match=r"--resume: data was '.*' when the run began, but is '.*' now"):
        train_tiny(recipe_file, run, *overrides, resume=True)
    assert (run / "checkpoints").exists()


def test_second_process_in_the_same_folder_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    with (
        Run(tmp_path / "run").only_one(),
        pytest.raises(UserError, match=r"another process is training in .*run"),
    ):
        train_tiny(recipe_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_exits_130(number: signal.Signals, recipe_file: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pefttools",
        "train",
        str(recipe_file),
        "--out",
        str(tmp_path / "run"),
        "train.epochs=2000",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert f"to continue, run `pefttools train {tmp_path / 'run' / 'recipe.yaml'}" in stderr
    last = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert last
    assert checkpoint.step_of(last) == Run(tmp_path / "run").lines()[-1]["step"]


def test_interrupt_swallowed_by_a_library_stops_the_run(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "came", [])
    with pytest.raises(KeyboardInterrupt):
        signals._interrupt(signal.SIGINT, None)
    with pytest.raises(Interrupted, match=r"stopped after step 1 of .*; to continue, run `pefttools train"):
        train_tiny(recipe_file, tmp_path / "run")


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_the_run(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pefttools.tasks.text_classification import TextClassification

    plain, calls = TextClassification.loss, []

    def broken(self: Any, outputs: Any, batch: Any) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return plain(self, outputs, batch) * (float("nan") if sum(calls) > 13 else 1.0)

    monkeypatch.setattr(TextClassification, "loss", broken)
    overrides = ["train.checkpoint_seconds=0", "train.log_every=5"]
    with pytest.raises(
        UserError,
        match=r"the loss of step 13 is nan; its rows are \d+, .* the last good checkpoint is .*step-00000012",
    ):
        train_tiny(recipe_file, tmp_path / "kept", *overrides)
    assert (tmp_path / "kept" / "checkpoints" / "step-00000012" / "state.json").exists()
    calls.clear()
    with pytest.raises(UserError, match=r"there is no earlier checkpoint"):
        train_tiny(recipe_file, tmp_path / "none", "train.checkpoint_seconds=1000")
    assert not (tmp_path / "none").exists()
