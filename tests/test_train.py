"""Training: it learns, is reproducible, and does not depend on how a step is divided."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import losses, power_cut, train_tiny, without_clock
from safetensors.torch import load_file

from pefttools.errors import UserError
from pefttools.inference.scoring import evaluate_run
from pefttools.recipe import recipes, schedule
from pefttools.recipe.train_settings import TrainSettings
from pefttools.strategies import strategies
from pefttools.strategies.base import trained
from pefttools.training.run import Run, load


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def assert_same_weights(one: Path, other: Path, tolerance: float = 0.0) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) <= tolerance


LEARNING = [name for name in strategies.names() if strategies.get(name).trains]


@pytest.mark.parametrize(
    "strategy", [pytest.param(name, marks=[] if name == "lora" else pytest.mark.slow) for name in LEARNING]
)
def test_every_strategy_learns(strategy: str, recipe_file: Path, tmp_path: Path) -> None:
    run, result = train_tiny(recipe_file, tmp_path / "run", f"strategy={strategy}", "train.epochs=4")
    assert result["before"]["accuracy"] < 0.6
    assert result["test"]["accuracy"] > result["before"]["accuracy"] + 0.2
    assert losses(run)[-1] < losses(run)[0]
    assert sorted(p.name for p in run.iterdir()) == [
        "adapter",
        "hashes.json",
        "metrics.jsonl",
        "predictions.parquet",
        "recipe.yaml",
        "result.json",
        "rows.parquet",
    ]


@pytest.mark.slow
def test_frozen_run_trains_nothing_and_is_evaluated(recipe_file: Path, tmp_path: Path) -> None:
    run, result = train_tiny(recipe_file, tmp_path / "run", "strategy=frozen")
    assert result["params"]["trainable"] == result["train"]["steps"] == 0
    assert result["test"]["accuracy"] == result["before"]["accuracy"]
    loaded = load(run)
    again = evaluate_run(run)
    assert again["accuracy"] == result["test"]["accuracy"]  # the random head is saved
    assert not trained(loaded.model)
    with pytest.raises(UserError, match="regularizers: l2: strategy frozen trains no parameters that they"):
        train_tiny(recipe_file, tmp_path / "other", "strategy=frozen", "regularizers=l2")


def test_contents_of_the_run_folder(finished_run: Path) -> None:
    import pyarrow.parquet

    result = Run(finished_run).result()
    rows = pyarrow.parquet.read_table(finished_run / "predictions.parquet").to_pylist()
    assert len(rows) == result["data"]["rows"]["test"]
    num_correct = sum(row["reference"] == row["prediction"] for row in rows)
    assert num_correct / len(rows) == result["test"]["accuracy"]
    assert all(len(row["probabilities"]) == 3 for row in rows)
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, result["train"]["steps"] + 1))
    assert {"step", "progress", "loss", "penalty", "lr", "grad_norm", "tokens_per_second"} == steps[0].keys()
    assert steps[-1]["progress"] == 1
    assert [line["step"] for line in lines if "validation" in line] == [29, 58, 87]
    assert result["params"]["head"] == 3 * 32 + 3
    assert result["params"]["adapter"] == 2 * 8 * (10 * 32 + 2 * 64)  # L·r·(10d+2f): six linear layers a block


@pytest.mark.slow
def test_same_recipe_and_seed_give_the_same_result(recipe_file: Path, finished_run: Path, tmp_path: Path) -> None:
    again, result = train_tiny(recipe_file, tmp_path / "again")
    assert without_clock(result) == without_clock(Run(finished_run).result())
    assert losses(again) == losses(finished_run)
    assert_same_weights(again, finished_run)
    other = train_tiny(recipe_file, tmp_path / "other", "seed=1")[0]
    assert losses(other) != losses(finished_run)


@pytest.mark.slow
def test_recipe_of_a_run_reproduces_it(finished_run: Path, tmp_path: Path) -> None:
    again, result = train_tiny(finished_run / "recipe.yaml", tmp_path / "again")
    assert losses(again) == losses(finished_run)
    assert result["digest"] == Run(finished_run).result()["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", LEARNING)
def test_loss_independent_of_micro_batch_size(strategy: str, recipe_file: Path, tmp_path: Path) -> None:
    common = [f"strategy={strategy}", "train.batch_size=32", "train.epochs=1", "train.learning_rate=1e-3"]
    common.append("data.train_rows=200")
    runs = []
    for rows in (32, 8, 4):  # 1×32, 4×8, 8×4
        runs.append(train_tiny(recipe_file, tmp_path / f"{rows}", *common, f"train.micro_batch_size={rows}")[0])
    runs.append(train_tiny(recipe_file, tmp_path / "tokens", *common, "train.micro_batch_tokens=48")[0])
    for other in runs[1:]:
        assert max(abs(a - b) for a, b in zip(losses(runs[0]), losses(other), strict=True)) <= 1e-5


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(recipe_file: Path, tmp_path: Path) -> None:
    common = ["train.epochs=1", "train.batch_size=14"]  # 430 rows: the last step has 10
    one = train_tiny(recipe_file, tmp_path / "one", *common)[0]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pefttools"]
    command = [*launch, "train", str(recipe_file), *common, "--out", str(tmp_path / "two")]
    process = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert process.returncode == 0, process.stderr
    first, second = Run(tmp_path / "one").result(), Run(tmp_path / "two").result()
    assert second["train"]["processes"] == 2
    assert max(abs(a - b) for a, b in zip(losses(one), losses(tmp_path / "two"), strict=True)) <= 1e-5
    assert first["test"]["accuracy"] == second["test"]["accuracy"]
    assert first["data"] == second["data"]


@pytest.mark.slow
def test_run_of_two_steps(recipe_file: Path, tmp_path: Path) -> None:
    _, result = train_tiny(recipe_file, tmp_path / "run", "train.batch_size=300", "train.epochs=1")
    assert result["train"]["steps"] == 2


@pytest.mark.slow
def test_a_tensor_without_gradient_stops_the_run(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pefttools.strategies.lora import Lora

    plain = Lora.wrap

    def with_an_idle_tensor(self: Any, base: Any) -> Any:
        model = plain(self, base)
        model.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
        return model

    monkeypatch.setattr(Lora, "wrap", with_an_idle_tensor)
    for overrides in ([], ["regularizers=l1"]):  # the gradient of a penalty does not count
        with pytest.raises(
            UserError, match="1 trained tensors got no gradient in 5 steps, so they would never be trained: idle"
        ):
            train_tiny(recipe_file, tmp_path / "run", *overrides)


@pytest.mark.slow
def test_gradients_are_watched_in_the_first_steps_of_a_run_not_of_a_process(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdaLoRA may give a tensor no gradient any more; a run that is resumed then goes on."""
    from pefttools.strategies.lora import Lora
    from pefttools.training import loop

    plain, steps = Lora.wrap, loop.WATCHED_STEPS

    def with_an_idle_tensor(self: Any, base: Any) -> Any:
        model = plain(self, base)
        model.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
        return model

    monkeypatch.setattr(Lora, "wrap", with_an_idle_tensor)
    common = ("train.checkpoint_steps=1", "train.epochs=1")
    with power_cut(3):
        train_tiny(recipe_file, tmp_path / "early", *common)
    with pytest.raises(UserError, match="1 trained tensors got no gradient in 5 steps"):
        train_tiny(recipe_file, tmp_path / "early", *common, resume=True)
    monkeypatch.setattr(loop, "WATCHED_STEPS", 1000)
    with power_cut(9):
        train_tiny(recipe_file, tmp_path / "late", *common)
    monkeypatch.setattr(loop, "WATCHED_STEPS", steps)
    _, result = train_tiny(recipe_file, tmp_path / "late", *common, resume=True)
    assert result["train"]["steps"] > 9 + steps


@pytest.mark.slow
def test_patience_stops_early_and_the_best_step_is_saved(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["train.epochs=30", "train.patience=2", "train.learning_rate=0.02", "train.schedule=constant"]
    run, result = train_tiny(recipe_file, tmp_path / "run", *overrides)
    assert result["train"]["stopped_early"]
    assert result["train"]["steps"] < 30 * 29
    evaluations = {line["step"]: line["validation"] for line in Run(run).lines() if "validation" in line}
    best = evaluations[result["train"]["best_step"]]
    assert best["accuracy"] == max(scores["accuracy"] for scores in evaluations.values())
    assert result["validation"]["accuracy"] == best["accuracy"]
    assert abs(result["validation"]["loss"] - best["loss"]) < 1e-6


@pytest.mark.slow
def test_bf16_learns_and_reports_fp32(recipe_file: Path, tmp_path: Path) -> None:
    _, result = train_tiny(recipe_file, tmp_path / "run", "train.precision=bf16")
    assert result["train"]["precision"] == "bf16"
    assert result["test"]["accuracy"] >= 0.9
    assert all(t.dtype == torch.float32 for t in weights(tmp_path / "run").values())


@pytest.mark.slow
def test_tensorboard_has_losses_and_scores(recipe_file: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = train_tiny(recipe_file, tmp_path / "run", "train.trackers=[tensorboard]", "train.epochs=1")
    events = EventAccumulator(str(next((run / "tensorboard").rglob("events*")).parent)).Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx(losses(run))
    assert len(events.Scalars("validation/accuracy")) == 1


def test_every_schedule_is_a_choice_of_the_setting() -> None:
    assert set(schedule.SCHEDULES) == set(get_args(TrainSettings.model_fields["schedule"].annotation))


def test_schedules_are_pure_functions_of_progress() -> None:
    assert schedule.multiplier(0.05, "linear", 0.1) == 0.5
    assert schedule.multiplier(0.1, "linear", 0.1) == 1
    assert schedule.multiplier(0.55, "linear", 0.1) == pytest.approx(0.5)
    assert schedule.multiplier(0.5, "cosine", 0.0) == pytest.approx(0.5)
    assert schedule.multiplier(1.0, "constant", 0.1) == 1
    for name in schedule.SCHEDULES:
        values = [schedule.multiplier(i / 100, name, 0.1) for i in range(101)]
        assert max(values) == pytest.approx(1)
        assert all(a >= b for a, b in itertools.pairwise(values[10:]))


def test_weight_decay_leaves_biases_and_norms(bases: Any) -> None:
    from pefttools.bases.loading import BaseSettings
    from pefttools.tasks.text_classification import TextClassification
    from pefttools.training import optimizer_setup

    base = TextClassification(labels=("a", "b")).load(BaseSettings(source=str(bases("bert"))))
    settings = recipes.load("question-type-full").recipe.train
    full = strategies.get("full")()
    decayed, plain = optimizer_setup.build(full.wrap(base), full, settings).param_groups
    assert decayed["weight_decay"] == 0.01
    assert plain["weight_decay"] == 0.0
    assert all(p.ndim == 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(base.model.parameters()))


def test_layer_decay_sets_learning_rates_by_layer(bases: Any) -> None:
    from pefttools.bases.loading import BaseSettings
    from pefttools.tasks.text_classification import TextClassification
    from pefttools.training import optimizer_setup

    base = TextClassification(labels=("a", "b")).load(BaseSettings(source=str(bases("bert"))))
    full = strategies.get("full")()
    settings = recipes.load("question-type-full", ["train.layer_decay=0.5", "train.learning_rate=1e-3"]).recipe.train
    names = {id(p): name for name, p in full.wrap(base).named_parameters()}
    groups = optimizer_setup.build(base.model, full, settings).param_groups
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert rates["classifier.weight"] == rates["bert.pooler.dense.bias"] == 1e-3
    assert rates["bert.encoder.layer.1.output.dense.weight"] == 1e-3
    assert rates["bert.encoder.layer.0.output.LayerNorm.bias"] == 5e-4
    assert rates["bert.embeddings.word_embeddings.weight"] == 2.5e-4


@pytest.mark.slow
def test_penalty_is_logged_and_reduces_the_weight_change(recipe_file: Path, tmp_path: Path) -> None:
    free = train_tiny(recipe_file, tmp_path / "free", "strategy=full", "train.epochs=1")[0]
    overrides = ["strategy=full", "train.epochs=1", "regularizers=[l2_sp,frobenius]", "regularizers.l2_sp.alpha=10"]
    penalized = train_tiny(recipe_file, tmp_path / "held", *overrides)[0]
    lines = [line for line in Run(penalized).lines() if "penalty" in line]
    assert lines[0]["loss"] == Run(free).lines()[0]["loss"]  # the first loss does not include the penalty
    assert lines[-1]["penalty"] > 0
    assert all(line["penalty"] == 0 for line in Run(free).lines() if "penalty" in line)
    base = {n: p.detach() for n, p in Run(free).recipe().task.load(Run(free).recipe().base).model.named_parameters()}
    changes = [
        sum(float((p - base[n]).square().sum()) for n, p in weights(run).items() if n.startswith("bert.encoder"))
        for run in (free, penalized)
    ]
    assert changes[1] < 0.5 * changes[0]


def test_metrics_by_hand() -> None:
    from pefttools.tasks.text_classification import TextClassification

    task = TextClassification(labels=("a", "b", "c"))
    predictions = [{"prediction": p} for p in "aabbc"]
    values = task.metrics(predictions, list("abbbc"))
    assert values["accuracy"] == 4 / 5
    assert values["f1"] == pytest.approx((2 / 3 + 4 / 5 + 1) / 3)
    assert values["per_class"]["a"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
