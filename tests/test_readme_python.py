"""The Python of the README and of its guide, run word for word, on a tiny base."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import make_rows

from pefttools.api import settings

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
TEXTS = [(ROOT / name).read_text("utf-8") for name in ("README.md", "docs/python.md", "docs/zh/start.md")]
BLOCKS = [block for text in TEXTS for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def test_every_block_runs(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "usual_base", lambda task: {"source": str(bases("bert"))})
    with Path("tickets.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(make_rows(90))
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert len(BLOCKS) == 7
    assert "prediction" in capsys.readouterr().out
    assert (tmp_path / "runs/tickets/export/merged/model.safetensors").is_file()
    assert transformers.AutoModelForSequenceClassification.from_pretrained("runs/mine").config.num_labels == 3
