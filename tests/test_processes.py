"""Several processes: weights that they share, equal draws, a process that ends, and launches that do not fit together.

The complete table is made by `python benchmarks/processes.py`.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import in_two, losses, train_tiny, write_recipe, write_rows

import pefttools
from pefttools import cli
from pefttools.cli import once
from pefttools.errors import EnvironmentFault, UserError
from pefttools.exporters.driver import export
from pefttools.objectives import objectives
from pefttools.optimizers import optimizers
from pefttools.recipe import recipes
from pefttools.registry import Registry
from pefttools.regularizers import regularizers
from pefttools.strategies import strategies
from pefttools.tasks import tasks
from pefttools.training import launch

pytestmark = pytest.mark.timeout(900)  # the launch of all shared runs takes minutes on a machine that is busy
SHORT = ("data.train_rows=48", "data.test=null", "train.epochs=1")
CHOSEN: Mapping[str, tuple[Registry, str]] = {
    "strategy": (strategies, "strategy={}"),
    "optimizer": (optimizers, "train.optimizer={}"),
    "objective": (objectives, "objectives=[{}]"),
    "regularizer": (regularizers, "regularizers=[{}]"),
}
"""Kind -> registry and override."""
CHOICES = [(kind, name) for kind, (registry, _) in CHOSEN.items() for name in registry.names()]
SHARDABLE = [(kind, name) for kind, name in CHOICES if CHOSEN[kind][0].get(name).shardable]
REFUSED = [pair for pair in CHOICES if pair not in SHARDABLE]


def override(kind: str, name: str) -> list[str]:
    """The overrides that choose it, with settings that it needs."""
    found = [CHOSEN[kind][1].format(name)]
    if kind == "objective":
        found += [f"objectives.{name}.{key}={json.dumps(v)}" for key, v in objectives.get(name).sample_settings.items()]
    if kind == "strategy" and name == "peft":
        found.append("strategy.type=LOKR")
    if kind == "regularizer" and name == "ewc":
        found.append("regularizers.ewc.data=rows.jsonl")
    return found


def train_all(orders: list[tuple[Path, Path, list[str]]], failing: list[str] | None = None) -> None:
    """Train several runs in the same process; its errors are written beside the folder of the run.

    Args:
        failing: further overrides for the second process of the last run.
    """
    for number, (recipe_file, out, overrides) in enumerate(orders, 1):
        more = failing if failing and number == len(orders) and os.environ["RANK"] == "1" else []
        try:
            train_tiny(recipe_file, out, *overrides, *more)
        except UserError as error:
            out.with_name(f"{out.name}-{os.environ['RANK']}.txt").write_text(str(error), "utf-8")


def generating(folder: Path, base: Path) -> Path:
    """A recipe whose run generates texts by sampling, on five rows, so that the processes have different numbers."""
    rows = write_rows(folder / "chat.jsonl", [{"prompt": f"word{i} apple", "completion": "pear"} for i in range(5)])
    data = {"validation": str(rows), "test": str(rows), "deduplicate": False}
    task = {"name": "causal_lm", "max_new_tokens": 6, "temperature": 0.8}
    return write_recipe(folder / "chat.yaml", base, rows, data=data, task=task, train={"epochs": 1, "log_every": 1})


@pytest.fixture(scope="module")
def in_both(
    recipe_file: Path, bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[Path]]:
    """Name -> its run in one process, and in two that share weights; all are trained in one launch."""
    root = tmp_path_factory.mktemp("both")
    chat = generating(root, bases("llama"))
    cases = {f"{kind} {name}": (recipe_file, [*SHORT, *override(kind, name)]) for kind, name in SHARDABLE}
    cases["uneven"] = recipe_file, [*SHORT, "train.batch_size=7", "train.micro_batch_size=2"]
    cases["sampled"] = chat, []
    two = [(file, root / f"{name}, two", [*more, "train.shard=true"]) for name, (file, more) in cases.items()]
    two.append((chat, root / "sampled, apart", []))
    two.append((recipe_file, root / "different", [*SHORT]))
    assert in_two(train_all, two, ["train.learning_rate=0.001"]) == [0, 0]

    def runs(name: str) -> list[Path]:
        if not (root / name).exists():
            file, overrides = cases[name]
            train_tiny(file, root / name, *overrides)
        return [root / name, root / f"{name}, two"]

    return runs


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"{kind} {name}" for kind, name in SHARDABLE), "uneven"])
def test_processes_that_share_weights_train_like_one(name: str, in_both: Callable[[str], list[Path]]) -> None:
    one, two = in_both(name)
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    before, after = (json.loads((run / "result.json").read_text()) for run in (one, two))
    assert after["params"] == before["params"]
    assert after["validation"]["accuracy"] == before["validation"]["accuracy"]
    (whole,) = before["train"]["weight_bytes"]
    assert after["train"]["weight_bytes"] == pytest.approx([whole / 2] * 2, rel=0.02)
    models = [pefttools.load(run).model.state_dict() for run in (one, two)]
    for key in (key for key in models[0] if ".original_module." not in key):  # the head's initial weights
        assert torch.allclose(models[0][key], models[1][key], atol=1e-4), key


@pytest.mark.slow
def test_run_of_processes_that_share_weights_is_exported_by_one(
    in_both: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    for name in ("strategy lora", "strategy full"):
        _, run = in_both(name)
        manifest = export(run, "merged", tmp_path / name)
        assert manifest["max_logit_error"] <= manifest["tolerance"]


@pytest.mark.slow
def test_sampled_texts_do_not_depend_on_the_processes(in_both: Callable[[str], list[Path]]) -> None:
    one, shared = in_both("sampled")
    texts = [pefttools.training.run.Run(run).predictions()[2] for run in (one, shared, one.with_name("sampled, apart"))]
    assert [[p["prediction"] for p in some] for some in texts] == [[p["prediction"] for p in texts[0]]] * 3


@pytest.mark.slow
def test_processes_with_different_recipes_are_refused(in_both: Callable[[str], list[Path]]) -> None:
    folder = in_both("uneven")[0].with_name("different")
    for rank in (0, 1):
        message = folder.with_name(f"different-{rank}.txt").read_text()
        assert message.startswith(
            "the processes of this launch differ in train.learning_rate: it is 0.003 on process 0, but 0.001 on process"
        )
    assert not folder.exists()


@pytest.mark.parametrize(("kind", "name"), REFUSED)
def test_choices_that_cannot_share_weights_are_refused(kind: str, name: str, recipe_file: Path) -> None:
    with pytest.raises(UserError, match=f"train.shard: .*={name} does not work on weights that processes share; those"):
        recipes.load(str(recipe_file), [*override(kind, name), "train.shard=true"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["base.quantize=nf4"], "base.quantize=nf4 does not work"),
        (["train.compile=true"], "train.compile=true does not work"),
        (["strategy.init=eva"], "strategy=lora does not work"),
        ([], "there is only one process; launch more with `torchrun"),
    ],
)
def test_settings_that_cannot_share_weights_are_refused(
    overrides: list[str], message: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(recipe_file), "--out", str(tmp_path / "run"), "train.shard=true", *overrides]
    assert cli.run(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_example_shares_weights() -> None:
    example = Path(__file__).resolve().parents[1] / "examples" / "several_gpus.yaml"
    assert recipes.load(str(example)).recipe.train.shard


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked_lm", "masked_lm_pairs"])
def test_masks_do_not_depend_on_micro_batches(name: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    cls = tasks.get(name)
    rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in cls.samples] * 4)
    data = {"validation": str(rows), "deduplicate": False}
    task = {"name": name, "max_length": 32, **cls.sample_settings}
    train = {"epochs": 2, "batch_size": 8, "log_every": 1}
    file = write_recipe(tmp_path / "recipe.yaml", bases("bert"), rows, data=data, task=task, train=train)
    whole, _ = train_tiny(file, tmp_path / "whole")
    parts, _ = train_tiny(file, tmp_path / "parts", "train.micro_batch_size=3")
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


def train_and_die(recipe_file: Path, out: Path, overrides: list[str], dies_at: int) -> None:
    """Train; the second process kills itself before a step, and the first one writes what it reports."""
    from pefttools.training import loop

    plain = loop.Loop.step

    def step(self: Any) -> None:
        if self.progress.step == dies_at and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self)

    loop.Loop.step = step  # type: ignore[method-assign]
    try:
        train_tiny(recipe_file, out, *overrides, resume=True)
    except EnvironmentFault as fault:
        out.with_name("message.txt").write_text(str(fault), "utf-8")


@pytest.mark.slow
def test_run_goes_on_after_a_process_was_killed(recipe_file: Path, tmp_path: Path) -> None:
    overrides = [*SHORT, "base.dropout=0.1", "train.checkpoint_steps=1", "train.shard=true"]
    assert in_two(train_and_die, recipe_file, tmp_path / "run", overrides, 2) == [0, -signal.SIGKILL]
    message = (tmp_path / "message.txt").read_text()
    assert message.startswith("another process of this run has ended, so this one ends, too; step-00000002 is kept")
    assert f"torchrun --nproc-per-node 2 -m pefttools train {tmp_path / 'run' / 'recipe.yaml'}" in message
    with pytest.raises(
        UserError, match=r"processes was 2 when the run began, but is 1 now; .*launch as many as before"
    ):
        train_tiny(recipe_file, tmp_path / "run", *overrides[:-1], resume=True)
    assert in_two(train_and_die, recipe_file, tmp_path / "run", overrides, -1) == [0, 0]
    assert in_two(train_and_die, recipe_file, tmp_path / "whole", overrides, -1) == [0, 0]
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    adapters = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("run", "whole")]
    assert adapters[0] == adapters[1]


@pytest.mark.slow
def test_plan_is_for_one_of_several_processes(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(recipe_file), "strategy=full", "train.precision=fp32", "--json"]
    assert cli.run(command) == 0
    alone = json.loads(capsys.readouterr().out)
    assert cli.run([*command, "train.shard=true", "--processes", "4"]) == 0
    shared = json.loads(capsys.readouterr().out)
    assert shared["params"] == alone["params"]
    assert shared["rows"] == alone["rows"] // 4
    for part in ("weights", "gradients", "optimizer"):
        assert shared["bytes"][part] == pytest.approx(alone["bytes"][part] / 4, rel=0.05)
    assert shared["bytes"]["gathered"] < alone["bytes"]["weights"]
    for words, message in (
        (["train.shard=true"], "say by how many with --processes N"),
        (["--processes", "0"], "--processes: 0 is not a number of processes"),
    ):
        assert cli.run([*command, *words]) == 2
        assert message in capsys.readouterr().err


def test_launch_that_starts_one_process_by_mistake_is_refused(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # what `accelerate launch --cpu --num_processes 2` sets
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert cli.run(["train", str(recipe_file), "--out", str(tmp_path / "run")]) == 2
    assert "several processes were launched, but Accelerate runs 1; on CPUs, launch with" in capsys.readouterr().err


def test_commands_for_a_launch_name_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for world, local, command in (
        ("1", "1", "pefttools train x"),
        ("4", "4", "torchrun --nproc-per-node 4 -m pefttools train x"),
        ("4", "2", "torchrun --nnodes 2 … --nproc-per-node 2 -m pefttools train x"),
    ):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        assert launch.launched("train x") == command


def test_an_error_of_several_processes_is_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert once.is_first("a")
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not once.is_first("a")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert [once.is_first(message) for message in ("a", "a", "b")] == [True, False, True]
