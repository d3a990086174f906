"""Rows: equal from every file format, and divided into batches within the token budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import losses, make_rows, train_tiny, without_clock, write_csv, write_rows
from hypothesis import given
from hypothesis import strategies as st

from pefttools.data.batching import batches, steps
from pefttools.data.reading import read
from pefttools.data.settings import DataSettings, FileSettings
from pefttools.data.splitting import load_splits
from pefttools.reporter import SILENT
from pefttools.tasks.text_classification import TextClassification

TASK = TextClassification()


def formats(folder: Path, rows: list[dict[str, str]]) -> dict[str, list[str]]:
    """The same rows in four files, one with renamed columns: file -> overrides that name them."""
    import pyarrow
    import pyarrow.parquet

    write_csv(folder / "rows.csv", [{"Satz, roh": r["text"], "Klasse": r["label"]} for r in rows])
    write_csv(folder / "rows.tsv", rows, "\t")
    write_rows(folder / "rows.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    renamed = ["data.columns.text=Satz, roh", "data.columns.label=Klasse"]
    return {
        str(folder / f"rows.{ending}"): (renamed if ending == "csv" else [])
        for ending in ("csv", "tsv", "jsonl", "parquet")
    }


@pytest.mark.slow
def test_every_format_gives_the_same_rows_and_the_same_score(recipe_file: Path, tmp_path: Path) -> None:
    rows = make_rows(200, seed=3)
    results = []
    for number, (file, overrides) in enumerate(formats(tmp_path, rows).items()):
        run, result = train_tiny(
            recipe_file, tmp_path / f"run{number}", f"data.train={file}", *overrides, "train.epochs=2"
        )
        results.append((result["data"]["digest"], result["test"], losses(run)))
    assert len(results) == 4
    assert all(other == results[0] for other in results[1:])


def test_labels_of_any_type_are_read_as_the_same_text(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = [f"text {i}" for i in range(40)]
    write_csv(tmp_path / "a.csv", [{"text": t, "label": str(i % 2)} for i, t in enumerate(texts)])
    (tmp_path / "b.json").write_text(json.dumps([{"text": t, "label": i % 2} for i, t in enumerate(texts)]))
    pyarrow.parquet.write_table(
        pyarrow.table({"text": texts, "label": [float(i % 2) for i in range(40)]}), tmp_path / "c.parquet"
    )
    digests = {load_splits(DataSettings(train=FileSettings(source=str(f))), TASK).digest for f in tmp_path.iterdir()}
    assert len(digests) == 1


def test_null_like_text_stays_text(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"text": "NA", "label": "null"}, {"text": 'a "quoted", word', "label": "1"}])
    assert read(FileSettings(source=str(path)), "data.train", SILENT) == [
        {"text": "NA", "label": "null"},
        {"text": 'a "quoted", word', "label": "1"},
    ]


def test_rows_are_read_from_lines_folders_and_csv_variants(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("A:x one\nB:y two\nA:x three\n")
    lines = FileSettings(
        source=str(tmp_path / "plain.txt"), format="lines", pattern=r"(?P<label>\w):\w (?P<text>.+)", last_rows=2
    )
    assert read(lines, "k", SILENT) == [{"label": "B", "text": "two"}, {"label": "A", "text": "three"}]
    for name in ("fruit/1.txt", "fruit/2.txt", "tool/1.txt"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(f"about {name}")
    folders = read(FileSettings(source=str(tmp_path / "texts")), "k", SILENT)
    assert [(r["label"], r["id"]) for r in folders] == [
        ("fruit", "fruit/1.txt"),
        ("fruit", "fruit/2.txt"),
        ("tool", "tool/1.txt"),
    ]
    (tmp_path / "bare.csv").write_text('a "b,1\n')
    bare = FileSettings(source=str(tmp_path / "bare.csv"), header=("text", "label"), quotes=False)
    assert read(bare, "k", SILENT) == [{"text": 'a "b', "label": "1"}]
    (tmp_path / "old.csv").write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    assert read(FileSettings(source=str(tmp_path / "old.csv"), encoding="latin-1"), "k", SILENT)[0]["text"] == "café"
    (tmp_path / "bom.csv").write_bytes("text,label\na,1\n".encode("utf-8-sig"))
    assert list(read(FileSettings(source=str(tmp_path / "bom.csv")), "k", SILENT)[0]) == ["text", "label"]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200), st.integers(1, 16), st.integers(0, 5))
def test_steps_contain_each_row_once(lengths: list[int], batch_size: int, epoch: int) -> None:
    made = steps(lengths, batch_size, 0, epoch)
    assert sorted(row for step in made for row in step) == list(range(len(lengths)))
    assert all(1 <= len(step) <= batch_size for step in made)
    assert [*made] == [*steps(lengths, batch_size, 0, epoch)]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=100), st.integers(1, 16), st.integers(1, 100), st.integers(1, 8)
)
def test_batches_fit_their_budget(lengths: list[int], max_rows: int, max_tokens: int, multiple: int) -> None:
    made = list(batches(range(len(lengths)), lengths, max_rows, max_tokens, multiple))
    assert sorted(row for batch in made for row in batch) == list(range(len(lengths)))
    for batch in made:
        width = -(-max(lengths[row] for row in batch) // multiple) * multiple
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * width <= max_tokens


@pytest.mark.slow
def test_rows_are_tokenized_once(
    recipe_file: Path, tmp_path: Path, bases: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / "cache"))
    calls = []
    plain = TextClassification.encode

    def counted(self, rows, tokenizer):
        calls.append(len(rows))
        return plain(self, rows, tokenizer)

    monkeypatch.setattr(TextClassification, "encode", counted)
    first = train_tiny(recipe_file, tmp_path / "a", "train.epochs=1")[1]
    assert sum(calls) == 600
    second = train_tiny(recipe_file, tmp_path / "b", "train.epochs=1")[1]
    assert len(calls) == 3
    assert without_clock(first) == without_clock(second)
    train_tiny(recipe_file, tmp_path / "c", "train.epochs=1", "task.max_length=8")
    assert len(calls) == 6


def test_truncated_rows_are_marked(bases: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bases("bert"))
    task = TextClassification(labels=("a", "b"), max_length=6)
    rows = [{"text": "word1 word2", "label": "a"}, {"text": "word1 word2 word3 word4 word5", "label": "b"}]
    encoded = task.encode(rows, tokenizer)
    assert encoded["cut"] == [False, True]
    assert [len(ids) for ids in encoded["input_ids"]] == [4, 6]
    pair = TextClassification(labels=("a", "b"), pair=True).encode(
        [{"text": "word1", "text_pair": "word2", "label": "a"}], tokenizer
    )
    assert pair["token_type_ids"] == [[0, 0, 0, 1, 1]]
