"""Platforms without POSIX: no `resource`, `fcntl` or `fork`, fewer signals, and worker processes that are spawned."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pefttools import device, subprocesses
from pefttools.bench import trial

WITHOUT_POSIX = Path(__file__).parent / "without_posix"
IMPORT_ALL = """
import importlib, os, pkgutil, signal
import pefttools

names = [one.name for one in pkgutil.walk_packages(pefttools.__path__, "pefttools.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
exec("import resource", {"__name__": "elsewhere"})  # libraries find what they need on this system
try:
    exec("import resource", {"__name__": "pefttools.device"})
except ImportError:
    print("hidden")
print(eval("hasattr(os, 'fork') or hasattr(signal, 'SIGKILL')", {**globals(), "__name__": "pefttools.device"}))
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments in an interpreter without POSIX, as the processes that it starts are."""
    path = os.pathsep.join([str(WITHOUT_POSIX), *sys.path])
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture
def _uncached_context() -> Iterator[None]:
    subprocesses._context.cache_clear()
    yield
    subprocesses._context.cache_clear()


@pytest.mark.parametrize(("info", "expected"), [({"rss": 5, "peak_wset": 7}, 7), ({"rss": 5}, 5)])
def test_peak_memory_without_resource_is_from_psutil(
    info: dict[str, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(**info))
    assert device.peak_bytes() == expected


@pytest.mark.usefixtures("_uncached_context")
def test_workers_are_spawned_where_nothing_can_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    monkeypatch.setitem(sys.modules, "multiprocessing.forkserver", None)
    subprocesses.begin(["json"])
    assert subprocesses._context().get_start_method() == "spawn"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (-9, "the process was killed by SIGKILL; perhaps there was not enough memory"),
        (-15, "the process was killed by SIGTERM"),
        (-200, "the process was killed by signal 200"),
        (3, "exit code 3"),
        (0, "exit code 0"),
        (None, "exit code None"),
    ],
)
def test_end_of_a_trials_process_is_explained_by_its_exit_code(code: int | None, expected: str) -> None:
    assert trial._how_it_ended(code) == expected


@pytest.mark.slow
def test_every_module_is_imported_without_posix() -> None:
    done = run("-W", "error", "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr[-3000:]
    number, hidden, present = done.stdout.split()
    assert int(number) > 200
    assert (hidden, present) == ("hidden", "False")


@pytest.mark.slow
def test_train_predict_and_export_without_posix(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = run("-m", "pefttools", "train", str(recipe_file), "train.epochs=1", "--out", str(out))
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert json.loads((out / "result.json").read_text("utf-8"))["train"]["peak_bytes"] > 2**26
    predicted = run("-m", "pefttools", "predict", str(out), "--text", "word1 apple", "--text", "word2 saw")
    assert predicted.returncode == 0, predicted.stderr[-3000:]
    assert len(predicted.stdout.splitlines()) == 2
    exported = run("-m", "pefttools", "export", str(out), "--to", "merged")
    assert exported.returncode == 0, exported.stderr[-3000:]
    assert (out / "export" / "merged" / "model.safetensors").is_file()
