"""Plans for a device: descriptions of devices, the largest micro-batch, what takes less memory, and `train.memory`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import pefttools
from pefttools import cli
from pefttools.errors import UserError
from pefttools.planning import fit, memory, target
from pefttools.planning.target import Target
from pefttools.recipe import recipes
from pefttools.recipe.train_settings import in_bytes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GB", 16 << 30), ("1.5gb", 3 << 29), ("900MiB", 900 * MIB), ("2g", 2 << 30), ("900", None), ("8GBs", None)],
)
def test_sizes_of_memory(text: str, size: int | None) -> None:
    assert in_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "memory", "precision"),
    [("cuda:16GB", 16 << 30, "bf16"), ("cuda:16GB,t4", 16 << 30, "fp16"), ("cuda:t4", 15 << 30, "fp16"),
     ("CUDA:A100-80GB", 80 << 30, "bf16"), ("cuda: h100", 80 << 30, "bf16"), ("cpu:8GB", 8 << 30, "fp32")],
)  # fmt: skip
def test_described_devices(text: str, memory: int, precision: str) -> None:
    found = target.parse(text)
    assert (found.memory, found.precision("auto"), found.precision("fp32")) == (memory, precision, "fp32")
    assert found.usable < memory if found.type == "cuda" else found.usable == memory


@pytest.mark.parametrize(
    ("text", "message"),
    [("tpu", "is neither a CUDA GPU nor a CPU"), ("cuda", "does not say how much memory"), ("cuda:", "does not say"),
     ("cuda:t5", r"unknown card 't5'; did you mean 't4'\?"), ("cuda:16", "'16' is not a size of memory"),
     ("cpu:t4", "'t4' is not a size"), ("cuda:0GB", "does not say how much memory"), ("", "is neither")],
)  # fmt: skip
def test_devices_that_nobody_knows_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^--device: .*{message}"):
        target.parse(text)


def test_fp16_needs_a_gpu() -> None:
    assert target.parse("cuda:16GB").precision("fp16") == "fp16"
    with pytest.raises(UserError, match=r"fp16 needs a CUDA GPU, but the plan is for cpu:1GB"):
        target.parse("cpu:1GB").precision("fp16")


def test_memory_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "GROUPS", tmp_path)
    before = target.free_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{300 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {100 * MIB}\n")
    assert target.free_memory() > 1000 * MIB or before < 1000 * MIB  # without a limit, that of the machine
    (tmp_path / "memory.max").write_text(f"{500 * MIB}\n")
    import psutil

    own = psutil.Process().memory_info().rss
    assert target.free_memory() - own == pytest.approx(300 * MIB, abs=50 * MIB)


@pytest.mark.parametrize("most", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("usable", [99, 100, 110, 163, 10**6])
def test_largest_rows_is_the_last_that_fits(most: int, usable: int) -> None:
    """The peak is 100 for one row and grows unevenly; few peaks are computed."""
    asked: set[int] = set()

    def peak(rows: int) -> int:
        asked.add(rows)
        return 100 + 3 * (rows - 1) + rows // 5

    found = fit.largest_rows(most, peak, usable)
    expected = [rows for rows in range(1, most + 1) if 100 + 3 * (rows - 1) + rows // 5 <= usable]
    assert found == (expected[-1] if expected else None)
    assert len(asked) <= 12


def fitted(recipe_file: Path, described: Target, *words: str, processes: int = 1) -> fit.Fit:
    def resolve(more: Any) -> Any:
        return recipes.load(str(recipe_file), (*words, *more)).recipe

    return fit.fit(resolve, (str(recipe_file), *words), described, processes=processes)


def test_a_run_that_fits_needs_no_change(recipe_file: Path) -> None:
    found = fitted(recipe_file, target.parse("cuda:16GB"))
    batch = recipes.load(str(recipe_file), ()).recipe.train.batch_size
    assert (found.fits, found.rows, found.options, found.plan.device) == (True, batch, (), "cuda")
    assert found.plan.bytes["process"] == found.plan.bytes["allocator"] == 0


def test_the_largest_micro_batch_fits_and_one_more_row_does_not(recipe_file: Path) -> None:
    words = ("train.batch_size=64", "train.micro_batch_tokens=100000", "task.max_length=48")
    whole = fitted(recipe_file, Target("cuda", 1 << 40, "it"), *words).plan.bytes["peak"]
    one = fitted(recipe_file, Target("cuda", 1 << 40, "it"), *words, "train.micro_batch_size=1").plan.bytes["peak"]
    usable = (whole + one) // 2
    found = fitted(recipe_file, Target("cpu-like", usable, "it"), *words)
    assert found.rows is not None
    assert 1 < found.rows < 64
    assert found.peak <= usable
    for rows, fits in ((found.rows, True), (found.rows + 1, False)):
        with_it = (*words, f"train.micro_batch_size={rows}", f"train.micro_batch_tokens={rows * found.plan.length}")
        assert (fitted(recipe_file, Target("cpu-like", usable, "it"), *with_it).plan.bytes["peak"] <= usable) == fits


@pytest.mark.slow
def test_options_take_less_and_less_and_each_is_a_command(recipe_file: Path) -> None:
    words = ("strategy=full", "task.max_length=256")
    described = Target("cuda", 0, "it")
    found = fitted(recipe_file, described, *words)
    peaks = [option.peak for option in found.options]
    assert found.rows is None
    assert not found.fits
    assert peaks
    assert peaks[0] < found.peak
    alone = [option for option in found.options if "train.shard=true" not in option.overrides]
    assert [option.peak for option in alone] == sorted((option.peak for option in alone), reverse=True)
    for option in alone:
        recipe = recipes.load(str(recipe_file), (*words, *option.overrides)).recipe
        assert option.command.startswith(f"pefttools train {recipe_file} strategy=full task.max_length=256")
        assert recipe.digest


@pytest.mark.slow
def test_command_says_whether_a_run_fits(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", str(recipe_file), "--device", "cuda:t4"]) == 0
    assert "the run fits; so do micro-batches of" in " ".join(capsys.readouterr().out.split())
    assert cli.run(["plan", str(recipe_file), "--device", "cpu:1MB"]) == 0
    assert "the run does not fit: with one row in a micro-batch" in " ".join(capsys.readouterr().out.split())
    assert cli.run(["plan", str(recipe_file), "--device", "here", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["fit"]["device"] == "this machine"
    assert values["fit"]["usable"] > 100 * MIB
    made = pefttools.plan(recipe_file, device="cuda:24GB,a10", progress=False)
    assert made["fit"]["fits"]
    assert cli.run(["plan", str(recipe_file), "--device", "tpu"]) == 2


@pytest.mark.slow
def test_train_memory_makes_a_run_fit_and_changes_rounding_only(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pefttools.device.resident_bytes", lambda: 0)  # so that two plans differ by the rows only
    monkeypatch.setattr(memory, "heap_peak_bytes", lambda *events: 0)
    words = ["train.batch_size=64", "train.epochs=1", "train.precision=fp32", "strategy.dropout=0"]
    made = fit.draft(recipes.load(str(recipe_file), words).recipe)
    whole = made.plan(target.here(), 1).bytes["peak"]
    single = made.plan(target.here(), 1, micro_batch_size=1, micro_batch_tokens=1).bytes["peak"]
    assert single < whole
    assert cli.run(["train", str(recipe_file), *words, "--out", str(tmp_path / "plain")]) == 0
    words += [f"train.memory={(whole + single) / 2 / MIB:.3f}MB"]
    capsys.readouterr()
    assert cli.run(["train", str(recipe_file), *words, "--out", str(tmp_path / "less")]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(r"train\.memory: the run needs .* with train\.memory_tokens=\d+", told)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("plain", "less")]
    assert results[0]["digest"] == results[1]["digest"]
    assert results[0]["test"]["loss"] == pytest.approx(results[1]["test"]["loss"], abs=1e-4)


def test_a_run_that_cannot_fit_is_refused(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(recipe_file), "train.memory=1MB", "--out", str(tmp_path / "run")]) == 2
    assert "train.memory: with one row at a time, the run needs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.run(["train", str(recipe_file), "train.memory=much", "--out", str(tmp_path / "run")]) == 2
    assert "'much' is not a size of memory" in capsys.readouterr().err


def test_train_memory_with_room_changes_nothing(recipe_file: Path) -> None:
    recipe = recipes.load(str(recipe_file), ("train.memory=auto",)).recipe
    assert fit.within_memory(recipe) is recipe
    assert recipe.digest == recipes.load(str(recipe_file), ()).recipe.digest


def test_several_processes_are_refused(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "num_processes", lambda: 2)
    with pytest.raises(UserError, match=r"train.memory: is for one process"):
        fit.within_memory(recipes.load(str(recipe_file), ("train.memory=auto",)).recipe)
