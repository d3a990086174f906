"""Rows that lie in a temporary file: the same rows, splits, messages and results as rows in memory."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import pytest
from conftest import make_rows, write_recipe, write_rows

from pefttools import cli
from pefttools.data import spool
from pefttools.data.rows import rows_digest
from pefttools.data.settings import DataSettings, FileSettings
from pefttools.data.splitting import load_splits
from pefttools.data.spool import Joined, Spool, Taken, join, spooled, take
from pefttools.errors import UserError
from pefttools.tasks.text_classification import TextClassification


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of more than 20 items lie in a file, in chunks of 8."""
    monkeypatch.setattr(spool, "IN_MEMORY", 20)
    monkeypatch.setattr(spool, "CHUNK", 8)
    monkeypatch.setattr(spool, "DECODED", 2)


def test_few_items_stay_a_list(small: None) -> None:
    assert isinstance(spooled(range(20)), list)
    assert isinstance(spooled(range(21)), Spool)


@pytest.mark.parametrize("number", [21, 24, 25, 100])
def test_items_are_those_added(small: None, number: int) -> None:
    items = [{"text": f"row {i}", "label": i} for i in range(number)]
    found = spooled(iter(items))
    assert isinstance(found, Spool)
    assert len(found) == number
    assert [*found] == items
    assert [found[i] for i in (0, 9, -1, number - 1, 3)] == [items[i] for i in (0, 9, -1, number - 1, 3)]
    assert found[5:19:3] == items[5:19:3]
    assert found == items
    with pytest.raises(IndexError):
        found[number]


def test_views_are_like_lists(small: None) -> None:
    items = [*range(50)]
    found = spooled(items)
    chosen = numpy.array([3, 30, 31, 49])
    few = take(found, chosen)
    views: list[tuple[Sequence[int], list[int]]] = [
        (few, [3, 30, 31, 49]),
        (take(few, numpy.array([1, 3])), [30, 49]),
        (join(few, [7]), [3, 30, 31, 49, 7]),
    ]
    for view, expected in views:
        assert [*view] == expected
        assert view[:] == expected
        assert view[-1] == expected[-1]
        assert len(view) == len(expected)
    assert isinstance(few, Taken)
    assert isinstance(join(few, [7]), Joined)
    assert take(items, chosen) == [3, 30, 31, 49]
    assert join([1], [2]) == [1, 2]


def test_a_forked_process_reads_the_same(small: None) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("this platform has no fork")
    found = spooled(range(100))
    child = os.fork()
    if child == 0:
        os._exit(0 if [*found] == [*range(100)] else 1)
    assert [*found] == [*range(100)]
    assert os.waitpid(child, 0)[1] == 0


def test_digest_is_that_of_the_json_of_all_rows() -> None:
    parts = ([{"text": "ä", "label": "b"}, {"text": "c"}], [], [{"text": "d"}])
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    assert rows_digest(*parts) == hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)


SETTINGS = [
    {},
    {"deduplicate": "none", "train_rows": 30},
    {"deduplicate": "all", "min_class_rows": 20, "split_seed": 3},
    {"test": "test.csv"},
    {"test": "test.csv", "validation": "test.csv", "deduplicate": "none"},
]


@pytest.mark.parametrize("values", SETTINGS, ids=str)
def test_splits_are_those_of_rows_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = make_rows(90)
    rows += [{**rows[3], "label": rows[4]["label"]}, *rows[:5]]  # a contradiction, and repeats
    write(Path("rows.csv"), rows)
    write(Path("test.csv"), rows[10:40] + make_rows(8, seed=5))
    settings = DataSettings.model_validate({"train": "rows.csv", **values})
    before = load_splits(settings, TextClassification())
    monkeypatch.setattr(spool, "IN_MEMORY", 5)
    monkeypatch.setattr(spool, "CHUNK", 4)
    after = load_splits(settings, TextClassification())
    assert isinstance(before.train, list)
    assert not isinstance(after.train, list)
    assert after == before
    assert after.digest == before.digest
    assert all([*after.ids_of(name)] == [*before.ids_of(name)] for name in before.named())


def test_the_first_invalid_rows_are_named_in_their_order(small: None, tmp_path: Path) -> None:
    rows = make_rows(60)
    rows[50]["label"] = rows[30]["text"] = rows[40]["label"] = rows[55]["label"] = ""
    write(tmp_path / "rows.csv", rows)
    settings = DataSettings(train=FileSettings(source=str(tmp_path / "rows.csv")))
    with pytest.raises(UserError, match=r"row 31 has no text; row 41 has no label; row 51 has no label \(and 1 more"):
        load_splits(settings, TextClassification())


@pytest.mark.slow
def test_a_run_on_spooled_rows_equals_one_on_rows_in_memory(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", make_rows(120))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        bases("bert"),
        data,
        task={"name": "text_classification", "max_length": 32},
        train={"epochs": 1, "batch_size": 8, "learning_rate": 0.003},
        augmentations={"token_mask": {}},
    )
    found = {}
    for name in ("memory", "file"):
        if name == "file":
            monkeypatch.setattr(spool, "IN_MEMORY", 10)
            monkeypatch.setattr(spool, "CHUNK", 8)
        monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / f"cache-{name}"))
        assert cli.run(["train", str(recipe), "--out", str(tmp_path / name)]) == 0
        result = json.loads((tmp_path / name / "result.json").read_text())
        found[name] = [result[key] for key in ("data", "before", "validation", "test")]
        assert cli.run(["export", str(tmp_path / name), "--to", "merged"]) == 0
    assert found["memory"] == found["file"]
