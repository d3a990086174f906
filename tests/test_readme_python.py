"""The Python of the README and of its guides in English and Chinese, run word for word, on a tiny base."""

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
PAGES = ("README.md", "docs/python.md", "docs/zh/start.md", "docs/zh/python.md")
TEXTS = [(ROOT / name).read_text("utf-8") for name in PAGES]
BY_PAGE = [re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for text in TEXTS]
BLOCKS = [block for blocks in BY_PAGE for block in blocks]


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
    assert all(BY_PAGE)
    assert "prediction" in capsys.readouterr().out
    assert (tmp_path / "runs/tickets/export/merged/model.safetensors").is_file()
    for folder in ("runs/mine", "runs/我的模型"):
        assert transformers.AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 3
