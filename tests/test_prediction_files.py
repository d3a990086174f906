"""Files of predictions: formats, files that cannot be written, and values without a JSON form."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet
import pytest
from conftest import write_rows
from predict_command import Predict

from pefttools.data.reading import read
from pefttools.data.settings import FileSettings
from pefttools.inference import prediction, prediction_files
from pefttools.inference.prediction import predict_rows
from pefttools.reporter import SILENT


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Predict:
    return Predict(capsys)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_output_format_follows_the_file_ending(
    ending: str, finished_run: Path, tmp_path: Path, predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((prediction, "CHUNK"), (prediction_files, "BLOCK")):
        monkeypatch.setattr(module, name, 2)
    texts = ['"Yes", word1\tpear', "word2 saw\nword3", "", "blue word4"]
    rows: list[dict[str, Any]] = [{"text": text, "id": i, "n": [1, None, "x", 2.5][i]} for i, text in enumerate(texts)]
    rows[3]["more"] = [1, 2]
    out = tmp_path / f"preds.{ending}"
    source = write_rows(tmp_path / "rows.jsonl", rows)
    code, printed, _ = predict(finished_run, source, "--keep")
    code, predictions, err = predict(finished_run, source, "--keep", "--out", out)
    assert (code, predictions) == (0, [])
    assert f"wrote 4 rows to {out}" in err.replace("\n", "")
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("rows.jsonl",)] == [out.name]
    if ending == "jsonl":
        assert [json.loads(line) for line in out.read_text().splitlines()] == printed
        return
    if ending == "parquet":
        found = pyarrow.parquet.read_table(out).to_pylist()
        assert [row["id"] for row in found] == [0, 1, 2, 3]
        assert found[3]["probabilities"] == pytest.approx(printed[3]["probabilities"], abs=1e-6)
        assert found[3]["more"] == [1, 2]
        assert "values of several types are written as text: n" in err
    else:
        found = read(FileSettings(source=str(out), quotes=ending == "csv"), "data.train", SILENT)
        assert [row["id"] for row in found] == ["0", "1", "2", "3"]
        assert float(found[3]["probabilities.colour"]) == pytest.approx(printed[3]["probabilities"]["colour"])
        assert found[3]["more"] == "[1, 2]"
    assert [row["prediction"] or None for row in found] == [row.get("prediction") for row in printed]
    assert [row["error"] or None for row in found] == [None, None, "row 3 has no text", None]
    assert [row["n"] or None for row in found] == ["1", None, "x", "2.5"]
    changed = {"tsv": ['"Yes", word1 pear', "word2 saw word3"]}.get(ending, texts[:2])
    assert [row["text"] for row in found[:2]] == changed


def test_unwritable_output_files_are_refused(finished_run: Path, tmp_path: Path, predict: Predict) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": "word1 pear"}])
    old = tmp_path / "old.csv"
    old.write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    for out, message in (
        ("preds.xlsx", "name a file that ends with .csv, .tsv, .jsonl, .ndjson, .parquet"),
        ("folder.csv", "is a folder"),
        ("rows.jsonl", "is the input file"),
        ("old.csv", "exists; name another file, or add --overwrite"),
        ("old.csv/preds.csv", "old.csv is a file"),
    ):
        code, predictions, err = predict(finished_run, source, "--out", tmp_path / out)
        assert (code, predictions) == (2, [])
        assert message in err
    assert old.read_text() == "mine"
    assert predict(finished_run, source, "--out", old, "--overwrite")[0] == 0
    assert next(csv.DictReader(io.StringIO(old.read_text())))["prediction"] == "fruit"


def test_interrupted_prediction_leaves_no_file(finished_run: Path, tmp_path: Path) -> None:
    def rows() -> Iterable[dict[str, Any]]:
        yield {"text": "word1 pear"}
        raise KeyboardInterrupt

    for ending in ("csv", "jsonl", "parquet"):
        with pytest.raises(KeyboardInterrupt):
            prediction_files.write(tmp_path / f"preds.{ending}", predict_rows(finished_run, rows()))
    assert not [*tmp_path.iterdir()]


def test_values_without_json_form_are_converted() -> None:
    when = pandas.Timestamp("2026-11-28 12:00")
    line = prediction_files.json_line({"a": math.nan, "b": [math.inf, 1.5], "c": when, "d": "\ud83d", "e": b"x\xff"})
    assert line.encode()
    assert json.loads(line) == {
        "a": None, "b": [None, 1.5], "c": "2026-11-28T12:00:00", "d": "\ud83d", "e": "x\\xff"
    }  # fmt: skip
    assert prediction_files.json_line({"t": "né"}) == '{"t": "né"}'
