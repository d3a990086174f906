"""json, parquet, arrow and compressed files, lists and folders: read, or refused in one line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from conftest import Listener, make_rows, train_tiny, write_csv, write_rows

from pefttools.data.reading import read
from pefttools.data.settings import FileSettings
from pefttools.data.splitting import load_splits
from pefttools.errors import UserError
from pefttools.inference.unlabeled import rows_to_predict
from pefttools.recipe import recipes

ROWS = make_rows(60)
NAMES = sorted({row["label"] for row in ROWS})


def rows_of(
    source: Any, listener: Listener | None = None, key: str = "data.train", **settings: Any
) -> list[dict[str, Any]]:
    source = source if isinstance(source, list) else str(source)
    return read(FileSettings(source=source, **settings), key, listener or Listener())


def write_file(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(rows: list[dict[str, Any]], indent: int | None = None) -> str:
    return "\n".join(json.dumps(row, indent=indent) for row in rows)


def named_classes(tags: bool = False) -> datasets.Dataset:
    label = datasets.ClassLabel(names=NAMES)
    features: dict[str, Any] = {"text": datasets.Value("string"), "label": label}
    rows: list[dict[str, Any]] = [{**row, "label": NAMES.index(row["label"])} for row in ROWS]
    if tags:
        tag = datasets.ClassLabel(names=["O", "B-X"])
        features |= {"tags": datasets.List(tag), "in": {"a": tag, "b": datasets.List({"c": tag})}}
        features |= {"deep": datasets.List(datasets.List(tag))}
        rows = [{**row, "tags": [0, 1], "in": {"a": 1, "b": [{"c": 0}]}, "deep": [[1], []]} for row in rows]
        rows[1] |= {"label": None, "tags": [-1], "in": None, "deep": None}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


JSON: dict[str, Callable[[], str]] = {
    "a.json": lambda: json.dumps(ROWS),
    "lines.json": lambda: lines(ROWS),
    "pretty.json": lambda: lines(ROWS, indent=2),
    "list.jsonl": lambda: json.dumps(ROWS, indent=1),
    "one_line.jsonl": lambda: json.dumps(ROWS),
    "pretty.jsonl": lambda: lines(ROWS, indent=2),
    "marked.jsonl": lambda: "\ufeff" + lines(ROWS),
    "columns.json": lambda: json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "pandas.json": lambda: json.dumps({name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]}),
    "index.json": lambda: json.dumps({str(i): row for i, row in enumerate(ROWS)}),
    "split.json": lambda: json.dumps({"columns": [*ROWS[0]], "data": [[*row.values()] for row in ROWS]}),
    "data.json": lambda: json.dumps({"version": 1, "data": ROWS}),
    "splits.json": lambda: json.dumps({"train": ROWS, "test": ROWS[:3]}),
}


@pytest.mark.parametrize("name", JSON)
def test_every_layout_of_json_is_read(tmp_path: Path, name: str) -> None:
    path = write_file(tmp_path / name, JSON[name]())
    assert rows_of(path) == ROWS
    if name == "splits.json":
        assert rows_of(path, key="data.test") == ROWS[:3]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"a": 1}', "not JSON: Expecting ',' delimiter: line 1 column 10"),
        ("a.json", '{"a": [1, 2], "b": [1]}', "an object of columns that differ in length: 'a' 2, 'b' 1"),
        ("a.json", '[{"a": 1}, 2]', "item 2 of its list is int"),
        ("a.json", '{"a": {"b": [1]}}', "found an object with the keys 'a'"),
        ("a.json", '{"columns": ["a"], "data": [[1, 2]]}', "item 1 of its `data`"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.jsonl", '{"a": 1}\n{"a"', "line 2: not JSON"),
        ("a.jsonl", '{"a"\n{"a": 1}', "line 1: not JSON"),
        ("a.jsonl", '{"a": 1}\n\n[1]\n2\n', "line 3: needs one JSON object per line, got list"),
        ("a.json", "{}", "found an object"),
    ],
)
def test_json_without_rows_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        rows_of(write_file(tmp_path / name, text))
    assert message in str(caught.value)


def compressed(folder: Path, content: bytes) -> list[Path]:
    with pyarrow.output_stream(str(folder / "a.csv.zst"), compression="zstd") as stream:
        stream.write(content)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.csv", content)
        archive.writestr("__MACOSX/._rows.csv", b"x")
    makers = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    made = [write_file(folder / f"a.csv.{ending}", make(content)) for ending, make in makers.items()]
    return [*made, folder / "a.csv.zst", folder / "a.zip"]


def test_compressed_files_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    content = write_csv(tmp_path / "a.csv", ROWS).read_bytes()
    for path in compressed(tmp_path, content):
        assert rows_of(path) == ROWS, path.name
        whole = path.read_bytes()
        for damaged in (whole[:-9], whole[: len(whole) // 2] + b"\0\0\0\0" + whole[len(whole) // 2 + 4 :]):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=path.name):
                rows_of(path)
    assert rows_of(write_file(tmp_path / "b.jsonl.gz", gzip.compress(lines(ROWS).encode()))) == ROWS
    assert rows_of(write_file(tmp_path / "c.csv", gzip.compress(content))) == ROWS
    big = write_csv(tmp_path / "big.csv", ROWS * 300).read_bytes()
    with pytest.raises(UserError, match=r"after line \d+, the file is truncated"):
        rows_of(write_file(tmp_path / "big.csv.gz", gzip.compress(big)[:-500]))
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", content)
        archive.writestr("b.csv", content)
    with pytest.raises(UserError, match=r"must contain one file, but this one contains 2 \(a\.csv, b\.csv\)"):
        rows_of(tmp_path / "two.zip")
    with pytest.raises(UserError, match="cannot be read as a workbook"):
        rows_of(write_file(tmp_path / "a.xlsx", b"PK"))


def test_class_ids_are_read_as_names(tmp_path: Path) -> None:
    table = named_classes(tags=True)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved", num_shards=2)
    for path in (tmp_path / "a.parquet", tmp_path / "saved", tmp_path / "saved" / "data-00000-of-00002.arrow"):
        rows = rows_of(path)
        first = {"tags": ["O", "B-X"], "in": {"a": "B-X", "b": [{"c": "O"}]}, "deep": [["B-X"], []]}
        assert rows[0] == {**ROWS[0], **first}
        assert rows[1] == {**ROWS[1], "label": None, "tags": [None], "in": None, "deep": None}
        assert [row["label"] for row in rows[2:]] == [row["label"] for row in ROWS[2 : len(rows)]]
    nameless = {"info": {"features": {"label": {"_type": "ClassLabel", "names": []}}}}
    strange = pyarrow.table({"label": [NAMES.index(ROWS[0]["label"])]})
    strange = strange.replace_schema_metadata({"huggingface": json.dumps(nameless)})
    pyarrow.parquet.write_table(strange, tmp_path / "b.parquet")
    assert rows_of(tmp_path / "b.parquet") == [{"label": NAMES.index(ROWS[0]["label"])}]
    pyarrow.parquet.write_table(strange.replace_schema_metadata({"huggingface": "{"}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="the metadata that names its classes cannot be read"):
        rows_of(tmp_path / "c.parquet")


@pytest.mark.slow
def test_run_has_the_class_names_of_its_data(recipe_file: Path, tmp_path: Path) -> None:
    named_classes().save_to_disk(tmp_path / "saved")
    run, _ = train_tiny(recipe_file, tmp_path / "run", f"data.train={tmp_path / 'saved'}", "train.epochs=1")
    assert list(recipes.load(str(run / "recipe.yaml")).recipe.task.labels) == NAMES  # type: ignore[attr-defined]


def test_damaged_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    named_classes().to_parquet(path, batch_size=20)
    whole = path.read_bytes()
    page = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    position = page.dictionary_page_offset or page.data_page_offset
    for content, message in (
        (
            whole[:position] + b"\xff" * 60 + whole[position + 60 :],
            "its row group 2 of 3, which begins at row 21, is damaged",
        ),
        (whole[:-40], "not a parquet file, or a damaged one"),
        (b"", "not a parquet file, or a damaged one"),
    ):
        with pytest.raises(UserError, match=message):
            rows_of(write_file(path, content))
    with pytest.raises(UserError, match="is a parquet file, not text; set `format: parquet`"):
        rows_of(write_file(tmp_path / "a.csv", whole))
    named_classes().save_to_disk(tmp_path / "saved")
    file = tmp_path / "saved" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"arrow: is not an Arrow file, or is truncated"):
        rows_of(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"is truncated|a damaged one"):
        rows_of(tmp_path / "saved")


def test_split_of_a_saved_dataset_follows_the_setting(tmp_path: Path) -> None:
    table = named_classes()
    datasets.DatasetDict({"train": table, "dev": table.select(range(9))}).save_to_disk(tmp_path / "saved")
    listener = Listener()
    assert len(rows_of(tmp_path / "saved", listener)) == 60
    assert len(rows_of(tmp_path / "saved", listener, "data.validation")) == 9
    assert [note.partition(": ")[2] for note in listener.notes] == [
        "read its split 'train', not dev",
        "read its split 'dev', not train",
    ]
    with pytest.raises(UserError, match="has no split 'test'; set `split` to one of train, dev"):
        rows_of(tmp_path / "saved", key="data.test")


def parts(folder: Path) -> list[str]:
    folder.mkdir()
    return [
        str(write_csv(folder / f"{name}.csv", ROWS[start : start + 20]))
        for start, name in ((0, "a"), (20, "b"), (40, "c"))
    ]


def test_several_files_are_read_as_one_table(tmp_path: Path) -> None:
    files = parts(tmp_path / "parts")
    listener = Listener()
    assert rows_of(files, listener) == ROWS
    assert not listener.notes
    for source in (tmp_path / "parts", tmp_path / "parts" / "*.csv", tmp_path / "**" / "?.csv"):
        assert rows_of(source, listener) == ROWS
        assert listener.notes[-1] == f"{source}: 3 files, a.csv … c.csv"
    assert rows_of(tmp_path / "parts" / "[ab].csv") == ROWS[:40]
    assert rows_of(files, last_rows=3) == ROWS[-3:]
    write_rows(tmp_path / "d.jsonl", [{"txt": "x", "label": "y"}])
    assert len(rows_of([files[0], str(tmp_path / "d.jsonl")], listener)) == 21
    assert listener.warnings == [f"{tmp_path}/d.jsonl has the columns txt, label, but {files[0]} has text, label"]
    with pytest.raises(UserError, match=r"\*\.tsv: no file matches this pattern"):
        rows_of(tmp_path / "*.tsv")
    with pytest.raises(UserError, match=r"z.csv: there is no such file"):
        rows_of([files[0], str(tmp_path / "parts" / "z.csv")])


def test_folder_of_parts_is_read_as_one_table(tmp_path: Path) -> None:
    named_classes().to_parquet(tmp_path / "train-00000-of-00002.parquet")
    named_classes().to_parquet(tmp_path / "train-00001-of-00002.parquet")
    assert rows_of(tmp_path) == ROWS * 2
    named_classes().select(range(5)).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    write_file(tmp_path / "README.md", "about")
    assert (rows_of(tmp_path), rows_of(tmp_path, key="data.test")) == (ROWS * 2, ROWS[:5])
    write_csv(tmp_path / "more.csv", ROWS)
    with pytest.raises(UserError, match=r"and more\.csv, which belongs to none of them"):
        rows_of(tmp_path)
    inner = tmp_path / "mixed"
    inner.mkdir()
    write_rows(inner / "a.jsonl", ROWS)
    write_csv(inner / "b.csv", ROWS)
    with pytest.raises(UserError, match=r"files of several formats \(csv, jsonl\)"):
        rows_of(inner)
    assert rows_of(inner, format="csv") == ROWS
    write_file(tmp_path / "texts" / "notes.txt", "x\ny\n")
    with pytest.raises(UserError, match="contains no folders with texts"):
        rows_of(tmp_path / "texts")
    assert rows_of(tmp_path / "texts", format="lines") == [{"text": "x"}, {"text": "y"}]


@pytest.mark.slow
def test_a_list_of_files_trains_like_one(recipe_file: Path, tmp_path: Path) -> None:
    files = parts(tmp_path / "parts")
    whole = write_csv(tmp_path / "all.csv", ROWS)
    sources = [f"[{', '.join(files)}]", str(tmp_path / "parts" / "*.csv"), str(whole)]
    loaded = [recipes.load(str(recipe_file), [f"data.train={one}"]).recipe for one in sources]
    assert loaded[0].data.train.sources == tuple(files)
    digests = {load_splits(one.data, one.task).digest for one in loaded}
    assert len(digests) == 1
    run, _ = train_tiny(recipe_file, tmp_path / "run", f"data.train={sources[0]}", "train.epochs=1")
    assert recipes.load(str(run / "recipe.yaml")).recipe.data.train.sources == tuple(files)
    for source in (str(tmp_path / "parts" / "*.csv"), str(tmp_path / "all.csv.gz")):
        write_file(tmp_path / "all.csv.gz", gzip.compress(whole.read_bytes()))
        found = rows_to_predict(loaded[0], source, (), ())
        assert list(found) == ROWS


def test_numbers_are_read_as_text_in_text_columns(recipe_file: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [*ROWS, {"text": 40, "label": "tool"}, {"text": 1.5, "label": "tool"}]
    loaded = recipes.load(str(recipe_file), [f"data.train={write_rows(tmp_path / 'a.jsonl', rows)}"]).recipe
    splits = load_splits(loaded.data, loaded.task)
    assert {"40", "1.5"} < {row["text"] for part in splits.named().values() for row in part}
    for strange in (True, float("nan"), [1]):
        write_rows(tmp_path / "a.jsonl", [*ROWS, {"text": strange, "label": "tool"}])
        with pytest.raises(UserError, match="row 61 has"):
            load_splits(loaded.data, loaded.task)
