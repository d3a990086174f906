"""The stored support matrix equals what is measured; a false claim of a strategy stops it from being written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from pefttools import cli
from pefttools.compatibility import matrix
from pefttools.strategies import strategies
from pefttools.strategies.lora import Lora
from pefttools.tasks import tasks
from pefttools.tasks.text_classification import TextClassification

TASK = TextClassification.example()


@pytest.mark.slow
def test_stored_matrix_equals_the_measured_one() -> None:
    measured, stored = json.loads(json.dumps(matrix.matrix(TASK.name))), matrix.saved()
    assert matrix.saved()["versions"].keys() == measured["versions"].keys()
    assert measured["architectures"] == stored["architectures"]
    again = f"what fits where has changed; if that is meant, run: {matrix.COMMAND}"
    assert measured["tasks"] == {TASK.name: stored["tasks"][TASK.name]}, again
    problems: list[str] = []
    assert matrix.peft_types(problems) == stored["peft_types"], again
    assert not problems


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in tasks.names() if name != TASK.name])
def test_stored_rows_of_other_tasks_equal_those_measured_on_one_architecture(name: str) -> None:
    stored = matrix.saved()["tasks"][name]
    architecture = next(a for a in matrix.ARCHITECTURES if stored["lora"]["default"]["fits"][a] is True)
    measured = matrix.matrix(name, (architecture,))["tasks"][name]
    for strategy, variants in measured.items():
        for variant, row in variants.items():
            was = stored[strategy][variant]
            found = {"merges": row["merges"], "fits": row["fits"][architecture], "nf4": row["nf4"]}
            nf4 = {a: was["nf4"][a] for a in row["nf4"]}
            assert found == {"merges": was["merges"], "fits": was["fits"][architecture], "nf4": nf4}, matrix.COMMAND


def test_matrix_has_every_strategy_and_architecture() -> None:
    stored = matrix.saved()
    for found in stored["tasks"].values():
        assert found.keys() == set(strategies.names())
        for name, variants in found.items():
            assert variants.keys() == {"default", *strategies.get(name).variants}
            assert all(row["fits"].keys() == matrix.ARCHITECTURES.keys() for row in variants.values())


def test_reasons_are_not_raw_exceptions() -> None:
    rows = [row for found in matrix.saved()["tasks"].values() for v in found.values() for row in v.values()]
    rows += matrix.saved()["peft_types"].values()
    reasons = {
        str(r) for row in rows for r in (row["fits"] if isinstance(row["fits"], dict) else {0: row["fits"]}).values()
    }
    reasons |= {str(r) for row in rows for r in row.get("nf4", {}).values()}
    assert not [r for r in reasons if r.partition(":")[0].endswith("Error")]


def test_strategies_that_rewrite_weights_refuse_a_quantized_base() -> None:
    found = matrix.saved()["tasks"]["text_classification"]
    rewriting = ["full", "galore", "low_rank", "top_layers last_one", "lora pissa", "lora olora", "lora loftq"]
    for name, _, variant in (words.partition(" ") for words in rewriting):
        assert all("quantised" in reason for reason in found[name][variant or "default"]["nf4"].values())
    assert found["lora"]["default"]["nf4"] == {"bert": True, "llama": True}


class StartsElsewhere(Lora):
    """Claims an exact start, but changes the base."""

    exact_start: ClassVar[bool] = True  # type: ignore[override]

    def wrap(self, base: Any) -> nn.Module:
        model = super().wrap(base)
        with torch.no_grad():
            for parameter in base.model.get_input_embeddings().parameters():
                parameter.mul_(1.1)
        return model


class MergesWrong(Lora):
    """Changes a tensor in merging."""

    def merge(self, model: Any) -> Any:
        merged = super().merge(model)
        with torch.no_grad():
            next(merged.parameters()).mul_(1.1)
        return merged


class LeavesItsOwn(Lora):
    """Claims to merge, but leaves a module of its own."""

    def merge(self, model: Any) -> Any:
        merged = super().merge(model)
        merged.set_submodule("dropout", OwnDropout())
        return merged


class OwnDropout(nn.Dropout):
    pass


class DropsTheQuantised(Lora):
    """Replaces quantised matrices by plain ones."""

    def wrap(self, base: Any) -> nn.Module:
        for path in [p for p, m in base.model.named_modules() if type(m).__name__ == "Linear4bit"]:
            old = base.model.get_submodule(path)
            base.model.set_submodule(path, nn.Linear(old.in_features, old.out_features))
        return super().wrap(base)


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (StartsElsewhere, "on bert it claims exact_start but changes predictions before training"),
        (MergesWrong, "on bert it claims mergeable but merging changes its logits"),
        (LeavesItsOwn, "on bert it claims mergeable but merging leaves modules of test_support"),
        (
            DropsTheQuantised,
            "on a quantised bert it changes or replaces bert.encoder.layer.0.attention.self.query.weight",
        ),
    ],
)
def test_false_claim_of_a_strategy_is_a_contradiction(cls: type[Lora], sentence: str) -> None:
    with pytest.raises(matrix.Contradiction, match=sentence):
        matrix.row(TASK, cls(), ["bert"])


def test_contradictions_are_reported_together_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(matrix, "FILE", tmp_path / "support.json")
    monkeypatch.setattr(matrix, "ARCHITECTURES", {"bert": matrix.ARCHITECTURES["bert"]})
    monkeypatch.setattr(
        type(strategies), "names", lambda self: ["lora"] if self is strategies else ["text_classification"]
    )
    monkeypatch.setattr(matrix, "peft_types", lambda problems: {})
    monkeypatch.setattr(StartsElsewhere, "variants", {"again": {"rank": 4}})
    monkeypatch.setattr(
        type(strategies), "get", lambda self, name: StartsElsewhere if self is strategies else TextClassification
    )
    with pytest.raises(matrix.Contradiction) as caught:
        matrix.write()
    assert len(str(caught.value).splitlines()) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("columns", [80, 120])
def test_table_fits_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.run(["list", "strategies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if "merges" in line)
    end = next(i for i, line in enumerate(lines) if line.startswith("encoders: "))
    assert max(len(line) for line in lines[head:end]) <= columns
    assert not [line for line in lines[head:end] if "…" in line], "a cell is cut"
    assert not [line for line in lines[head:end] if line.count("(") != line.count(")")], "the table is cut"
    names = {line.split()[0] for line in lines[head:end] if line.strip()}
    assert {*strategies.names(), "pissa", "houlsby"} <= names


def test_json_has_the_whole_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "strategies", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert listing["support"] == matrix.saved()
    assert listing["strategies"] == strategies.summaries()


@pytest.mark.slow
def test_listing_strategies_imports_no_torch() -> None:
    check = "import sys; from pefttools import cli; sys.exit(cli.run(['list', 'strategies']) or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], env={**os.environ}, capture_output=True, check=True)


def test_regularizers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "regularizers"]) == 0
    assert "l2_sp" in capsys.readouterr().out
