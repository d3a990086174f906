"""Rows to predict in users' files: invalid rows among valid ones, other columns, and ids."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas
import pytest
from conftest import make_rows, train_tiny, write_recipe, write_rows
from predict_command import Predict

from pefttools.errors import UserError
from pefttools.inference import prediction
from pefttools.inference.prediction import predict_rows

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
def predict(capsys: pytest.CaptureFixture[str]) -> Predict:
    return Predict(capsys)


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
    """A run whose data has other column names."""
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
def test_invalid_row_is_an_error_at_its_position(
    kind: str, finished_run: Path, tmp_path: Path, predict: Predict
) -> None:
    line, message = BAD[kind]
    good = ['{"text": "word1 apple", "id": 1}', '{"text": "word2 saw", "id": "two"}', '{"text": "blue word4"}']
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([*good[:2], line, good[2]]) + "\n")
    code, predictions, err = predict(finished_run, file, "--precision", "fp32")
    assert code == 0
    assert [a.get("prediction") for a in predictions] == ["fruit", "tool", None, "colour"]
    assert [a.get("id") for a in predictions[:2]] == [1, "two"]
    assert predictions[2]["row"] == 3
    assert message in predictions[2]["error"]
    assert predictions[2].get("id", 3) == 3
    assert f"1 of 4 rows have an `error` instead of a prediction: {predictions[2]['error']}" in err
    file.write_text("\n".join(good) + "\n")
    alone = predict(finished_run, file, "--precision", "fp32")[1]
    for one, other in zip([predictions[0], predictions[1], predictions[3]], alone, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_predict_fails_if_no_row_can_be_predicted(finished_run: Path, tmp_path: Path, predict: Predict) -> None:
    code, predictions, err = predict(finished_run, "--text", " ")
    assert (code, predictions) == (2, [{"row": 1, "error": "row 1 has no text"}])
    assert err == "error: predict: there is no prediction for any row: row 1 has no text\n"
    file = write_rows(tmp_path / "rows.jsonl", [{"text": ""}] * 9)
    code, predictions, err = predict(finished_run, file, "--out", tmp_path / "preds.csv")
    assert (code, predictions) == (2, [])
    assert "row 3 has no text (and 6 more)" in err
    assert not (tmp_path / "preds.csv").exists()


@pytest.mark.slow
def test_invalid_lines_of_standard_input_are_errors(finished_run: Path) -> None:
    lines = b'\xef\xbb\xbf{"text": "word1 drill", "id": 1}\n\n{"text": "caf\xe9"}\n{\n{"text": "word2 pear"}\n'
    command = [sys.executable, "-m", "pefttools", "predict", str(finished_run), "-"]
    process = subprocess.run(command, input=lines, capture_output=True)
    predictions = [json.loads(line) for line in process.stdout.splitlines()]
    assert (process.returncode, len(predictions)) == (0, 4)
    assert [a.get("prediction") for a in predictions] == ["tool", None, None, "fruit"]
    assert "standard input line 3: not UTF-8: byte 0xe9" in predictions[1]["error"]
    assert "standard input line 4: not JSON" in predictions[2]["error"]


@pytest.mark.slow
def test_columns_are_those_of_training(mapped_run: Path, tmp_path: Path, predict: Predict) -> None:
    rows = [{"text": "word1 saw", "Subject": "word1 pear", "nr": 10**12}, {"Subject": "word2 drill", "nr": 2}]
    for file in (write_rows(tmp_path / "a.jsonl", rows), table(tmp_path / "a.parquet", rows)):
        code, predictions, err = predict(mapped_run, file)
        assert (code, err) == (0, "")
        assert [(a["id"], a["text"]) for a in predictions] == [(10**12, "word1 pear"), (2, "word2 drill")]
    code, predictions, err = predict(mapped_run, "--text", "word1 apple")
    assert (code, [a["text"] for a in predictions]) == (0, ["word1 apple"])
    code, _, err = predict(mapped_run, write_rows(tmp_path / "b.jsonl", [{"text": "word1 saw"}]))
    assert (code, "lack the training data's column 'Subject'; 'text' is read" in err) == (0, True)


def test_missing_column_is_refused_with_the_override_to_add(mapped_run: Path, tmp_path: Path, predict: Predict) -> None:
    file = table(tmp_path / "odd.csv", [{"Subjet": "word1 pear", "Body": "x"}])
    code, predictions, err = predict(mapped_run, file)
    assert (code, predictions) == (2, [])
    assert err == (
        "error: the rows have no column 'Subject' for text; add data.columns.text=Subjet. Columns: Subjet, Body\n"
    )
    code, predictions, err = predict(mapped_run, file, "data.columns.text=Subjet")
    assert (code, predictions[0]["text"], err) == (0, "word1 pear", "")
    assert (
        "data.train.source: predict accepts overrides of data.columns"
        in predict(mapped_run, file, "data.train.source=x")[2]
    )


@pytest.mark.slow
def test_index_column_of_pandas_is_ignored(finished_run: Path, tmp_path: Path, predict: Predict) -> None:
    rows = [{"text": "word1 pear", "n": 1}, {"text": "word2 drill", "n": 2}]
    for name in ("a.csv", "a.tsv", "a.parquet"):
        code, predictions, err = predict(finished_run, table(tmp_path / name, rows, index=True), "--keep", "n")
        assert (code, err) == (0, "")
        assert [(a["prediction"], int(a["n"])) for a in predictions] == [("fruit", 1), ("tool", 2)]


@pytest.mark.slow
def test_keep_copies_input_columns(mapped_run: Path, tmp_path: Path, predict: Predict) -> None:
    rows = [
        {"Subject": "word1 pear", "nr": 1, "Team": "fruit", "prediction": "old", "when": {"day": 3}},
        {"Subject": "", "nr": 2, "Team": "tool", "prediction": "older"},
        {"Subject": "word2 saw", "nr": 3, "Team": None, "text": "body"},
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    code, predictions, _ = predict(mapped_run, file, "--keep")
    assert code == 0
    assert [a.get("Team", 0) for a in predictions] == ["fruit", "tool", None]
    assert [a.get("input.prediction") for a in predictions] == ["old", "older", None]
    assert [a.get("when") for a in predictions] == [{"day": 3}, None, None]
    assert (predictions[2]["text"], predictions[2]["input.text"]) == ("word2 saw", "body")
    assert (predictions[1]["id"], predictions[1]["row"]) == (2, 2)
    for words in (["--keep", "Team,Subject"], ["--keep", "Team", "--keep", "Subject"]):
        code, predictions, _ = predict(mapped_run, file, *words)
        assert [[a.get(name) for name in ("Team", "Subject", "when")] for a in predictions] == [
            ["fruit", "word1 pear", None], ["tool", "", None], [None, "word2 saw", None]
        ]  # fmt: skip
    code, predictions, err = predict(mapped_run, file, "--keep", "Taem")
    assert (code, predictions) == (2, [])
    assert "--keep: the rows have no column 'Taem'; did you mean 'Team'? Columns: Subject, nr, Team" in err
    assert "put --keep last" in predict(mapped_run, "--keep", file)[2]


@pytest.mark.slow
def test_truncated_rows_are_counted_or_refused(mapped_run: Path, tmp_path: Path, predict: Predict) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"Subject": "word1 pear"}, {"Subject": "word1 " * 30 + "pear"}])
    code, predictions, err = predict(mapped_run, file)
    assert (code, len(predictions)) == (0, 2)
    assert "1 of 2 rows were too long for the model and were truncated" in err
    strict = mapped_run.with_name("strict")
    strict.mkdir()
    for item in mapped_run.iterdir():
        (strict / item.name).symlink_to(item)
    for name in ("recipe.yaml", "hashes.json"):
        (strict / name).unlink()
    recipe = (mapped_run / "recipe.yaml").read_text()
    (strict / "recipe.yaml").write_text(recipe.replace("truncation: cut", "truncation: refuse"))
    code, predictions, err = predict(strict, file)
    assert (code, "too long for the model" in err) == (0, False)
    assert "prediction" in predictions[0]
    assert predictions[1] == {"row": 2, "error": "row 2 is longer than 8 tokens, and task.truncation is refuse"}


@pytest.mark.slow
def test_several_runs_predict_together_with_separate_errors(
    finished_run: Path, mapped_run: Path, tmp_path: Path, predict: Predict
) -> None:
    rows = [{"text": "word1 pear", "Subject": "word1 saw"}, {"text": "word1 pear"}, {"n": 3}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    other = mapped_run.with_name("other")
    other.symlink_to(mapped_run)
    code, predictions, err = predict("--run", finished_run, "--run", other, file, "--keep")
    assert code == 0
    first = predictions[0]["answers"]
    assert (first["run"]["prediction"], set(first)) == ("fruit", {"run", "other"})
    assert predictions[1]["answers"]["run"]["prediction"] == "fruit"
    assert predictions[1]["answers"]["other"] == {"error": "row 2 has no text"}
    assert predictions[2] == {"row": 3, "n": 3, "error": "row 3 has no text"}
    assert "2 of 3 rows have an `error`" in err
    code, predictions, _ = predict("--run", finished_run, "--run", other, file, "--out", tmp_path / "both.csv")
    frame = pandas.read_csv(tmp_path / "both.csv", keep_default_na=False)
    assert frame["answers.run.prediction"].tolist() == ["fruit", "fruit", ""]
    assert frame["answers.other.error"].tolist() == ["", "row 2 has no text", ""]


@pytest.mark.slow
def test_closed_pipe_is_not_an_error(finished_run: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "word1 pear " * 9}] * 2000)
    command = f"{sys.executable} -m pefttools predict {finished_run} {rows} | head -n 1"
    process = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert json.loads(process.stdout)["prediction"]
    assert process.stderr == ""
    assert process.returncode in (0, 141)


def test_missing_column_is_refused_before_a_model_is_loaded(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "load_predictor", None)
    with pytest.raises(UserError, match=r"the rows have no column 'text' for text; .*Columns: label"):
        list(predict_rows(finished_run, [{"label": "fruit"}]))
