"""The contract of every optimizer in the registry, on the command line; a new file is tested without an edit here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import losses, power_cut, without_clock
from test_train import assert_same_weights

from pefttools import cli
from pefttools import optimizers as optimizers_package
from pefttools.errors import UserError
from pefttools.optimizers import optimizers
from pefttools.optimizers.base import Optimizer
from pefttools.planning.planner import Plan, plan
from pefttools.recipe import recipes
from pefttools.recipe.recipes import RUN_MARK
from pefttools.training import checkpoint, state_files
from pefttools.training.run import Run

CHOICES = [
    optimizers.get(name)(**settings)
    for name in optimizers.names()
    for settings in ({}, *optimizers.get(name).variants.values())
]
RATE = 0.003
"""The learning rate of adamw on the tiny recipe."""
Trained = Callable[..., Path]


def named(optimizer: Optimizer) -> str:
    return "-".join([optimizer.name, *(f"{name}={getattr(optimizer, name)}" for name in optimizer.model_fields_set)])


def chosen(optimizer: Optimizer) -> list[str]:
    """The overrides that choose an optimizer and its learning rate."""
    rate = f"train.learning_rate={RATE * optimizer.adamw_lr_ratio}"
    return [f"train.optimizer={json.dumps(optimizer.as_dict())}", rate]


@pytest.fixture
def trained(recipe_file: Path, tmp_path: Path) -> Trained:
    """Name of the run and overrides -> its folder, trained by the command."""

    def run(name: str, *words: str) -> Path:
        out = tmp_path / name
        assert cli.run(["train", str(recipe_file), "--out", str(out), *words]) == 0
        return out

    return run


def loaded(recipe_file: Path, *overrides: str) -> recipes.Resolved:
    return recipes.load(str(recipe_file), overrides)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", CHOICES, ids=named)
def test_every_optimizer_learns_and_resumes_bit_for_bit(optimizer: Optimizer, trained: Trained) -> None:
    overrides = [*chosen(optimizer), "base.dropout=0.1", "data.train_rows=200", "train.epochs=4"]
    whole = trained("whole", *overrides)
    assert losses(whole)[-1] < 0.8 * losses(whole)[0]
    assert Run(whole).result()["validation"]["accuracy"] >= 0.9
    for moment in (1, 17):
        with power_cut(moment):
            trained("died", *overrides, "train.checkpoint_seconds=0", "--resume")
    died = trained("died", *overrides, "--resume")
    assert losses(died) == losses(whole)
    assert_same_weights(whole, died)
    assert without_clock(Run(died).result()) == without_clock(Run(whole).result())


@pytest.mark.parametrize(
    "optimizer",
    [pytest.param(one, marks=pytest.mark.slow if one.model_fields_set else []) for one in CHOICES],
    ids=named,
)
def test_recipe_keeps_the_optimizer_and_its_memory_is_planned(
    optimizer: Optimizer, recipe_file: Path, tmp_path: Path
) -> None:
    full = [*chosen(optimizer), "strategy=full"]
    resolved = loaded(recipe_file, *full)
    assert resolved.recipe.train.optimizer == optimizer
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(resolved.recipe.as_dict()))
    again = recipes.load(str(tmp_path / "again.yaml")).recipe
    assert again.train.optimizer == optimizer
    assert again.digest == resolved.recipe.digest
    made = plan(resolved.recipe)
    assert made.bytes["optimizer"] <= 9 * made.params["trainable"]


@pytest.mark.slow
def test_planned_bytes_of_the_optimizer_state(recipe_file: Path) -> None:
    """Bytes per trained parameter: two averages in fp32, one in fp32, two in 8 bits, or rows and columns only."""

    def planned(name: str, *overrides: str) -> float:
        made: Plan = plan(loaded(recipe_file, "strategy=full", f"train.optimizer={name}", *overrides).recipe)
        return made.bytes["optimizer"] / made.params["trainable"]

    sizes = {name: planned(name) for name in ("adamw", "paged_adamw", "lion", "muon", "adafactor", "sgd")}
    eight = planned("adamw8bit", "train.optimizer.min_8bit_size=1")
    assert sizes["adamw"] == pytest.approx(8, rel=0.02)
    assert sizes["paged_adamw"] == 8
    assert sizes["lion"] == 4
    assert 4 < sizes["muon"] < 8
    assert 2 < eight < 2.3
    assert sizes["adafactor"] < 1
    assert sizes["sgd"] == 0


@pytest.mark.slow
def test_muon_updates_only_the_matrices_of_the_blocks(recipe_file: Path, trained: Trained) -> None:
    run = trained("run", "strategy=full", "train.optimizer=muon", "train.epochs=1", "train.keep_checkpoints=true")
    last = checkpoint.latest(run / "checkpoints")
    assert last
    saved = state_files.load(last, "state")["optimizer"]
    hidden = [number for group in saved["param_groups"] if group["hidden"] for number in group["params"]]
    assert all(saved["state"][number].keys() == {"momentum_buffer"} for number in hidden)
    assert len(hidden) == 2 * 6  # query, key, value and output, and two of the MLP, in each of two blocks
    rest = saved["state"].keys() - {*hidden}
    assert all(saved["state"][number].keys() == {"exp_avg", "exp_avg_sq", "step"} for number in rest)
    assert len(rest) > len(hidden)


def test_muon_without_matrices_is_refused(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(recipe_file), "strategy=bitfit", "train.optimizer=muon", "--out", str(tmp_path / "run")]
    assert cli.run(words) == 2
    assert "train.optimizer: muon is for matrices inside the blocks" in " ".join(capsys.readouterr().err.split())


def test_optimizer_as_name_or_mapping_is_the_same_recipe(recipe_file: Path) -> None:
    default = loaded(recipe_file).recipe
    for override in ("=adamw", ".name=adamw", "={name: adamw}", ".betas=[0.9,0.999]", "={eps: 1e-8}"):
        same = loaded(recipe_file, f"train.optimizer{override}").recipe
        assert (same.train.optimizer, same.digest) == (default.train.optimizer, default.digest), override
    other = loaded(recipe_file, "train.optimizer.betas=[0.9,0.99]").recipe
    assert other.train.optimizer.as_dict() == {"name": "adamw", "betas": [0.9, 0.99], "eps": 1e-8}
    assert other.digest != default.digest


def test_optimizers_are_listed_and_have_origins(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origins = loaded(recipe_file, "train.optimizer=lion", "train.optimizer.betas=[0.8,0.9]").origins
    assert origins["train.optimizer.name"] == origins["train.optimizer.betas"] == "override"
    assert loaded(recipe_file).origins["train.optimizer.name"] == "default"
    assert cli.run(["list", "optimizers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["optimizers"].keys() == {*optimizers.names()}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["train.betas=[0.9,0.98]"], ["train.optimizer.betas=[0.9,0.98]"]),
        (["train.eps=1e-6", "train.optimizer=adagrad"], ["train.optimizer={name: adagrad, eps: 1e-6}"]),
        (["train.optimizer=sgd", "train.momentum=0.5"], ["train.optimizer=sgd", "train.optimizer.momentum=0.5"]),
    ],
)
def test_old_keys_are_accepted_with_a_note(old: list[str], new: list[str], recipe_file: Path) -> None:
    before, now = loaded(recipe_file, *old), loaded(recipe_file, *new)
    assert before.recipe == now.recipe
    (key,) = {word.partition("=")[0] for word in old} - {"train.optimizer"}
    note = f"{key} is now {key.replace('train.', 'train.optimizer.')}; the old key still works"
    assert note in before.notes
    assert note not in now.notes


def test_old_keys_in_a_recipe_file_are_accepted(recipe_file: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(recipe_file.read_text())
    values["train"] |= {"optimizer": "sgd", "betas": [0.9, 0.999], "eps": 1e-6, "momentum": 0.5}
    text = yaml.safe_dump(values)
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "run.yaml").write_text(f"{RUN_MARK}\n{text}")
    mine, run = (recipes.load(str(tmp_path / name)) for name in ("mine.yaml", "run.yaml"))
    assert mine.recipe.train.optimizer.as_dict() == {"name": "sgd", "momentum": 0.5}
    assert mine.notes[:2] == (
        "train.eps=1e-06 has no effect: train.optimizer=sgd has no setting eps",
        "train.momentum is now train.optimizer.momentum; the old key still works",
    )
    assert run.recipe.train == mine.recipe.train
    assert not any("old key" in note for note in run.notes)
    over = recipes.load(str(tmp_path / "mine.yaml"), ["train.optimizer.momentum=0.7"]).recipe
    assert over.train.optimizer.as_dict() == {"name": "sgd", "momentum": 0.7}


def test_digests_have_not_changed() -> None:
    """Recorded when betas, eps and momentum were settings of `train`."""
    found = {
        words: recipes.load("question-type-lora", words.split()).recipe.digest[:12]
        for words in ("seed=0", "train.optimizer=sgd train.optimizer.momentum=0.5", "train.optimizer.betas=[0.8,0.9]")
    }
    assert [*found.values()] == ["48fcc8ceecad", "f6a43b537df8", "7877ddf0c07d"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.optimizer=adamx"], "train.optimizer: unknown optimizer 'adamx'; did you mean 'adam'? Known: "),
        (["train.betas=[0.8,0.9]", "train.optimizer.betas=[0.8,0.9]"], "both are set; remove train.betas"),
        (["train.optimizer=sgd", "train.eps=1e-6"], "train.optimizer.eps: unknown key 'eps'. Known: momentum"),
        (["train.optimizer.momentun=0.5"], "train.optimizer.momentun: unknown key 'momentun'"),
        (["train.optimizer=3"], "train.optimizer: unknown optimizer '3'"),
        (["train.optimizer=[adamw]"], "train.optimizer: must be a name or a mapping with `name`"),
        (["train.optimizer=lion", "train.optimizer.betas=[0.9,1]"], "train.optimizer.betas.1: input should be less"),
        (["train.optimizer=sgd", "strategy=galore"], "train.optimizer: galore works only with adamw, got sgd"),
    ],
)
def test_invalid_optimizers_are_refused(
    overrides: list[str], expected: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(recipe_file), *overrides, "--out", str(tmp_path / "run")]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_old_and_new_key_in_one_file_are_refused(recipe_file: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(recipe_file.read_text())
    values["train"] |= {"optimizer": {"eps": 1e-6}, "eps": 1e-7}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"train\.eps: is the old key of train\.optimizer\.eps, and both are set"):
        recipes.load(str(tmp_path / "mine.yaml"))


def test_learning_rate_chosen_for_adamw_is_reported(recipe_file: Path) -> None:
    def notes(*overrides: str) -> list[str]:
        return [note for note in loaded(recipe_file, *overrides).notes if "was chosen for adamw" in note]

    assert notes("train.optimizer=lion") == [
        "train.learning_rate=0.003 was chosen for adamw; lion usually takes about 0.2 times as much; try"
        " train.learning_rate=0.0006"
    ]
    assert notes("train.optimizer=lion", "train.learning_rate=1e-4") == notes("train.optimizer=muon") == []


def test_optimizer_without_effect_is_reported_if_nothing_is_trained(recipe_file: Path) -> None:
    notes = loaded(recipe_file, "strategy=frozen", "train.optimizer=sgd").notes
    assert any("train.optimizer=sgd: has no effect" in note for note in notes)


PLUGIN = '''"""mine: the sign of the gradient, by hand."""
from collections.abc import Sequence
from typing import ClassVar
from pefttools.optimizers.base import Optimizer

class Mine(Optimizer):
    word: str = "x"
    """Taken as it is written."""

    def build(self, groups, learning_rate):
        import torch
        return torch.optim.SGD(groups, lr=learning_rate)
'''


@pytest.mark.slow
def test_optimizer_plugin_is_found(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "optimizers").mkdir()
    (tmp_path / "optimizers" / "mine.py").write_text(PLUGIN)
    monkeypatch.setenv("PEFTTOOLS_PLUGINS", str(tmp_path))
    monkeypatch.delitem(sys.modules, "pefttools.optimizers.mine", raising=False)
    monkeypatch.setattr(optimizers_package, "__path__", list(optimizers_package.__path__))
    run = trained("run", "train.optimizer=mine", "train.optimizer.word=007", "train.epochs=1")
    assert Run(run).recipe().train.optimizer.as_dict() == {"name": "mine", "word": "007"}
    capsys.readouterr()
    assert cli.run(["list", "optimizers"]) == 0
    assert "the sign of the gradient, by hand" in capsys.readouterr().out
