"""The wheel has everything that an installed pefttools reads, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The paths in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip(f"no package index: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    return {*zipfile.ZipFile(file).namelist()}


def test_every_file_of_the_package_is_in_it(names: set[str]) -> None:
    files = [file for file in (ROOT / "pefttools").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert files
    assert not {file.relative_to(ROOT).as_posix() for file in files} - names


def test_recipes_and_suites_are_in_it(names: set[str]) -> None:
    for folder, inside in (("recipes", "pefttools/recipes"), ("benchmarks/suites", "pefttools/suites")):
        files = [file for file in (ROOT / folder).rglob("*") if file.is_file()]
        assert files
        assert not {f"{inside}/{file.relative_to(ROOT / folder).as_posix()}" for file in files} - names


def test_what_commands_read_is_in_it(names: set[str]) -> None:
    expected = {"pefttools/py.typed", "pefttools/compatibility/support.json", "pefttools/bench/priors.json"}
    assert not expected - names
    assert {"pefttools/analysis/run.html.jinja", "pefttools/bench/report.html.jinja"} <= names


def test_nothing_else_is_in_it(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pefttools"}
    assert not [name for name in names if "/tests/" in name or "results" in name.split("/") or "__pycache__" in name]
