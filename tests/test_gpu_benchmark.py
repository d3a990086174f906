"""The benchmark for machines with a GPU: its small form runs on any machine, and one failure loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "gpu"


def run(tmp_path: Path, *words: str) -> tuple[int, dict[str, dict[str, object]], str]:
    """The exit code, the parts, and the table."""
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, str(FOLDER), "--smoke", "--out", str(out), *words], capture_output=True, text=True, check=False
    )
    assert out.exists(), done.stderr
    return done.returncode, json.loads(out.read_text("utf-8"))["parts"], out.with_suffix(".md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.timeout(900)  # every part imports torch in a process of its own
def test_all_parts_run_without_a_gpu(tmp_path: Path) -> None:
    code, parts, table = run(tmp_path)
    statuses = {name: part["status"] for name, part in parts.items()}
    failed = {name: part["message"] for name, part in parts.items() if part["status"] == "failed"}
    assert not failed
    assert code == 0
    assert {name for name, status in statuses.items() if status == "skipped"} <= {
        "decoder-1.1b pefttools_liger", "decoder-1.1b trl", "qlora",
    }  # fmt: skip
    assert {"machine", "golden", "ddp_of_one", "resume", "merge", "out_of_memory", "plan"} <= {*statuses}
    values = {name: part["values"] for name, part in parts.items() if part["status"] == "ok"}
    one, other = values["encoder pefttools"], values["encoder trainer"]
    assert one["trainable"] == other["trainable"]  # type: ignore[index]
    assert all(f"| {name} |" in table for name in parts if name != "machine")


@pytest.mark.slow
def test_a_part_that_fails_is_reported_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys, types\n"
        "module = types.ModuleType('machine')\n"
        "def measure(*_): raise RuntimeError('no | such card')\n"
        "module.measure = measure\n"
        "sys.modules['machine'] = module\n",
        "utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(broken), prepend=":")
    code, parts, table = run(tmp_path, "--only", "machine")
    assert code == 1
    assert parts["machine"]["status"] == "failed"
    assert parts["machine"]["message"] == "RuntimeError: no | such card"
    assert table.startswith("# pefttools on a GPU")
