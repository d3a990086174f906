"""Rows read from CoNLL files, parallel lines, SQuAD files and hub sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pefttools.data.reading import read
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.reporter import SILENT


def rows_of(path: Path, **settings: Any) -> list[dict[str, Any]]:
    return read(FileSettings(source=str(path), **settings), "data.train", SILENT)


def write_file(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("ending", ["conll", "bio", "iob", "iob2", "bmes"])
def test_conll_with_two_columns(tmp_path: Path, ending: str) -> None:
    path = write_file(tmp_path / f"a.{ending}", "\nEU B-ORG\nrejects O\n\n\n# O\n1 O\n\n")
    assert rows_of(path) == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["#", "1"], "tags": ["O", "O"]},
    ]


def test_conll_with_more_columns_documents_and_comments(tmp_path: Path) -> None:
    text = (
        "-DOCSTART- -X- O O\r\n\r\n# id 7\r\nEU NNP I-NP B-ORG\r\n. . O O\r\n-DOCSTART- -X- O O\r\nPeter NNP I-NP B-PER"
    )
    path = write_file(tmp_path / "a.conll", text)
    rows = rows_of(path)
    assert [row["tokens"] for row in rows] == [["EU", "."], ["Peter"]]
    assert rows[0] == {"tokens": ["EU", "."], "column2": ["NNP", "."], "column3": ["I-NP", "O"], "tags": ["B-ORG", "O"]}
    named = rows_of(path, header=("word", "pos", "chunk", "ner"))
    assert named[1] == {"word": ["Peter"], "pos": ["NNP"], "chunk": ["I-NP"], "ner": ["B-PER"]}
    assert rows_of(path, last_rows=1)[0]["tokens"] == ["Peter"]


def test_conll_tokens_between_tabs_may_contain_spaces(tmp_path: Path) -> None:
    text = "# text = New York\tUSA\nNew York\tB-LOC\n\t\n\ufeff\nof\tO\n# O\tO\n"
    path = write_file(tmp_path / "a.data", text)
    assert rows_of(path, format="conll") == [
        {"tokens": ["# text = New York", "New York"], "tags": ["USA", "B-LOC"]},
        {"tokens": ["of", "# O"], "tags": ["O", "O"]},
    ]
    spaced = write_file(tmp_path / "b.conll", "# id 1\tdomain=en\nof _ _ O\n")
    assert rows_of(spaced)[0]["tokens"] == ["of"]


def test_conll_with_one_character_a_line(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.bmes", "北 B-LOC\n京 E-LOC\n\u3000 O\n。 O\n\n我 O\n")
    assert [row["tokens"] for row in rows_of(path)] == [["北", "京", "\u3000", "。"], ["我"]]
    alone = write_file(tmp_path / "b.conll", "北\n京\n\n我\n")
    assert rows_of(alone) == [{"tokens": ["北", "京"]}, {"tokens": ["我"]}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb c O\n", "line 2 has 3 columns instead of 2: 'b c O'"),
        ("a O\n\nb\n", "line 3 has 1 columns instead of 2: 'b'"),
        ("a\tO\nb\t\n", "line 2 has an empty column 'tags': 'b\\t'"),
        ("a\tO\n\tO\n", "line 2 has an empty column 'tokens'"),
        ("a O\nb\nc\nd\ne\n", "line 4 has 1 columns instead of 2: 'd' (and 1 more lines)"),
    ],
)
def test_invalid_conll_lines_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        rows_of(write_file(tmp_path / "a.conll", text))
    assert message in str(caught.value)
    assert "data.train: " in str(caught.value)


def test_lines_of_a_text_file_are_rows(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.txt", "one\r\n\n  two\u2028still two\n")
    assert rows_of(path) == [{"text": "one"}, {"text": "  two\u2028still two"}]
    assert rows_of(path, last_rows=1) == [{"text": "  two\u2028still two"}]


def test_parallel_files_are_joined_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, tags = (
        write_file(tmp_path / "seq.in", "play jazz\n\nstop\n"),
        write_file(tmp_path / "seq.out", "O B-genre\n\nO"),
    )
    label = write_file(tmp_path / "label", "Play\n\nStop\n")
    expected = [
        {"text": "play jazz", "tags": "O B-genre", "label": "Play"},
        {"text": "stop", "tags": "O", "label": "Stop"},
    ]
    monkeypatch.chdir(tmp_path)
    settings = FileSettings(source=str(text), parallel_files={"tags": "seq.out", "label": str(label)})
    assert settings.parallel_files == {"tags": str(tags), "label": str(label)}
    monkeypatch.chdir("/")
    assert read(settings, "data.train", SILENT) == expected
    numbered = write_file(tmp_path / "numbered", "1 play jazz\n2 \n3 stop\n")
    rows = rows_of(numbered, parallel_files={"tags": str(tags)}, pattern=r"(?P<id>\d) (?P<text>.*)", last_rows=2)
    assert rows == [{"id": "2", "text": "", "tags": ""}, {"id": "3", "text": "stop", "tags": "O"}]
    latin = tmp_path / "latin"
    latin.write_bytes("é\n\nè\n".encode("latin-1"))
    with pytest.raises(UserError, match="latin: byte 0xe9 at position 0 is not utf-8"):
        rows_of(text, parallel_files={"tags": str(latin)})


def test_parallel_files_of_different_length_are_refused(tmp_path: Path) -> None:
    text, tags = write_file(tmp_path / "a.in", "one\ntwo\nthree\n"), write_file(tmp_path / "a.out", "O\nO\n")
    with pytest.raises(
        UserError, match=r"a\.out has 2 lines and .*a\.in has 3; parallel files must have the same number"
    ):
        rows_of(text, parallel_files={"tags": str(tags)})
    with pytest.raises(UserError, match="gone"):
        rows_of(text, parallel_files={"tags": str(tmp_path / "gone")})
    with pytest.raises(UserError, match=r"is a folder, but `parallel_files"):
        rows_of(text, parallel_files={"tags": str(tmp_path)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"format": "csv", "parallel_files": {"tags": "b"}},
            "`parallel_files` is for `format: lines`, but this is csv",
        ),
        ({"format": "jsonl", "pattern": "(?P<text>.+)"}, "`pattern` is for `format: lines`, but this is jsonl"),
        ({"pattern": ".+"}, "`pattern` has no named groups"),
        ({"parallel_files": {"text": "b"}}, "`parallel_files` names text, which is a column of the file itself"),
        ({"parallel_files": {"tags": "hf:some/set"}}, "needs files, but hf:some/set is a data set of the hub"),
        ({"parallel_files": "b"}, "must be a mapping of columns to files"),
        ({"format": "conll", "header": ("a", "a")}, "`header` names a column twice"),
    ],
)
def test_contradictory_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FileSettings(source="a", **settings)


def squad(*questions: dict[str, Any]) -> dict[str, Any]:
    return {"version": "2", "data": [{"title": "T", "paragraphs": [{"context": "A cat sat.", "qas": list(questions)}]}]}


def test_squad_is_flattened(tmp_path: Path) -> None:
    answer = {"text": "cat", "answer_start": 2}
    first = {"id": 1, "question": "Who?", "answers": [answer, answer]}
    second = {"id": "b", "question": "Why?", "is_impossible": True, "answers": [], "plausible_answers": [answer]}
    path = write_file(tmp_path / "a.json", json.dumps(squad(first, second)))
    same = {"title": "T", "context": "A cat sat."}
    assert rows_of(path) == [
        {"id": "1", **same, "question": "Who?", "answers": [answer, answer], "is_impossible": False},
        {"id": "b", **same, "question": "Why?", "answers": [], "is_impossible": True},
    ]
    plain = write_file(tmp_path / "b.json", json.dumps({"data": [{"text": "a"}]}))
    assert rows_of(plain) == [{"text": "a"}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (squad({"id": 1}), "data[0].paragraphs[0].qas[0] has no 'question'"),
        (squad({"question": "q", "answers": [{"text": "cat"}]}), "qas[0].answers[0] has no 'answer_start'"),
        (squad({"question": "q", "answers": [3]}), "qas[0].answers[0] is not an object but int"),
        ({"data": [{"paragraphs": [{"context": 1}]}]}, "data[0].paragraphs[0] has int for 'context'"),
        ({"data": [{"paragraphs": []}, {"title": "T"}]}, "data[1] has no 'paragraphs'"),
    ],
)
def test_incomplete_squad_file_is_refused(tmp_path: Path, value: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        rows_of(write_file(tmp_path / "a.json", json.dumps(value)))
    assert "has SQuAD's layout, but data[" in str(caught.value)
    assert message in str(caught.value)


def test_class_ids_of_a_hub_set_become_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    names = datasets.ClassLabel(names=["O", "B-PER"])
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(names)})
    table = datasets.Dataset.from_dict({"tokens": [["a", "Bo"], []], "tags": [[0, 1], []]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_kwargs: table)
    rows = read(FileSettings(source="hf:some/set"), "data.train", SILENT)
    assert rows == [{"tokens": ["a", "Bo"], "tags": ["O", "B-PER"]}, {"tokens": [], "tags": []}]
