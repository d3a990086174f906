"""Rows in the notations of other programs train and predict like the same rows in the usual notation."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from conftest import KEYS, WORDS, losses, make_rows, train_tiny, write_csv, write_recipe, write_rows

from pefttools import cli
from pefttools.errors import UserError

pytestmark = pytest.mark.slow

Rows = list[dict[str, Any]]


def two_names(number: int) -> Rows:
    """Texts with one or two keywords, labelled with both."""
    draw = random.Random(0)
    rows: Rows = []
    for _ in range(number):
        names = draw.sample(sorted(KEYS), draw.randint(1, 2))
        words = [*draw.choices(WORDS, k=4), *(draw.choice(KEYS[name]) for name in names)]
        rows.append({"text": " ".join(words), "label": sorted(names)})
    return rows


def questions(number: int) -> Rows:
    """Contexts that contain their answer twice; the second occurrence is the answer."""
    draw = random.Random(0)
    rows: Rows = []
    for _ in range(number):
        tool = draw.choice(KEYS["tool"])
        context = " ".join([*draw.choices(WORDS, k=2), tool, *draw.choices(WORDS, k=6), "apple", tool])
        rows.append({"question": "apple", "context": context, "answer": tool, "answer_start": context.rindex(tool)})
    return rows


def tagged(number: int) -> Rows:
    rows = make_rows(number, labels=("tool",))
    tools = {*KEYS["tool"]}
    return [
        {"tokens": words, "tags": ["B-TOOL" if word in tools else "O" for word in words]}
        for words in (row["text"].split() for row in rows)
    ]


def printed(rows: Rows, path: Path) -> Path:
    """A csv file with lists written by `str`."""
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: str(value) for name, value in row.items()} for row in rows)
    return path.with_suffix(".csv")


def squad(rows: Rows, path: Path) -> Path:
    nested = [
        {"question": r["question"], "context": r["context"],
         "answers": {"text": [r["answer"]], "answer_start": [r["answer_start"]]}}
        for r in rows
    ]  # fmt: skip
    return write_rows(path.with_suffix(".jsonl"), nested)


def flat(rows: Rows, path: Path) -> Path:
    return printed(rows, path)


def tag_first(rows: Rows, path: Path) -> Path:
    lines = ("".join(f"{tag}\t{token}\n" for token, tag in zip(r["tokens"], r["tags"], strict=True)) for r in rows)
    path.with_suffix(".conll").write_text("\n".join(lines), "utf-8")
    return path.with_suffix(".conll")


def plain(rows: Rows, path: Path) -> Path:
    return write_rows(path.with_suffix(".jsonl"), rows)


CASES: dict[str, tuple[Rows, dict[str, Any], tuple[Any, Any], dict[str, Any], Any]] = {
    "printed lists of labels": (
        two_names(160), {"name": "text_classification", "multi_label": True, "max_length": 32}, (plain, printed),
        {"text": "word1 apple word2 saw"}, ["fruit", "tool"],
    ),
    "flat answers": (
        questions(160), {"name": "question_answering", "max_length": 32, "stride": 4}, (squad, flat),
        {"question": "apple", "context": "word1 saw word3 word2 word9 word8 apple saw"}, "saw",
    ),
    "tags before tokens": (
        tagged(160), {"name": "token_classification", "max_length": 32}, (plain, tag_first),
        {"text": "word1 saw word2"}, ["O", "B-TOOL", "O"],
    ),
    "printed lists of tokens": (
        tagged(160), {"name": "token_classification", "max_length": 32}, (plain, printed),
        {"text": "word1 saw word2"}, ["O", "B-TOOL", "O"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_other_notations_give_the_same_run_and_predictions(
    case: str, bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, task, writers, unlabeled, expected = CASES[case]
    train = {"epochs": 6, "learning_rate": 0.003, "log_every": 1}
    runs = []
    for number, writer in enumerate(writers):
        file = writer(rows, tmp_path / f"rows{number}")
        name = write_recipe(tmp_path / f"{number}.yaml", bases("bert"), file, task=task, strategy="full", train=train)
        run, result = train_tiny(name, tmp_path / f"run{number}")
        runs.append((result["data"]["digest"], losses(run), result["test"]))
    assert runs[0] == runs[1]
    capsys.readouterr()
    file = write_rows(tmp_path / "unlabeled.jsonl", [unlabeled])
    assert cli.run(["predict", str(tmp_path / "run1"), str(file)]) == 0
    prediction = json.loads(capsys.readouterr().out)
    assert prediction["prediction"] == expected


def test_row_ids_of_several_files_have_the_file_name(recipe_file: Path, tmp_path: Path) -> None:
    rows = make_rows(120)
    files = [write_csv(tmp_path / "a.csv", rows[:60]), write_csv(tmp_path / "b.csv", rows[60:])]
    override = f"data.train=[{files[0]}, {files[1]}]"
    run, _ = train_tiny(recipe_file, tmp_path / "run", override, "train.epochs=1")
    found = pyarrow.parquet.read_table(run / "predictions.parquet").to_pylist()
    named = {f"{name}.csv:{n}": row["text"] for name, part in (("a", rows[:60]), ("b", rows[60:]))
             for n, row in enumerate(part, 1)}  # fmt: skip
    assert {row["id"].partition(":")[0] for row in found} == {"a.csv", "b.csv"}
    assert all(named[row["id"]] == row["text"] for row in found)
    (tmp_path / "more").mkdir()
    write_csv(tmp_path / "more" / "b.csv", [rows[0], {"text": "", "label": "tool"}])
    with pytest.raises(UserError, match=r"row more/b.csv:2 has no text"):
        train_tiny(recipe_file, tmp_path / "bad", f"{override[:-1]}, {tmp_path / 'more' / 'b.csv'}]")


def test_last_rows_keep_their_row_numbers(recipe_file: Path, tmp_path: Path) -> None:
    rows = make_rows(120)
    write_csv(tmp_path / "a.csv", [*rows, {"text": "", "label": "tool"}])
    overrides = (f"data.train.source={tmp_path / 'a.csv'}", "data.train.last_rows=60", "train.epochs=1")
    with pytest.raises(UserError, match=r"row 121 has no text"):
        train_tiny(recipe_file, tmp_path / "bad", *overrides)
    run, result = train_tiny(recipe_file, tmp_path / "run", *overrides, "data.invalid_rows=skip")
    assert result["data"]["invalid"]["train"] == {"has no text": ["121"]}
    found = pyarrow.parquet.read_table(run / "predictions.parquet").to_pylist()
    assert all(rows[int(row["id"]) - 1]["text"] == row["text"] for row in found)
