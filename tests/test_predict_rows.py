"""Rows to predict on as users bring them: bad ones among good ones, other columns, ids, and files to write."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet
import pytest
from conftest import make_rows, train_tiny, write_recipe, write_rows

from pefttools import cli
from pefttools.data.reading import read
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.inference import prediction, prediction_files
from pefttools.inference.prediction import predict_rows
from pefttools.reporter import SILENT

BAD = {
    "an empty text": ('{"text": "  ", "id": 3}', "row 3 has no text"),
    "no text": ('{"id": 3}', "row 3 has no text"),
    "null": ('{"text": null, "id": 3}', "row 3 has no text"),
    "half a character": ('{"text": "\\ud83d", "id": 3}', "row 3 has half a character"),
    "a list": ('{"text": ["word1"], "id": 3}', "row 3 has a text that is not text"),
    "broken JSON": ('{"text": "word1"', "line 3: not JSON"),
    "no object": ("[1, 2]", "line 3: needs one JSON object per line, got list"),
}


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[Any], str]]:
    """Exit code, answers and messages of `pefttools predict`."""

    def run(*words: object) -> tuple[int, list[Any], str]:
        code = cli.run(["predict", *map(str, words)])
        captured = capsys.readouterr()
        return code, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return run


Said = Callable[..., tuple[int, list[Any], str]]


def table(path: Path, rows: Iterable[Mapping[str, Any]], index: bool = False) -> Path:
    """Rows as pandas writes them, by the file's ending."""
    frame = pandas.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=index)
    else:
        frame.to_csv(path, index=index, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.fixture(scope="module")
def mapped_run(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> Path:
    """A run whose rows have columns of other names."""
    folder = tmp_path_factory.mktemp("mapped")
    rows = [
        {"nr": i, "Subject": row["text"], "Team": row["label"], "text": f"body {i}"}
        for i, row in enumerate(make_rows(120))
    ]
    recipe = write_recipe(
        folder / "tiny.yaml",
        bases("bert"),
        write_rows(folder / "rows.jsonl", rows),
        task={"name": "text_classification", "max_length": 8},
        data={"columns": {"text": "Subject", "label": "Team", "id": "nr"}},
        train={"epochs": 1, "learning_rate": 0.003},
    )
    return train_tiny(recipe, folder / "run")[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_an_error_in_its_place(kind: str, finished_run: Path, tmp_path: Path, said: Said) -> None:
    line, message = BAD[kind]
    good = ['{"text": "word1 apple", "id": 1}', '{"text": "word2 saw", "id": "two"}', '{"text": "blue word4"}']
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([*good[:2], line, good[2]]) + "\n")
    code, answers, err = said(finished_run, file, "--precision", "fp32")
    assert code == 0
    assert [a.get("prediction") for a in answers] == ["fruit", "tool", None, "colour"]
    assert [a.get("id") for a in answers[:2]] == [1, "two"]
    assert answers[2]["row"] == 3
    assert message in answers[2]["error"]
    assert answers[2].get("id", 3) == 3
    assert f"1 of 4 rows have an `error` instead of a prediction: {answers[2]['error']}" in err
    file.write_text("\n".join(good) + "\n")
    alone = said(finished_run, file, "--precision", "fp32")[1]
    for one, other in zip([answers[0], answers[1], answers[3]], alone, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_no_answer_at_all_is_a_mistake(finished_run: Path, tmp_path: Path, said: Said) -> None:
    code, answers, err = said(finished_run, "--text", " ")
    assert (code, answers) == (2, [{"row": 1, "error": "row 1 has no text"}])
    assert err == "error: predict: there is no prediction for any row: row 1 has no text\n"
    file = write_rows(tmp_path / "rows.jsonl", [{"text": ""}] * 9)
    code, answers, err = said(finished_run, file, "--out", tmp_path / "preds.csv")
    assert (code, answers) == (2, [])
    assert "row 3 has no text (and 6 more)" in err
    assert not (tmp_path / "preds.csv").exists()


@pytest.mark.slow
def test_standard_input_may_hold_anything(finished_run: Path) -> None:
    lines = b'\xef\xbb\xbf{"text": "word1 drill", "id": 1}\n\n{"text": "caf\xe9"}\n{\n{"text": "word2 pear"}\n'
    command = [sys.executable, "-m", "pefttools", "predict", str(finished_run), "-"]
    done = subprocess.run(command, input=lines, capture_output=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, len(answers)) == (0, 4)
    assert [a.get("prediction") for a in answers] == ["tool", None, None, "fruit"]
    assert "standard input line 3: not UTF-8: byte 0xe9" in answers[1]["error"]
    assert "standard input line 4: not JSON" in answers[2]["error"]


@pytest.mark.slow
def test_columns_are_those_of_training(mapped_run: Path, tmp_path: Path, said: Said) -> None:
    rows = [{"text": "word1 saw", "Subject": "word1 pear", "nr": 10**12}, {"Subject": "word2 drill", "nr": 2}]
    for file in (write_rows(tmp_path / "a.jsonl", rows), table(tmp_path / "a.parquet", rows)):
        code, answers, err = said(mapped_run, file)
        assert (code, err) == (0, "")
        assert [(a["id"], a["text"]) for a in answers] == [(10**12, "word1 pear"), (2, "word2 drill")]
    code, answers, err = said(mapped_run, "--text", "word1 apple")
    assert (code, [a["text"] for a in answers]) == (0, ["word1 apple"])
    code, _, err = said(mapped_run, write_rows(tmp_path / "b.jsonl", [{"text": "word1 saw"}]))
    assert (code, "lack the training data's column 'Subject'; 'text' is read" in err) == (0, True)


def test_columns_that_do_not_fit(mapped_run: Path, tmp_path: Path, said: Said) -> None:
    file = table(tmp_path / "odd.csv", [{"Subjet": "word1 pear", "Body": "x"}])
    code, answers, err = said(mapped_run, file)
    assert (code, answers) == (2, [])
    assert err == (
        "error: predict: the rows have no column 'Subject' for text; add data.columns.text=Subjet."
        " Columns: Subjet, Body\n"
    )
    code, answers, err = said(mapped_run, file, "data.columns.text=Subjet")
    assert (code, answers[0]["text"], err) == (0, "word1 pear", "")
    assert (
        "data.train.source: predict takes overrides of data.columns" in said(mapped_run, file, "data.train.source=x")[2]
    )


@pytest.mark.slow
def test_an_index_that_pandas_wrote(finished_run: Path, tmp_path: Path, said: Said) -> None:
    rows = [{"text": "word1 pear", "n": 1}, {"text": "word2 drill", "n": 2}]
    for name in ("a.csv", "a.tsv", "a.parquet"):
        code, answers, err = said(finished_run, table(tmp_path / name, rows, index=True), "--keep", "n")
        assert (code, err) == (0, "")
        assert [(a["prediction"], int(a["n"])) for a in answers] == [("fruit", 1), ("tool", 2)]


@pytest.mark.slow
def test_other_columns_are_carried(mapped_run: Path, tmp_path: Path, said: Said) -> None:
    rows = [
        {"Subject": "word1 pear", "nr": 1, "Team": "fruit", "prediction": "old", "when": {"day": 3}},
        {"Subject": "", "nr": 2, "Team": "tool", "prediction": "older"},
        {"Subject": "word2 saw", "nr": 3, "Team": None, "text": "body"},
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    code, answers, _ = said(mapped_run, file, "--keep")
    assert code == 0
    assert [a.get("Team", 0) for a in answers] == ["fruit", "tool", None]
    assert [a.get("input.prediction") for a in answers] == ["old", "older", None]
    assert [a.get("when") for a in answers] == [{"day": 3}, None, None]
    assert (answers[2]["text"], answers[2]["input.text"]) == ("word2 saw", "body")
    assert (answers[1]["id"], answers[1]["row"]) == (2, 2)
    for words in (["--keep", "Team,Subject"], ["--keep", "Team", "--keep", "Subject"]):
        code, answers, _ = said(mapped_run, file, *words)
        assert [[a.get(name) for name in ("Team", "Subject", "when")] for a in answers] == [
            ["fruit", "word1 pear", None], ["tool", "", None], [None, "word2 saw", None]
        ]  # fmt: skip
    code, answers, err = said(mapped_run, file, "--keep", "Taem")
    assert (code, answers) == (2, [])
    assert "--keep: the rows have no column 'Taem'; did you mean 'Team'? Columns: Subject, nr, Team" in err
    assert "put --keep last" in said(mapped_run, "--keep", file)[2]


@pytest.mark.slow
def test_rows_that_are_cut_are_counted_or_refused(mapped_run: Path, tmp_path: Path, said: Said) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"Subject": "word1 pear"}, {"Subject": "word1 " * 30 + "pear"}])
    code, answers, err = said(mapped_run, file)
    assert (code, len(answers)) == (0, 2)
    assert "1 of 2 rows were too long for the model and were truncated" in err
    strict = mapped_run.with_name("strict")
    strict.mkdir()
    for item in mapped_run.iterdir():
        (strict / item.name).symlink_to(item)
    (strict / "recipe.yaml").unlink()
    recipe = (mapped_run / "recipe.yaml").read_text()
    (strict / "recipe.yaml").write_text(recipe.replace("truncation: cut", "truncation: refuse"))
    code, answers, err = said(strict, file)
    assert (code, "too long for the model" in err) == (0, False)
    assert "prediction" in answers[0]
    assert answers[1] == {"row": 2, "error": "row 2 is longer than 8 tokens, and task.truncation is refuse"}


@pytest.mark.slow
def test_runs_answer_together_with_errors_of_their_own(
    finished_run: Path, mapped_run: Path, tmp_path: Path, said: Said
) -> None:
    rows = [{"text": "word1 pear", "Subject": "word1 saw"}, {"text": "word1 pear"}, {"n": 3}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    other = mapped_run.with_name("other")
    other.symlink_to(mapped_run)
    code, answers, err = said("--run", finished_run, "--run", other, file, "--keep")
    assert code == 0
    first = answers[0]["answers"]
    assert (first["run"]["prediction"], set(first)) == ("fruit", {"run", "other"})
    assert answers[1]["answers"]["run"]["prediction"] == "fruit"
    assert answers[1]["answers"]["other"] == {"error": "row 2 has no text"}
    assert answers[2] == {"row": 3, "n": 3, "error": "row 3 has no text"}
    assert "2 of 3 rows have an `error`" in err
    code, answers, _ = said("--run", finished_run, "--run", other, file, "--out", tmp_path / "both.csv")
    frame = pandas.read_csv(tmp_path / "both.csv", keep_default_na=False)
    assert frame["answers.run.prediction"].tolist() == ["fruit", "fruit", ""]
    assert frame["answers.other.error"].tolist() == ["", "row 2 has no text", ""]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_predictions_are_written_by_the_ending(
    ending: str, finished_run: Path, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((prediction, "CHUNK"), (prediction_files, "BLOCK")):
        monkeypatch.setattr(module, name, 2)
    texts = ['"Yes", word1\tpear', "word2 saw\nword3", "", "blue word4"]
    rows: list[dict[str, Any]] = [{"text": text, "id": i, "n": [1, None, "x", 2.5][i]} for i, text in enumerate(texts)]
    rows[3]["more"] = [1, 2]
    out = tmp_path / f"preds.{ending}"
    source = write_rows(tmp_path / "rows.jsonl", rows)
    code, printed, _ = said(finished_run, source, "--keep")
    code, answers, err = said(finished_run, source, "--keep", "--out", out)
    assert (code, answers) == (0, [])
    assert f"4 rows in {out}" in err.replace("\n", "")
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


def test_where_predictions_cannot_be_written(finished_run: Path, tmp_path: Path, said: Said) -> None:
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
        code, answers, err = said(finished_run, source, "--out", tmp_path / out)
        assert (code, answers) == (2, [])
        assert message in err
    assert old.read_text() == "mine"
    assert said(finished_run, source, "--out", old, "--overwrite")[0] == 0
    assert next(csv.DictReader(io.StringIO(old.read_text())))["prediction"] == "fruit"


def test_a_file_is_whole_or_not_there(finished_run: Path, tmp_path: Path) -> None:
    def rows() -> Iterable[dict[str, Any]]:
        yield {"text": "word1 pear"}
        raise KeyboardInterrupt

    for ending in ("csv", "jsonl", "parquet"):
        with pytest.raises(KeyboardInterrupt):
            prediction_files.write(tmp_path / f"preds.{ending}", predict_rows(finished_run, rows()))
    assert not [*tmp_path.iterdir()]


def test_values_that_json_has_no_form_for() -> None:
    when = pandas.Timestamp("2026-11-28 12:00")
    line = prediction_files.json_line({"a": math.nan, "b": [math.inf, 1.5], "c": when, "d": "\ud83d", "e": b"x\xff"})
    assert line.encode()
    assert json.loads(line) == {
        "a": None, "b": [None, 1.5], "c": "2026-11-28T12:00:00", "d": "\ud83d", "e": "x\\xff"
    }  # fmt: skip
    assert prediction_files.json_line({"t": "né"}) == '{"t": "né"}'


@pytest.mark.slow
def test_a_reader_that_closes_early_is_no_error(finished_run: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "word1 pear " * 9}] * 2000)
    command = f"{sys.executable} -m pefttools predict {finished_run} {rows} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert json.loads(done.stdout)["prediction"]
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_all_rows_are_refused_before_a_model_is_loaded(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "load_predictor", None)
    with pytest.raises(UserError, match=r"the rows have no column 'text' for text; .*Columns: label"):
        list(predict_rows(finished_run, [{"label": "fruit"}]))
