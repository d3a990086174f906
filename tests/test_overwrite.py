"""`train --overwrite` trains anew where a run is; `env` prints what a bug report needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import losses

import pefttools
from pefttools import cli, device
from pefttools.training.run import Run


@pytest.fixture
def copied(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run with an export and a report."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "export" / "merged").mkdir(parents=True)
    (run / "export" / "merged" / "model.safetensors").write_text("old")
    (run / "report.html").write_text("old")
    return run


def train(recipe: Path, run: Path, *words: str) -> int:
    return cli.run(["train", str(recipe), "--out", str(run), "train.epochs=1", *words])


@pytest.mark.slow
def test_a_run_of_another_recipe_is_overwritten(recipe_file: Path, copied: Path, tmp_path: Path) -> None:
    assert train(recipe_file, copied, "--overwrite", "seed=3") == 0
    assert not (copied / "export").exists()
    assert not (copied / "report.html").exists()
    assert train(recipe_file, tmp_path / "fresh", "seed=3") == 0
    assert losses(copied) == losses(tmp_path / "fresh")
    assert Run.open(copied).recipe().seed == 3
    assert train(recipe_file, tmp_path / "new", "--overwrite") == 0  # a folder without a run


@pytest.mark.slow
def test_the_messages_offer_what_can_be_done(
    recipe_file: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = (copied / "result.json").read_text()
    assert train(recipe_file, copied) == 2
    assert "of another recipe" in (told := capsys.readouterr().err)
    assert "add --overwrite to remove that run" in " ".join(told.split())
    assert cli.run(["train", str(recipe_file), "--out", str(copied)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "add --resume to see its result, --overwrite to train it anew, or name another folder" in told
    assert train(recipe_file, copied, "--overwrite", "--resume") == 2
    assert "choose one" in capsys.readouterr().err
    assert train(recipe_file, copied, "--overwrite", "strategy.targets=[nothing]") == 2
    assert (copied / "result.json").read_text() == result  # a refused recipe removes nothing
    assert (copied / "export").exists()


@pytest.mark.slow
def test_a_folder_of_other_files_is_never_overwritten(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert train(recipe_file, tmp_path, "--overwrite") == 2
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_overwritten_rows_in_memory(bases: object, tmp_path: Path) -> None:
    base = str(bases("bert"))  # type: ignore[operator]
    rows = [{"text": f"red word{i}", "label": "ab"[i % 2]} for i in range(40)]
    common = {"base": base, "out": tmp_path / "run", "train": {"epochs": 1, "trackers": []}, "progress": False}
    first = pefttools.fit(rows, **common)  # type: ignore[arg-type]
    (before,) = (first.path / "given").iterdir()
    with pytest.raises(pefttools.UserError, match="another recipe"):
        pefttools.fit(rows[1:], **common)  # type: ignore[arg-type]
    assert before.exists()
    assert pefttools.fit(rows, resume=True, **common).metrics == first.metrics  # type: ignore[arg-type]
    second = pefttools.fit(rows[1:], overwrite=True, **common)  # type: ignore[arg-type]
    (after,) = (second.path / "given").iterdir()
    assert after.name != before.name
    assert str(after) == second.recipe.as_dict()["data"]["train"]["source"]


@pytest.mark.slow
def test_another_model_in_memory_is_never_taken_for_the_first(bases: object, tmp_path: Path) -> None:
    folder = str(bases("bert"))  # type: ignore[operator]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    first, other = (transformers.AutoModel.from_pretrained(folder) for _ in range(2))
    with torch.no_grad():
        other.embeddings.word_embeddings.weight.mul_(1.5)
    rows = [{"text": f"red word{i}", "label": "ab"[i % 2]} for i in range(40)]
    common = {"tokenizer": tokenizer, "train": {"epochs": 1, "trackers": [], "log_every": 1}, "progress": False}
    run = pefttools.fit(rows, base=first, out=tmp_path / "run", **common)  # type: ignore[arg-type]
    kept = sorted(one.name for one in (run.path / "given").iterdir())
    again = pefttools.fit(rows, base=first, out=tmp_path / "run", resume=True, **common)  # type: ignore[arg-type]
    assert losses(again.path) == losses(run.path)
    for wish in ({"resume": True}, {}):
        with pytest.raises(pefttools.UserError, match="another recipe"):
            pefttools.fit(rows, base=other, out=tmp_path / "run", **wish, **common)  # type: ignore[arg-type]
    assert sorted(one.name for one in (run.path / "given").iterdir()) == kept  # what was refused leaves nothing
    before = losses(run.path)
    new = pefttools.fit(rows, base=other, out=tmp_path / "run", overwrite=True, **common)  # type: ignore[arg-type]
    assert losses(new.path) != before
    fresh = pefttools.fit(rows, base=other, out=tmp_path / "fresh", **common)  # type: ignore[arg-type]
    assert losses(new.path) == losses(fresh.path)
    assert len([*(new.path / "given").iterdir()]) == 2


def test_env(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTTOOLS_API_KEY", "secret")
    assert cli.run(["env"]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__ in shown
    assert cli.run(["env", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["versions"]["torch"] == torch.__version__
    assert values["device"]["type"] == "cpu"
    assert values["extras"]["explain"]
    assert "secret" not in shown + json.dumps(values)


def test_emulated_bf16_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert device.precision_of("auto") == "fp16"
    assert device.precision_of("bf16") == "bf16"
