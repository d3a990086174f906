"""Data files that the fuzzing mutates: small valid files of every format, and the tasks that read them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fuzzing.readers import Reader

Files = Mapping[str, bytes]
WORDS = ("red", "green", "apple", "hammer", "north", "seven", "über", "日本", "x,y", 'say "hi"', "it's", "a\tb")
ROWS = [
    {"text": f"{WORDS[i % 12]} {WORDS[(i * 5) % 12]} {i}", "label": ("fruit", "tool", "colour")[i % 3]}
    for i in range(30)
]
CHATS = [
    {"messages": [{"role": "user", "content": f"How much is {i} + 1?"}, {"role": "assistant", "content": str(i + 1)}]}
    for i in range(12)
]
CALLS = [
    {
        "conversations": [
            {"from": "human", "value": f"weather {i}"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"day": 1}}'},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "It rains."},
        ],
        "tools": '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]',
    }
    for i in range(12)
]
ALPACA = [
    {"instruction": f"Add one to {i}", "input": "", "output": str(i + 1), "history": [["a", "b"]]} for i in range(12)
]
SQUAD = {
    "version": "1.1",
    "data": [
        {"title": "t", "paragraphs": [{
            "context": f"The tower was built in {1800 + i} by Ann.",
            "qas": [{"id": str(i), "question": "When?", "answers": [{"text": str(1800 + i), "answer_start": 23}]}],
        }]}
        for i in range(12)
    ],
}  # fmt: skip
CONLL = "".join(f"Ann{i} NNP B-PER\nsaw VBD O\nNew NNP B-LOC\nYork NNP I-LOC\n. . O\n\n" for i in range(12))


def delimited(separator: str) -> bytes:
    import csv

    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=separator, quoting=csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE)
    writer.writerow(("text", "label"))
    for row in ROWS:
        writer.writerow((row["text"] if separator == "," else row["text"].translate({9: " ", 34: "'"}), row["label"]))
    return stream.getvalue().encode()


def lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def documents() -> Sequence[bytes]:
    """A list, an object of columns, an object with a list, and pandas' orient="index"."""
    columns = {name: [row[name] for row in ROWS] for name in ("text", "label")}
    forms: Sequence[Any] = (ROWS, columns, {"data": ROWS}, {str(i): row for i, row in enumerate(ROWS)})
    return [json.dumps(form, ensure_ascii=False).encode() for form in forms]


def table() -> Any:
    """A pyarrow table whose labels are class numbers, named in the metadata of datasets."""
    import pyarrow

    names = ["fruit", "tool", "colour"]
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
    rows = {"text": [row["text"] for row in ROWS], "label": [names.index(row["label"]) for row in ROWS]}
    made = pyarrow.table(rows)
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet(checked: bool = False) -> Sequence[bytes]:
    import pyarrow.parquet

    found = []
    forms: Sequence[Mapping[str, Any]] = (
        {"compression": "snappy"},
        {"compression": "none", "use_dictionary": False},
        {"compression": "zstd"},
        {"compression": "gzip", "data_page_version": "2.0"},
    )
    for options in forms:
        stream = io.BytesIO()
        pyarrow.parquet.write_table(table(), stream, row_group_size=12, write_page_checksum=checked, **options)
        found.append(stream.getvalue())
    return found


def arrow() -> Sequence[bytes]:
    import pyarrow

    found = []
    for new in (pyarrow.ipc.new_file, pyarrow.ipc.new_stream):
        for compression in (None, "zstd"):
            stream = io.BytesIO()
            with new(stream, table().schema, options=pyarrow.ipc.IpcWriteOptions(compression=compression)) as writer:
                writer.write_table(table(), 12)
            found.append(stream.getvalue())
    return found


def saved() -> Sequence[Files]:
    """Folders of `save_to_disk`: of one set, and of splits."""
    import tempfile

    import datasets

    found = []
    datasets.disable_progress_bars()
    for make in (lambda one: one, lambda one: datasets.DatasetDict({"train": one, "test": one})):
        with tempfile.TemporaryDirectory() as folder:
            make(datasets.Dataset.from_list(ROWS)).save_to_disk(folder)
            found.append(folder_of(Path(folder)))
    return found


def folder_of(folder: Path) -> Files:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def texts() -> Sequence[Files]:
    return [{f"{row['label']}/{i}.txt": row["text"].encode() for i, row in enumerate(ROWS)}]


def zipped(content: bytes, name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def zstd(content: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(content, codec="zstd", asbytes=True)


def splits(task: str, **settings: Any) -> Callable[[Path], str]:
    """A function that reads a file as the rows of a task, and returns the digest of its splits."""

    def read(path: Path) -> str:
        from pefttools.data.settings import DataSettings
        from pefttools.data.splitting import load_splits
        from pefttools.tasks import tasks

        chosen, _ = tasks.parse(task, "task")
        assert chosen is not None
        return load_splits(DataSettings.model_validate({"train": {"source": str(path), **settings}}), chosen).digest

    return read


def readers() -> list[Reader]:
    """The readers of data files."""
    texts_of, csv = splits("text_classification"), delimited(",")
    return [
        Reader("csv", lambda: [csv], texts_of, "rows.csv"),
        Reader("tsv", lambda: [delimited("\t")], texts_of, "rows.tsv"),
        Reader("json", documents, texts_of, "rows.json", json=True),
        Reader("jsonl", lambda: [lines(ROWS)], texts_of, "rows.jsonl", json=True),
        Reader("parquet", parquet, texts_of, "rows.parquet"),
        Reader("parquet with checksums", lambda: parquet(True), texts_of, "rows.parquet"),
        Reader("arrow", arrow, texts_of, "rows.arrow"),
        Reader("folders of save_to_disk", saved, texts_of, "rows"),
        Reader("folders of texts", texts, texts_of, "rows"),
        Reader("lines", lambda: [b"".join(f"{r['label']}: {r['text']}\n".encode() for r in ROWS)],
               splits("text_classification", pattern="(?P<label>[^:]+): (?P<text>.+)"), "rows.txt"),
        Reader("CoNLL", lambda: [CONLL.encode(), CONLL.replace(" ", "\t").encode()], splits("token_classification"),
               "rows.conll"),
        Reader("SQuAD", lambda: [json.dumps(SQUAD).encode()], splits("question_answering"), "rows.json", json=True),
        Reader("chats", lambda: [lines(CHATS), lines(CALLS), lines(ALPACA)], splits("causal_lm", **{}), "rows.jsonl",
               json=True),
        Reader("csv in gzip", lambda: [gzip.compress(csv, mtime=0)], texts_of, "rows.csv.gz", exact=True),
        Reader("csv in bzip2", lambda: [bz2.compress(csv)], texts_of, "rows.csv.bz2", exact=True),
        Reader("csv in xz", lambda: [lzma.compress(csv)], texts_of, "rows.csv.xz", exact=True),
        Reader("csv in zstandard", lambda: [zstd(csv)], texts_of, "rows.csv.zst"),
        Reader("csv in zip", lambda: [zipped(csv, "rows.csv")], texts_of, "rows.csv.zip", exact=True),
        Reader("parquet in gzip", lambda: [gzip.compress(one, mtime=0) for one in parquet()], texts_of,
               "rows.parquet.gz", exact=True),
    ]  # fmt: skip
