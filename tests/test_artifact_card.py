"""Files next to an artifact's weights: the model card and its code, file modes, and the reference to the base."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_rows, train_tiny, write_csv, write_recipe

from pefttools.exporters.driver import export
from pefttools.inference.prediction import predict_rows

ALONE = """
import sys
sys.modules["pefttools"] = None
{code}
import torch
with torch.inference_mode():
    logits = model(**tokenizer(["word1 saw", "a red word2"], padding=True, return_tensors="pt")).logits
print([model.config.id2label[i] for i in logits.argmax(-1).tolist()])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> Path:
    folder = tmp_path_factory.mktemp("card")
    rows = write_csv(folder / "customers of mine.csv", make_rows(200))
    recipe = write_recipe(
        folder / "r.yaml", bases("bert"), rows, task={"name": "text_classification", "max_length": 32},
        train={"epochs": 2, "learning_rate": 0.003}, description="GSM8K, a thousand problems",
    )  # fmt: skip
    return train_tiny(recipe, folder / "run")[0]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["merged", "adapter"])
def test_model_card_names_the_users_data_and_its_code_runs_without_pefttools(
    to: str, run: Path, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    export(run, to, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "# text_classification on customers of mine.csv" in card
    assert "Classes: `colour`, `fruit`, `tool`." in card
    assert "GSM8K" not in card
    assert str(run.parent) not in card
    assert str(bases("bert")) not in card
    assert (
        "truncation=True, max_length=32, padding=True" in card
    )  # the max_length of training, not the limit of the base
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    code = code.replace("THIS_FOLDER", str(tmp_path / "out")).replace("FOLDER_OF_THE_BASE", str(bases("bert")))
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALONE.format(code=code)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    expected = [row["prediction"] for row in predict_rows(run, [{"text": "word1 saw"}, {"text": "a red word2"}])]
    assert process.stdout.strip() == str(expected) == "['tool', 'colour']"


@pytest.mark.slow
def test_peft_loads_an_adapter_of_a_hub_base_by_its_class(
    run: Path, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """The base's configuration has no classes, so `num_labels` is passed to `AutoPeftModelFor…`."""
    from peft import AutoPeftModelForSequenceClassification

    export(run, "adapter", tmp_path / "out")
    file = tmp_path / "out" / "adapter_config.json"
    config = json.loads(file.read_text())
    assert config["base_model_name_or_path"] is None  # a local folder means nothing on another machine
    file.write_text(json.dumps({**config, "base_model_name_or_path": str(bases("bert"))}))
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]
    model = AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "out"), num_labels=3)
    assert about["num_labels"] == model.config.num_labels == 3


@pytest.mark.slow
def test_file_modes_follow_the_umask_and_pefts_empty_card_is_removed(run: Path, tmp_path: Path) -> None:
    export(run, "merged", tmp_path / "out")
    umask = os.umask(0o022)
    os.umask(umask)
    for root in (run, tmp_path / "out"):
        for path in (root, *root.rglob("*")):
            allowed = (0o777 if path.is_dir() else 0o666) & ~umask
            assert stat.S_IMODE(path.stat().st_mode) == allowed, path
    assert not (run / "adapter" / "README.md").exists()
    assert "[More Information Needed]" not in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_export_scores_the_rows_of_the_run_when_the_data_file_changed_or_is_gone(run: Path, tmp_path: Path) -> None:
    file = run.parent / "customers of mine.csv"
    before = file.read_bytes()
    try:
        file.write_bytes(before + b"a new hammer,tool\n")
        grown = export(run, "merged", tmp_path / "grown")
        file.unlink()
        moved = export(run, "merged", tmp_path / "moved")
    finally:
        file.write_bytes(before)
    result = json.loads((run / "result.json").read_text())
    assert grown["exported"] == moved["exported"] == result["test"]["accuracy"]
    assert moved["scored_rows"] == result["data"]["rows"]["test"]
