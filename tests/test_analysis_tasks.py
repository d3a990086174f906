"""`report`, `compare` and `evaluate --errors` work for every task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import train_tiny, write_recipe, write_rows

from pefttools import cli
from pefttools.tasks import tasks
from pefttools.training.run import Run

FAMILIES = {"AutoModelForCausalLM": "llama", "AutoModelForSeq2SeqLM": "bart"}


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.names())
def test_every_task_has_pages(
    name: str, bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = tasks.get(name)
    rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in cls.samples] * 4)
    data = {"validation": str(rows), "test": str(rows), "deduplicate": False}
    task = {"name": name, "max_length": 32, **cls.sample_settings}
    base = bases(FAMILIES.get(cls.auto_class, "bert"))
    file = write_recipe(tmp_path / "r.yaml", base, rows, data=data, task=task, train={"epochs": 1, "batch_size": 8})
    runs = [str(train_tiny(file, tmp_path / f"seed{seed}", f"seed={seed}")[0]) for seed in (0, 1)]
    capsys.readouterr()
    assert cli.run(["report", runs[0], "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    result = Run(Path(runs[0])).result()["test"]
    assert found["scores"][cls.primary]["value"] == result[cls.primary]
    assert found["mistakes"]["scored"] == len(cls.samples) * 4
    assert (Path(runs[0]) / "report.html").is_file()
    page = tmp_path / "compare.html"
    assert cli.run(["compare", *runs, "--out", str(page), "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    (pair,) = found["pairs"]
    scores = [run["scores"][cls.primary]["value"] for run in found["runs"]]
    assert pair["difference"] == pytest.approx(scores[0] - scores[1])
    assert found["settings"] == {"seed": {"seed0": 0, "seed1": 1}}
    assert page.is_file()
    assert cli.run(["compare", *runs]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"scores on the {len(cls.samples) * 4} rows" in out
    assert pair["verdict"] in out
    assert cli.run(["evaluate", runs[0], "--errors", "2", "--by", "length", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values[cls.primary] == pytest.approx(result[cls.primary])
    assert sum(one["rows"] for one in values["by"]["groups"]) == values["rows"]
