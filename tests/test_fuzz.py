"""Damaged inputs, drawn by hypothesis: readers of data, recipes, overrides and run folders read or refuse each of them.

`benchmarks/fuzz.py` does the same with 10,000 inputs a reader, and with models.
"""

from __future__ import annotations

import importlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pefttools.recipe import recipes
from pefttools.training import run_rows

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SKIPPED = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.nested_given)
QUICK = settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=SKIPPED)
DATA = (
    "csv", "tsv", "json", "jsonl", "parquet", "parquet with checksums", "folders of save_to_disk", "lines", "CoNLL",
    "SQuAD", "chats", "csv in gzip", "csv in bzip2", "csv in xz", "csv in zstandard", "csv in zip", "parquet in gzip",
)  # fmt: skip
GOOD = ("read", "refused")


@pytest.fixture(scope="module")
def fuzzing() -> Iterator[Any]:
    """Name -> module of the benchmark."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(BENCHMARKS))
    yield lambda name: importlib.import_module(f"fuzzing.{name}")
    patch.undo()


@pytest.mark.parametrize("name", DATA)
def test_damaged_data_is_read_or_refused(name: str, fuzzing: Any, tmp_path: Path) -> None:
    reader = next(one for one in fuzzing("data_files").readers() if one.name == name)
    reader.prepare()

    @QUICK
    @given(st.integers(0, 2**32))
    def attempt(number: int) -> None:
        assert reader.attempt(number, tmp_path) in GOOD

    attempt()


@pytest.mark.parametrize("name", ["overrides", "recipe"])
def test_damaged_recipes_and_odd_overrides_are_read_or_refused(
    name: str, fuzzing: Any, tmp_path: Path, recipe_file: Path
) -> None:
    artifacts, readers = fuzzing("artifacts"), fuzzing("readers")
    reader = artifacts.Overrides("overrides", list, artifacts.of_recipe, "")
    if name == "recipe":
        reader = readers.Reader(
            "recipe of a test", lambda: [recipe_file.read_bytes()], artifacts.of_recipe, "recipe.yaml", keyed=True
        )

    @QUICK
    @given(st.integers(0, 2**32))
    def attempt(number: int) -> None:
        assert reader.attempt(number, tmp_path) in GOOD

    attempt()


@pytest.mark.parametrize("name", ["rows.parquet", "predictions.parquet"])
def test_damaged_rows_of_a_run_are_read_or_refused(name: str, fuzzing: Any, tmp_path: Path, finished_run: Path) -> None:
    read = run_rows.read_hashes if name == "rows.parquet" else run_rows.read_predictions
    content = (finished_run / name).read_bytes()
    reader = fuzzing("readers").Reader(f"{name} of a test", lambda: [content], read, name)

    @QUICK
    @given(st.integers(0, 2**32))
    def attempt(number: int) -> None:
        assert reader.attempt(number, tmp_path) in GOOD

    attempt()


def test_any_text_as_override_is_read_or_refused(fuzzing: Any) -> None:
    outcome_of = fuzzing("readers").outcome_of

    @QUICK
    @given(st.text(max_size=60), st.text(max_size=200))
    def attempt(key: str, value: str) -> None:
        assert outcome_of(lambda: recipes.load("spam-lora", [f"{key}={value}"]), "")[0] in GOOD

    attempt()


def test_an_input_of_the_same_number_is_the_same(fuzzing: Any, tmp_path: Path) -> None:
    reader = next(one for one in fuzzing("data_files").readers() if one.name == "csv")
    contents = []
    for _ in range(2):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        reader.attempt(7, tmp_path)
        contents.append((tmp_path / "rows.csv").read_bytes())
    assert contents[0] == contents[1]
    draw = random.Random(0)
    assert any(fuzzing("mutations").mutated_bytes(b"abc", draw) != b"abc" for _ in range(9))
