"""A plug-in of each kind in a user's folder: commands and contract tests find it without another edit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import make_rows, write_rows

from pefttools.registry import plugin_kinds

FILES: dict[str, str] = {
    "strategies": '''"""mine: LoRA at a rank of its own."""
from typing import Any, ClassVar

from pydantic import Field

from pefttools.strategies.lora import Lora


class Mine(Lora):
    """LoRA of rank 3."""

    variants: ClassVar[Any] = {}

    rank: int = Field(default=3, ge=1)
    """The rank of every matrix's change."""
''',
    "tasks": '''"""Texts to classes, chosen by a metric of my own.

A row is `text` and `label`.
"""
from typing import ClassVar

from pefttools.tasks import text_classification


class Mine(text_classification.TextClassification):
    """One label a row."""

    primary: ClassVar[str] = "mine"

    def metrics(self, predictions, references):
        from pefttools.metrics import combined

        ids = {name: i for i, name in enumerate(self.labels)}
        predicted = [ids[p["prediction"]] for p in predictions]
        expected = [ids[name] for name in references]
        found = combined("mine").compute(predictions=predicted, references=expected)
        return {**super().metrics(predictions, references), **found}
''',
    "metrics": '''"""mine: the share of right predictions, squared."""
from pefttools.metrics.base import ClassMetric


class Mine(ClassMetric):
    """`mine`, a fraction."""

    def _compute(self, predictions, references):
        right = sum(p == r for p, r in zip(predictions, references, strict=True))
        return {"mine": (right / len(references)) ** 2}
''',
    "regularizers": '''"""mine: half the sum of squares, twice as strong."""
from pydantic import Field

from pefttools.regularizers.l2 import L2


class Mine(L2):
    """Twice the weight."""

    weight: float = Field(default=0.02, gt=0)
    """λ, on half the sum of squares."""
''',
    "objectives": '''"""mine: label smoothing, stronger."""
from pydantic import Field

from pefttools.objectives.label_smoothing import LabelSmoothing


class Mine(LabelSmoothing):
    """Stronger smoothing."""

    smoothing: float = Field(default=0.2, ge=0, lt=1)
    """The share of a target that is spread over all classes."""
''',
    "augmentations": '''"""mine: the words in reverse order."""
from pefttools.augmentations.base import Augmentation


class Mine(Augmentation):
    """Reverses the words."""

    def rewrite(self, text, draw):
        return " ".join(reversed(text.split())) or None
''',
    "optimizers": '''"""mine: Adam with Nesterov's momentum."""
import torch

from pefttools.optimizers.base import Optimizer


class Mine(Optimizer):
    """Nothing to set."""

    def build(self, groups, learning_rate):
        return torch.optim.NAdam(groups, lr=learning_rate)
''',
    "exporters": '''"""mine: a merged model with a note in a file."""
from pefttools.exporters.merged import Merged


class Mine(Merged):
    """The type of the weights, and a note."""

    note: str = "mine"
    """The text of the file."""

    def write(self, model, proof, folder):
        super().write(model, proof, folder)
        (folder / "note.txt").write_text(self.note)

    @classmethod
    def sentences(cls, manifest):
        yield f"the note says {manifest['settings']['note']}"
''',
}
"""Folder -> a plug-in of that kind."""
OVERRIDES = {
    "strategies": "strategy=mine",
    "tasks": "task=mine",
    "regularizers": "regularizers=mine",
    "objectives": "objectives=mine",
    "augmentations": "augmentations=mine",
    "optimizers": "train.optimizer=mine",
}
"""Folder -> the override that chooses the plug-in for a run."""
CONTRACTS = {
    "strategies": "test_strategies.py",
    "tasks": "test_tasks.py",
    "regularizers": "test_regularizers.py",
    "objectives": "test_objectives.py",
    "augmentations": "test_augmentations.py",
    "optimizers": "test_optimizers.py",
    "exporters": "test_exporters.py",
    "metrics": "test_metrics.py",
}
"""Folder -> the tests that run over that registry."""
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plug-ins, in a folder outside the repository."""
    root = tmp_path_factory.mktemp("plugins")
    for kind, text in FILES.items():
        (root / kind).mkdir()
        (root / kind / "mine.py").write_text(text)
    return root


def python(folder: Path, *words: str) -> str:
    """The output of `python WORDS` in a new process with the plug-ins."""
    found = subprocess.run(
        [sys.executable, *words], env={**os.environ, "PEFTTOOLS_PLUGINS": str(folder)}, cwd=TESTS,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return found.stdout


@pytest.fixture(scope="module")
def run(folder: Path, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that uses every plug-in that a recipe can choose."""
    out = tmp_path_factory.mktemp("run") / "run"
    python(folder, "-m", "pefttools", "train", str(recipe_file), *OVERRIDES.values(), "--out", str(out))
    return out


def test_every_kind_has_a_plugin_here() -> None:
    assert set(FILES) == set(CONTRACTS) == set(plugin_kinds())


@pytest.mark.slow
def test_plugins_are_listed(folder: Path) -> None:
    listing = json.loads(python(folder, "-m", "pefttools", "list", "--json"))
    listed = FILES.keys() & listing.keys()
    assert set(OVERRIDES) <= listed
    for kind in listed:
        assert FILES[kind].startswith(('"""mine: ' if kind != "tasks" else '"""') + listing[kind]["mine"])


@pytest.mark.slow
def test_run_of_plugins_trains_and_predicts(folder: Path, run: Path, tmp_path: Path) -> None:
    result, recipe = json.loads((run / "result.json").read_text()), yaml.safe_load((run / "recipe.yaml").read_text())
    assert (result["strategy"], result["task"]) == ("mine", "mine")
    assert recipe["strategy"]["rank"] == 3
    assert recipe["regularizers"]["mine"]["weight"] == 0.02
    assert recipe["objectives"]["mine"]["smoothing"] == 0.2
    assert recipe["augmentations"]["mine"]["copies"] == 1
    assert result["data"]["augmented"] > 0
    assert recipe["train"]["optimizer"]["name"] == "mine"
    assert result["test"]["mine"] == pytest.approx(result["test"]["accuracy"] ** 2)
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": row["text"]} for row in make_rows(5)])
    output = python(folder, "-m", "pefttools", "predict", str(run), str(rows)).splitlines()
    assert [json.loads(line)["prediction"] in ("colour", "fruit", "tool") for line in output] == [True] * 5


@pytest.mark.slow
def test_exporter_plugin_is_verified_and_has_a_model_card(folder: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["-m", "pefttools", "export", str(run), "note=hello", "--to", "mine", "--out", str(out)]
    assert "the note says hello" in python(folder, *words)
    assert (out / "note.txt").read_text() == "hello"
    card = (out / "README.md").read_text("utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "library_name: transformers" in card
    assert "AutoModelForSequenceClassification.from_pretrained(FOLDER)" in card


@pytest.mark.slow
def test_the_contract_tests_run_over_plugins(folder: Path) -> None:
    words = ["-m", "pytest", *CONTRACTS.values(), "-k", "mine", "-v", "-n0", "-o", "addopts=", "-p", "no:cacheprovider"]
    output = python(folder, *words)
    for kind, file in CONTRACTS.items():
        assert any(file in line and "mine" in line and "PASSED" in line for line in output.splitlines()), kind
