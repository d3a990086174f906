"""Faults of the machine and the environment: caches and folders that cannot be written, encodings, plug-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import pefttools.strategies as strategies_package
from pefttools import cli
from pefttools.errors import UserError
from pefttools.registry import plugin_problems
from pefttools.sources.cache import cache_dir
from pefttools.strategies import strategies
from pefttools.tasks import tasks

ABSTRACT = (
    '"""mine: a strategy."""\nfrom pefttools.strategies.base import Strategy\nclass Mine(Strategy):\n    """It."""\n'
)


def command(words: list[str], stdout: int | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`pefttools` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pefttools", *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


@pytest.mark.parametrize("name", ["PEFTTOOLS_CACHE", "HOME"])
def test_unwritable_cache_is_one_message(
    name: str, rows_file: Path, bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    blocked = tmp_path / "file"
    blocked.write_text("")
    if name == "HOME":
        monkeypatch.delenv("PEFTTOOLS_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(name, str(blocked / "below"))
    words = ["train", "question-type-lora", f"base={bases('bert')}", f"data.train={rows_file}"]
    assert cli.run([*words, "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"{blocked / 'below'}" in message
    assert "is not writable (Not a directory); set PEFTTOOLS_CACHE to a folder that is" in message
    assert not (tmp_path / "out").exists()


def test_cache_folder_is_checked_again_after_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / "new"))
    assert cache_dir("a", "b") == tmp_path / "new" / "a" / "b"
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.setenv("PEFTTOOLS_CACHE", os.devnull)
    with pytest.raises(UserError, match="PEFTTOOLS_CACHE: /dev/null is not writable"):
        cache_dir("a")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("words", [["train", "question-type-lora"], ["bench", "smoke"]], ids=lambda words: words[0])
def test_unwritable_output_folder_is_refused_first(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*words, "--out", "/proc/none/out"]) == 2
    assert capsys.readouterr().err.startswith("error: --out: cannot write to /proc (")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_output_is_printed_in_every_encoding(encoding: str) -> None:
    found = command(["list", "strategies"], PYTHONIOENCODING=encoding)
    assert (found.returncode, found.stderr) == (0, b"")
    shown = found.stdout.decode(encoding)
    assert "θ = UVᵀ" in shown if encoding == "utf-8" else "\\u03b8 = UV\\u1d40" in shown
    found = command(["list", "strategies", "--json"], PYTHONIOENCODING=encoding)
    assert "θ = UVᵀ" in json.loads(found.stdout.decode(encoding))["strategies"]["low_rank"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["show", "spam-lora"]], ids=" ".join)
def test_full_standard_output_is_one_message(words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        found = command(words, stdout=full.fileno())
    assert found.returncode == 3
    assert found.stderr == b"error: standard output cannot be written: No space left on device\n"


PLUGINS: Mapping[str, tuple[str, str]] = {
    "a syntax error": ("x = 1\ndef wrap(:\n", r"mine.py line 2: syntax error: invalid syntax"),
    "no methods": (ABSTRACT, r"mine.py: Mine lacks merge, wrap"),
    "an import that fails": (f"import not_there\n{ABSTRACT}", r"mine.py line 1: ModuleNotFoundError: No module"),
    "no class": ("x = 1\n", r"mine.py: defines no class derived from Strategy"),
    "two classes": (
        ABSTRACT + "    def wrap(self): ...\n    def merge(self): ...\nclass Two(Mine):\n    pass\n",
        r"mine.py: defines Mine, Two; a file must define one strategy",
    ),
}


@pytest.mark.parametrize("case", PLUGINS)
def test_broken_plugin_is_reported_with_its_file(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other strategy still works."""
    body, message = PLUGINS[case]
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "mine.py").write_text(body)
    monkeypatch.setenv("PEFTTOOLS_PLUGINS", str(tmp_path))
    monkeypatch.delitem(sys.modules, "pefttools.strategies.mine", raising=False)
    monkeypatch.setattr(strategies_package, "__path__", list(strategies_package.__path__))
    with pytest.raises(UserError, match=message):
        strategies.get("mine")
    classes, problems = strategies.usable()
    assert {"lora", "full"} <= classes.keys()
    assert "mine" not in classes
    assert "lora" in strategies.summaries()
    assert len(problems) == ("mine" in strategies.names())
    found = list(plugin_problems())
    assert ["syntax error" in problem for problem in found] == [True] * (case == "a syntax error")


@pytest.mark.parametrize(
    "body",
    ["from pefttools.strategies.lora import Lora\nclass Mine(Lora):\n    pass\n",
     "from pefttools.strategies import lora\nclass Mine(lora.Lora):\n    pass\n",
     "from pefttools.strategies._shared import Half\nclass Mine(Half):\n    pass\n"],
    ids=["by its class", "by its module", "by a helper"],
)  # fmt: skip
def test_plugin_may_extend_a_strategy_of_the_package(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "strategies"
    folder.mkdir()
    (folder / "mine.py").write_text(f'"""mine: a strategy."""\n{body}')
    (folder / "_shared.py").write_text("from pefttools.strategies.lora import Lora\nclass Half(Lora):\n    pass\n")
    (folder / "lora.py").write_text("class Lora(object):\n    pass\n")
    monkeypatch.setenv("PEFTTOOLS_PLUGINS", str(tmp_path))
    monkeypatch.delitem(sys.modules, "pefttools.strategies.mine", raising=False)
    monkeypatch.delitem(sys.modules, "pefttools.strategies._shared", raising=False)
    monkeypatch.setattr(strategies_package, "__path__", list(strategies_package.__path__))
    assert strategies.get("mine").__name__ == "Mine"
    assert strategies.get("mine").name == "mine"
    assert strategies.get("lora").__module__ == "pefttools.strategies.lora"
    assert strategies.summaries()["mine"] == "a strategy."
    assert "_shared" not in strategies.names()
    assert [problem.partition(": ")[2][:11] for problem in plugin_problems()] == ["is ignored,"]


def test_missing_or_empty_plugin_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = command(
        ["list", "tasks"], PEFTTOOLS_PLUGINS=os.pathsep.join([str(tmp_path / "none"), str(tmp_path / "empty")])
    )
    assert found.returncode == 0
    first, second = found.stderr.decode().splitlines()
    assert first == f"warning: PEFTTOOLS_PLUGINS: {tmp_path / 'none'} is not a folder"
    assert second.startswith(f"warning: PEFTTOOLS_PLUGINS: {tmp_path / 'empty'} contains no plug-ins; put them into")
    assert "strategies/" in second
    assert all(name.encode() in found.stdout for name in tasks.names())


def test_an_interrupt_that_a_library_turns_into_another_error_is_one_line() -> None:
    code = """
import os, signal, time
from pefttools import __main__, cli

def main():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt as error:
        raise RuntimeError("half loaded") from error

cli.main = main
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to a process group")
@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0, 2.0, 4.0])
def test_interrupt_at_any_time_is_one_line(seconds: float, recipe_file: Path, tmp_path: Path) -> None:
    """Also while libraries are imported; a run that has started prints the command to resume it."""
    words = ["train", str(recipe_file), "train.epochs=5000", "--out", str(tmp_path / "out")]
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); from pefttools.__main__ import main; main()", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, (time.monotonic() - started, errors.decode()[-2000:])
    last = errors.decode().splitlines()[-1]
    assert last == "interrupted" or "; to continue, run `pefttools train" in last
    assert b"Traceback" not in errors
