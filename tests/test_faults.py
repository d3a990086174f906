"""Damaged checkpoints and runs, a full disk, and memory that runs out: nothing is lost or wrong in silence."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import losses, power_cut, train_tiny, without_clock
from test_train import assert_same_weights

from pefttools import cli, hashes
from pefttools.errors import UserError
from pefttools.objectives import objectives
from pefttools.tasks.text_classification import TextClassification
from pefttools.training import checkpoint, state_files
from pefttools.training.run import Run

SHORT = ("train.epochs=1", "data.train_rows=96", "train.log_every=1", "train.evaluate_every=0.4")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {"flip": flip, "cut": cut, "remove": Path.unlink}


@pytest.fixture(scope="module")
def whole(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run left alone, and its result."""
    return train_tiny(recipe_file, tmp_path_factory.mktemp("whole") / "run", *SHORT)


@pytest.fixture(scope="module")
def died(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, which died after its third step; its checkpoints are those of the second and the third."""
    out = tmp_path_factory.mktemp("died") / "run"
    with power_cut(3):
        train_tiny(recipe_file, out, *SHORT, "train.checkpoint_steps=1")
    return out


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy" / "run"))


# checkpoints


def test_the_last_two_checkpoints_are_kept_and_nothing_is_a_pickle(died: Path) -> None:
    folders = sorted(path.name for path in (died / "checkpoints").iterdir())
    assert folders == ["best-00000002", "step-00000002", "step-00000003"]
    files = {file.name for file in (died / "checkpoints" / "step-00000003").iterdir()}
    assert files == {
        "hashes.json", "progress.json", "trained.safetensors", "state.json", "state.safetensors", "random-0.json",
        "random-0.safetensors",
    }  # fmt: skip
    for file in died.rglob("*.safetensors"):
        assert int.from_bytes(file.read_bytes()[:8], "little") < file.stat().st_size  # the header's length, not a zip


FILES = ("trained.safetensors", "state.safetensors", "state.json", "progress.json", "random-0.json",
         "random-0.safetensors", "hashes.json")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"), [(name, "flip") for name in FILES] + [(FILES[0], "cut"), (FILES[1], "remove")]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(
    name: str, damage: str, recipe_file: Path, died: Path, whole: Any, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = copied(died, tmp_path)
    DAMAGES[damage](run / "checkpoints" / "step-00000003" / name)
    words = ["train", str(recipe_file), *SHORT, "train.keep_checkpoints=true", "--out", str(run), "--resume"]
    assert cli.run(words) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "step-00000003: " in told
    assert name in told
    assert "it is now named damaged-step-00000003, and training continues from step-00000002" in told
    assert losses(run) == losses(whole[0])
    assert_same_weights(whole[0], run)
    assert without_clock(Run(run).result()) == without_clock(whole[1])
    assert (run / "checkpoints" / "damaged-step-00000003").is_dir()


def test_runs_whose_checkpoints_are_all_damaged_are_refused(
    recipe_file: Path, died: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(died, tmp_path)
    flip(run / "checkpoints" / "step-00000003" / "trained.safetensors")
    cut(run / "checkpoints" / "best-00000002" / "trained.safetensors")
    assert cli.run(["train", str(recipe_file), *SHORT, "--out", str(run), "--resume"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "step-00000003: trained.safetensors has changed since it was written" in told
    assert "step-00000002: trained.safetensors has changed since it was written (its sha256 is not that in" in told
    assert "in best-00000002, its best weights" in told
    assert "restore one from a copy, or train anew with --overwrite instead of --resume" in told
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == ["step-00000002", "step-00000003"]


def test_a_changed_setting_is_named(
    recipe_file: Path, died: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(died, tmp_path)
    changed = ["train.learning_rate=0.001", "strategy.rank=2"]
    assert cli.run(["train", str(recipe_file), *SHORT, *changed, "--out", str(run), "--resume"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "unfinished run of another recipe (strategy.rank=2, was 8; " in told
    assert "train.learning_rate=0.001, was " in told


@pytest.mark.slow
def test_settings_that_change_nothing_may_change(recipe_file: Path, died: Path, whole: Any, tmp_path: Path) -> None:
    run = copied(died, tmp_path)
    allowed = ["train.checkpoint_steps=3", "train.last_checkpoints=1", "train.keep_checkpoints=true"]
    train_tiny(recipe_file, run, *SHORT, *allowed, resume=True)
    assert_same_weights(whole[0], run)
    assert len(list((run / "checkpoints").glob("step-*"))) == 1


def test_states_are_read_back_equal(tmp_path: Path) -> None:
    state = {
        "plain": [None, True, 3, 0.1, math.pi * 1e-300, -math.inf, "text"],
        0: (torch.arange(3, dtype=torch.uint8), torch.tensor(2.5, dtype=torch.bfloat16)),
        "nested": {"!tensor": "no tensor", "empty": {}, "more": ({}, [], ())},
        "shared": [torch.ones(4)[::2], torch.ones(0)],
    }
    state_files.save(tmp_path, "state", state)
    found = state_files.load(tmp_path, "state")
    assert found[0][0].dtype == torch.uint8
    assert found[0][1].dtype == torch.bfloat16
    assert found[0][1].shape == ()
    assert isinstance(found[0], tuple)
    assert torch.equal(found[0][0], torch.arange(3, dtype=torch.uint8))
    assert torch.equal(found["shared"][0], torch.ones(2))
    assert found["plain"] == state["plain"]
    assert found["nested"] == state["nested"]
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\] is a set, which a checkpoint cannot store"):
        state_files.save(tmp_path, "state", {"a": [1, {2}]})


# finished runs


COMMANDS = (
    ["predict", "--run", "RUN", "--text", "word1"], ["evaluate", "RUN"], ["export", "RUN", "--to", "adapter"],
    ["merge", "RUN", "RUN", "--weights", "1", "1", "--out", "OUT"],
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_no_command_reads_a_damaged_run(
    words: list[str], whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(whole[0], tmp_path)
    flip(next(run.glob("adapter/*.safetensors")))
    filled = [{"RUN": str(run), "OUT": str(tmp_path / "out")}.get(word, word) for word in words]
    assert cli.run(filled) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert ".safetensors has changed since it was written (its sha256 is not that in hashes.json)" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["recipe.yaml", "result.json", "metrics.jsonl", "rows.parquet", "predictions.parquet"])
def test_every_file_of_a_run_is_checked(
    name: str, whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(whole[0], tmp_path)
    with (run / name).open("ab") as stream:
        stream.write(b" ")
    assert cli.run(["export", str(run), "--to", "merged"]) == 2
    assert f"{name} has changed since it was written" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_damaged_artifact_is_not_used(whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged"
    assert cli.run(["export", str(whole[0]), "--to", "merged", "--out", str(out)]) == 0
    (out / "README.md").write_text("my own card")
    assert cli.run(["predict", "--run", str(out), "--text", "word1"]) == 0
    flip(out / "model.safetensors")
    capsys.readouterr()
    assert cli.run(["predict", "--run", str(out), "--text", "word1"]) == 2
    assert "model.safetensors has changed since it was written" in " ".join(capsys.readouterr().err.split())


# a full disk


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3])
def test_a_full_disk_ends_with_one_message_and_the_run_can_go_on(
    at: int, recipe_file: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plain, saved = checkpoint.state_files.save, []

    def full(folder: Path, name: str, state: Any) -> None:
        saved.append(name)
        if saved.count("state") == at:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / name))
        plain(folder, name, state)

    words = ["train", str(recipe_file), *SHORT, "train.checkpoint_steps=1", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.state_files, "save", full)
        assert cli.run([*words, "--resume"]) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "cannot be written: [Errno 28] No space left on device" in told
    if at == 1:
        assert "there was no checkpoint yet, so nothing is kept" in told
        assert not (tmp_path / "run").exists()
        return
    assert "step-00000002 is kept. When there is room, continue with `pefttools train" in told
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    assert cli.run([*words, "--resume"]) == 0
    assert_same_weights(whole[0], tmp_path / "run")


# memory


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it with the most rows of a training pass that fit into memory."""
    import transformers

    def limit(rows: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        plain = transformers.BertForSequenceClassification.forward

        def forward(self: Any, *values: Any, **inputs: Any) -> Any:
            outputs: Any = plain(self, *values, **inputs)
            if torch.is_grad_enabled() and len(outputs.logits) > rows:
                raise error("CUDA out of memory. Tried to allocate 2.00 GiB")
            return outputs

        monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", forward)

    return limit


RANDOM = ("mixup", "neftune", "r_drop")
"""Objectives that draw random numbers in every pass."""
NAMES = [name for name in objectives.names() if name not in (*RANDOM, "distillation", "layer_matching")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", *NAMES])
def test_a_step_that_runs_out_of_memory_is_computed_in_smaller_micro_batches(
    name: str, recipe_file: Path, tmp_path: Path, scarce: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The losses are those of a run with enough memory."""
    chosen = []
    if name != "none":
        small = {"epsilon": 0.01, "sigma": 0.01, "weight": 100} if name == "smart" else {}
        own = {**objectives.get(name).sample_settings, **small}
        chosen = [f"objectives={name}", *(f"objectives.{name}.{key}={value}" for key, value in own.items())]
    common = [*SHORT, *chosen, "train.batch_size=16", "train.precision=fp32", "train.feature_cache=off"]
    plain, _ = train_tiny(recipe_file, tmp_path / "plain", *common)
    scarce(5)
    words = ["train", str(recipe_file), *common, "--out", str(tmp_path / "run")]
    assert cli.run(words) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert (
        told.count("step 1 ran out of memory; from now on steps are computed in micro-batches of at most 8 rows") == 1
    )
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), rel=1e-3)


def test_one_row_that_does_not_fit_ends_with_one_message(
    recipe_file: Path, tmp_path: Path, scarce: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pefttools.training.trial_step import FirstStep

    monkeypatch.setattr(FirstStep, "_train", lambda self, bf16: None)
    scarce(0, MemoryError)
    assert cli.run(["train", str(recipe_file), *SHORT, "--out", str(tmp_path / "run")]) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "step 1 ran out of memory even with one row at a time (CUDA out of memory." in told
    assert "train.gradient_checkpointing=true" in told


def test_memory_that_runs_out_elsewhere_is_one_message(
    recipe_file: Path, tmp_path: Path, scarce: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    scarce(0)
    assert cli.run(["train", str(recipe_file), *SHORT, "--out", str(tmp_path / "run")]) == 3
    assert "there is not enough memory: CUDA out of memory." in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.fixture
def few_rows_fit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Evaluations fail with more than 3 rows in a batch; returns the numbers of rows that were computed."""
    import transformers

    done: list[int] = []
    plain = transformers.BertForSequenceClassification.forward

    def forward(self: Any, *values: Any, **inputs: Any) -> Any:
        if not torch.is_grad_enabled() and len(inputs["input_ids"]) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12345 bytes.")
        done.append(len(inputs["input_ids"]))
        return plain(self, *values, **inputs)

    monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", forward)
    return done


@pytest.mark.slow
def test_evaluations_are_computed_in_halves(recipe_file: Path, tmp_path: Path, few_rows_fit: list[int]) -> None:
    _, result = train_tiny(recipe_file, tmp_path / "run", *SHORT)
    assert result["data"]["rows"]["test"] > 3
    assert {*few_rows_fit} > {2, 3}


def test_hashes_name_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("content")
    hashes.write(tmp_path, [tmp_path / "a" / "b.txt"], {"later.txt": "text"})
    assert hashes.damage(tmp_path) == "later.txt is missing"
    (tmp_path / "later.txt").write_text("text")
    assert hashes.damage(tmp_path) is None
    (tmp_path / "a" / "b.txt").write_text("Content")
    assert hashes.damage(tmp_path) == "a/b.txt has changed since it was written (its sha256 is not that in hashes.json)"
    (tmp_path / "hashes.json").write_text("[]")
    assert hashes.damage(tmp_path) == "hashes.json cannot be read"
    (tmp_path / "hashes.json").unlink()
    assert hashes.damage(tmp_path) == "hashes.json is missing"
    hashes.refuse_damaged(tmp_path)  # a run of an older version


def test_a_loss_that_explodes_stops_the_run(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, passes = TextClassification.loss, []

    def growing(self: Any, outputs: Any, batch: Any) -> torch.Tensor:
        passes.append(outputs.logits.requires_grad)
        return plain(self, outputs, batch) * (1000 if sum(passes) > 16 else 1)

    monkeypatch.setattr(TextClassification, "loss", growing)
    with pytest.raises(UserError, match=r"the loss has exploded: it was .* in the first steps and is .* at step 2\d"):
        train_tiny(recipe_file, tmp_path / "run", "train.epochs=3", "train.log_every=1")
    assert not (tmp_path / "run").exists()
