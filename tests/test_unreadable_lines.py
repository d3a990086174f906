"""Unreadable lines among valid ones: refused, skipped and counted, or predicted as an error."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pyarrow
import pytest
import yaml
from conftest import make_rows

from pefttools import cli

ROWS = make_rows(60)
CSV = ["text,label", *(f"{row['text']},{row['label']}" for row in ROWS)]
JSONL = [json.dumps(row) for row in ROWS]
BAD_BYTE = "caf\udc81"
"""A byte that is valid neither in UTF-8 nor in cp1252."""


def damaged(path: Path, lines: list[str], *bad: str) -> Path:
    """A file with bad lines as its lines 5, 6 …"""
    text = "\n".join([*lines[:4], *bad, *lines[4:]]) + "\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    ragged = (f"a, b,{ROWS[0]['label']}", "alone", f"{BAD_BYTE},fruit")
    broken = ('{"text": "word1"', "[1]", f'{{"text": "{BAD_BYTE}", "label": "fruit"}}')
    return {
        "csv": damaged(tmp_path / "rows.csv", CSV, *ragged),
        "jsonl": damaged(tmp_path / "rows.jsonl", JSONL, *broken),
        "lines": damaged(tmp_path / "rows.txt", [f"{r['label']}: {r['text']}" for r in ROWS], "no label", BAD_BYTE),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rows", "reasons"),
    [
        ("csv", ["4", "5", "6"], ("line 5 has 3 columns", "line 6 has 1 column", "line 7: byte 0x81 at position 3")),
        ("jsonl", ["5", "6", "7"], ("line 5: not JSON", "got list", "line 7: byte 0x81 at position 13")),
        ("lines", ["5", "6"], ("line 5: does not match the pattern", "line 6: byte 0x81 at position 3")),
    ],
)
def test_unreadable_lines_are_refused_or_skipped(
    kind: str,
    rows: list[str],
    reasons: tuple[str, ...],
    files: dict[str, Path],
    recipe_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = yaml.safe_load(recipe_file.read_text())
    recipe["data"]["train"] = {"source": str(files[kind])}
    if kind == "lines":
        recipe["data"]["train"]["pattern"] = "(?P<label>\\w+): (?P<text>.+)"
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    train = ["train", str(tmp_path / "r.yaml"), "train.epochs=0.5", "--out", str(tmp_path / "run")]
    assert cli.run(train) == 2
    refusal = " ".join(capsys.readouterr().err.split())
    assert "data.invalid_rows=skip" in refusal
    assert not (tmp_path / "run").exists()
    assert cli.run([*train, "data.invalid_rows=skip"]) == 0
    message = " ".join(capsys.readouterr().err.split())
    assert f"{len(rows)} rows cannot be used and are skipped: cannot be read: rows {', '.join(rows)}" in message
    assert all(reason in message for reason in reasons)
    data = json.loads((tmp_path / "run" / "result.json").read_text())["data"]
    assert data["left_out"]["invalid"] == len(rows)
    assert data["invalid"] == {"train": {"cannot be read": rows}}


def test_file_without_readable_lines_is_refused(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("one\ntwo\nthree\nfour\n")
    assert cli.run(["train", str(recipe_file), f"data.train={file}", "data.invalid_rows=skip"]) == 2
    assert "no line can be read" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_unreadable_line_is_an_error_at_its_position(
    kind: str, files: dict[str, Path], finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["predict", str(finished_run), str(files[kind])]) == 0
    captured = capsys.readouterr()
    predictions = [json.loads(line) for line in captured.out.splitlines()]
    first = 3 if kind == "csv" else 4
    assert [i for i, prediction in enumerate(predictions) if "error" in prediction] == [first, first + 1, first + 2]
    assert predictions[first]["row"] == first + 1
    assert "line 7: byte 0x81" in predictions[first + 2]["error"]
    assert [a["text"] for a in predictions if "error" not in a] == [row["text"] for row in ROWS]
    assert "3 of 63 rows have an `error` instead of a prediction" in " ".join(captured.err.split())


@pytest.mark.slow
def test_predict_reads_every_format_that_training_reads(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compressed files, patterns and lists, each file by its own ending."""
    plain, lines = "\n".join(CSV).encode(), "\n".join(JSONL).encode()
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "b.csv.bz2").write_bytes(bz2.compress(plain.replace(b",", b"\t")))
    with pyarrow.output_stream(str(tmp_path / "c.jsonl.zst"), compression="zstd") as stream:
        stream.write(lines)
    (tmp_path / "d.csv").write_bytes(plain)
    listed = f"[{tmp_path}/d.csv,{tmp_path}/c.jsonl.zst]"
    for file, times in (("a.csv.gz", 1), ("b.csv.bz2", 1), ("c.jsonl.zst", 1), ("*.csv*", 3), (listed, 2)):
        assert cli.run(["predict", str(finished_run), str(tmp_path / file) if times != 2 else file]) == 0
        predictions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [prediction["text"] for prediction in predictions] == [row["text"] for row in ROWS] * times
        assert all("prediction" in prediction for prediction in predictions)


def test_one_line_in_latin1_does_not_change_the_encoding(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is refused, and not read as cp1252."""
    file = tmp_path / "rows.csv"
    file.write_bytes(
        b"\n".join([CSV[0].encode(), b"caf\xe9,fruit", *(f"{line[:3]}é{line}".encode() for line in CSV[1:])])
    )
    assert cli.run(["train", str(recipe_file), f"data.train={file}"]) == 2
    assert "byte 0xe9 at position 14 is not utf-8 (line 2)" in " ".join(capsys.readouterr().err.split())
