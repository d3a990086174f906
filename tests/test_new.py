"""`new` guesses what a file of rows is for, and writes a recipe that can be trained."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pefttools import cli
from pefttools.data.splitting import load_splits
from pefttools.errors import UserError
from pefttools.planning.guessing import guess
from pefttools.recipe import recipes

DRAW = random.Random(0)
WORDS = ("my", "printer", "does", "not", "start", "since", "the", "update", "of", "its", "driver", "light", "red")


def text(number: int, words: int = 8) -> str:
    return " ".join([*DRAW.choices(WORDS, k=words), str(number)])


def rows(number: int = 60, **columns: Any) -> list[dict[str, Any]]:
    """Rows from functions of their number."""
    return [{name: value(i) for name, value in columns.items()} for i in range(number)]


CASES: Mapping[str, tuple[Sequence[dict[str, Any]], str, dict[str, str], dict[str, Any]]] = {
    "tickets": (
        rows(Subject=text, Team=lambda i: "ABC"[i % 3], id=lambda i: f"T{i}"),
        "text_classification", {"text": "Subject", "label": "Team"}, {},
    ),
    "a label that is a number": (
        rows(text=text, label=lambda i: i % 2), "text_classification", {}, {},
    ),
    "stars": (
        rows(review=text, label=lambda i: str(1 + i % 5)), "text_classification", {"text": "review"}, {},
    ),
    "a score": (
        rows(sentence1=text, sentence2=text, label=lambda i: i / 7),
        "regression", {"text": "sentence1", "text_pair": "sentence2"}, {},
    ),
    "entailment": (
        rows(premise=text, hypothesis=text, label=lambda i: ("yes", "no", "maybe")[i % 3]),
        "text_classification", {"text": "premise", "text_pair": "hypothesis"}, {},
    ),
    "several labels": (
        rows(text=text, labels=lambda i: ["a"] * (i % 2) + ["b"] * (i % 3)),
        "text_classification", {"label": "labels"}, {"multi_label": True},
    ),
    "labels written into cells": (
        rows(text=text, labels=lambda i: str(["a"] * (i % 2) + ["b"])),
        "text_classification", {"label": "labels"}, {"multi_label": True},
    ),
    "entities": (
        rows(tokens=lambda i: ["Ann", "saw", f"B{i}"], ner_tags=lambda i: ["B-PER", "O", "O"]),
        "token_classification", {"tags": "ner_tags"}, {},
    ),
    "ten rows": (
        rows(10, message=text, team=lambda i: "ABC"[i % 3]),
        "text_classification", {"text": "message", "label": "team"}, {},
    ),
    "a few instructions": (
        rows(instruction=lambda i: f"say {'abcd'[i % 4]}", output=text), "causal_lm", {}, {},
    ),
    "marked entities": (
        rows(text=lambda i: f"<e1>Ann</e1> saw <e2>B{i}</e2>", relation=lambda i: "ab"[i % 2]),
        "relation_extraction", {"label": "relation"}, {},
    ),
    "answers in texts": (
        rows(question=text, context=text, answers=lambda i: []), "question_answering", {}, {},
    ),
    "choices": (
        rows(question=text, choices=lambda i: ["a", "b"], answer=lambda i: i % 2),
        "multiple_choice", {"text": "question", "label": "answer"}, {},
    ),
    "chats": (
        rows(messages=lambda i: [{"role": "user", "content": text(i)}, {"role": "assistant", "content": "yes"}]),
        "causal_lm", {}, {},
    ),
    "questions": (
        rows(question=text, answer=lambda i: text(i, 20)),
        "causal_lm", {"prompt": "question", "completion": "answer"}, {},
    ),
    "instructions": (
        rows(instruction=text, input=lambda i: "", output=lambda i: text(i, 12)), "causal_lm", {}, {},
    ),
    "plain text": (rows(body=text), "causal_lm", {"text": "body"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_task_and_its_columns_are_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, task, columns, settings = CASES[name]
    monkeypatch.chdir(tmp_path)
    Path("my-rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), "utf-8")
    assert cli.run(["new", "my-rows.jsonl"]) == 0
    written = yaml.safe_load(Path("my-rows.yaml").read_text("utf-8"))
    assert written["task"]["name"] == task
    assert written["data"].get("columns", {}) == columns
    assert {key: written["task"].get(key) for key in settings} == settings
    recipe = recipes.load("my-rows.yaml").recipe
    splits = load_splits(recipe.data, recipe.task)  # every row can be read
    assert sum(map(len, splits.named().values())) >= len(made) / 2


def test_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    made = rows(300, text=lambda i: f"打印机坏了 {i}", label=lambda i: "b" if i % 60 == 0 else "a")
    Path("rows.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in made), "utf-8")
    assert cli.run(["new", "rows.csv", "--out", "mine.yaml"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "'label' has 2 classes in 300 rows" in told
    assert "class 'b' is rare (5 rows)" in told
    assert "100% of the rows have Chinese, Japanese or Korean text" in told
    assert "pefttools train mine.yaml" in told
    assert "max_length: 32" in Path("mine.yaml").read_text()
    assert cli.run(["new", "rows.csv", "--out", "mine.yaml"]) == 2
    assert "exists already" in capsys.readouterr().err


NAMES = [
    "text",
    "label",
    "labels",
    "tags",
    "tokens",
    "question",
    "answer",
    "context",
    "choices",
    "source",
    "target",
    "x",
]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=True), st.text(max_size=9),
    st.lists(st.text(max_size=3), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5), min_size=1, max_size=9))
def test_any_rows_are_guessed_or_refused(made: list[dict[str, Any]]) -> None:
    with suppress(UserError):
        assert guess(made, "rows").settings.get("max_length", 32) >= 32


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("a text of some words,fruit\nanother text here,tool\nand one more text,fruit\n" * 9)
    assert cli.run(["new", "rows.csv"]) == 2
    assert "looks like a row, not like column names" in (told := " ".join(capsys.readouterr().err.split()))
    assert "add --header with 2 names" in told
    assert cli.run(["new", "rows.csv", "--header", "text", "label"]) == 0
    assert recipes.load("rows.yaml").recipe.data.train.header == ("text", "label")
    Path("empty.csv").write_text("text,label\n")
    assert cli.run(["new", "empty.csv"]) == 2
    assert cli.run(["new", "none.csv"]) == 2
    Path("pairs.jsonl").write_text(json.dumps({"article": "a b c", "summary": "a"}) + "\n")
    assert cli.run(["new", "pairs.jsonl"]) == 2
    assert "--base: is required, because the rows are for seq2seq" in capsys.readouterr().err
    assert cli.run(["new", "pairs.jsonl", "--base", "hf:google-t5/t5-small"]) == 0
    with pytest.raises(UserError, match="preferences"):
        guess([{"prompt": "a", "chosen": "b", "rejected": "c"}], "rows")
    with pytest.raises(UserError, match="no task is known for the columns price"):
        guess([{"price": i / 3} for i in range(50)], "rows")


def test_encoding_and_sheet_are_in_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = CASES["tickets"][0]
    names = list(made[0])
    lines = "\n".join(",".join(str(row[name]).replace(",", " ") for name in names) + ",Привет" for row in made)
    Path("rows.csv").write_bytes(f"{','.join(names)},other\n{lines}\n".encode("cp1251"))
    assert cli.run(["new", "rows.csv"]) == 2
    assert "add --encoding" in capsys.readouterr().err
    assert cli.run(["new", "rows.csv", "--encoding", "cp1251"]) == 0
    assert yaml.safe_load(Path("rows.yaml").read_text("utf-8"))["data"]["train"]["encoding"] == "cp1251"
    book = openpyxl.Workbook()
    book.create_sheet("rows").append(names)
    for row in made:
        book["rows"].append([str(row[name]) for name in names])
    book.worksheets[0].append(["nothing"])
    book.save("book.xlsx")
    assert cli.run(["new", "book.xlsx", "--sheet", "rows"]) == 0
    assert yaml.safe_load(Path("book.yaml").read_text("utf-8"))["data"]["train"]["sheet"] == "rows"
