"""Files that are easily misread: each is read as intended, reported, or refused with what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Listener

from pefttools.data import conll, tags
from pefttools.data.loading import load_rows
from pefttools.data.reading import read
from pefttools.data.settings import DataSettings, FileSettings
from pefttools.errors import UserError
from pefttools.tasks.text_classification import TextClassification
from pefttools.tasks.token_classification import TokenClassification

LINES = [f"text {i}\t{'ab'[i % 2]}" for i in range(8)]
ROWS = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(8)]


def rows_of(path: Path, content: str, **settings: Any) -> tuple[list[Mapping[str, Any]], Listener]:
    path.write_text(content)
    listener = Listener()
    return list(read(FileSettings(source=str(path), **settings), "data.train", listener)), listener


def test_repeated_header_line_is_not_a_row(tmp_path: Path) -> None:
    content = "\n".join(["text\tlabel", *LINES[:4], "text\tlabel", *LINES[4:]])
    for name in ("rows.tsv", "rows.csv"):
        rows, listener = rows_of(tmp_path / name, content if name.endswith("tsv") else content.replace("\t", ","))
        assert rows == ROWS
        assert listener.warnings[0].endswith(
            f"{name}: the header line occurs 2 times; its repeats were not read as rows"
        )


def test_quoted_header_of_a_tsv_file_needs_the_quotes_setting(tmp_path: Path) -> None:
    content = "\n".join('"' + line.replace("\t", '"\t"') + '"' for line in ["text\tlabel", *LINES])
    with pytest.raises(UserError, match=r"rows.tsv line 1: its names are in quotes.*set `quotes: true`"):
        rows_of(tmp_path / "rows.tsv", content)
    assert rows_of(tmp_path / "rows.tsv", content, quotes=True)[0] == ROWS
    assert list(rows_of(tmp_path / "rows.tsv", content, quotes=False)[0][0]) == ['"text"', '"label"']


def test_texts_in_quotes_in_a_tsv_file_are_reported(tmp_path: Path) -> None:
    rows, listener = rows_of(tmp_path / "rows.tsv", "\n".join(["text\tlabel", *LINES, '"he said ""hi"""\ta']))
    assert rows[-1]["text"] == '"he said ""hi"""'
    assert "1 rows have a text in quotes" in listener.warnings[0]
    assert not rows_of(tmp_path / "rows.tsv", "\n".join(["text\tlabel", *LINES, '"he said\ta']))[1].warnings


def test_json_file_with_two_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lists of objects under several keys, 'data', 'more'"):
        rows_of(tmp_path / "rows.json", json.dumps({"data": ROWS[:4], "more": ROWS[4:]}))
    assert rows_of(tmp_path / "rows.json", json.dumps({"version": [1], "data": ROWS}))[0] == ROWS


def test_folders_of_tables_are_not_read_as_classes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "rows" / name).mkdir(parents=True)
        (tmp_path / "rows" / name / "part.csv").write_text("text,label\nx,a\ny,b\n")
    source = FileSettings(source=str(tmp_path / "rows"))
    with pytest.raises(UserError, match=r"its folders contain tables, such as a.part\.csv; select them by a pattern"):
        list(read(source, "data.train", Listener()))
    pattern = FileSettings(source=f"{tmp_path}/rows/*/*.csv")
    assert len(list(read(pattern, "data.train", Listener()))) == 4


def test_file_with_one_column_is_refused_with_the_separator_setting(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("\n".join(line.replace("\t", "^") for line in ["text\tlabel", *LINES]))
    settings = DataSettings(train=FileSettings(source=str(tmp_path / "rows.csv")))
    with pytest.raises(UserError, match=r"its lines have one column; set data\.train\.separator"):
        load_rows("train", settings, TextClassification(), {})  # type: ignore[arg-type]


def test_conll_token_column_is_found_among_numbers_and_tags() -> None:
    numbered = ["1\tAnn\tB-PER", "2\tleft\tO", "", "1\tBea\tB-PER", "2\tLee\tI-PER", "3\tcame\tO"]
    assert [row["tokens"] for row in conll.rows(numbered, None, "f")] == [["Ann", "left"], ["Bea", "Lee", "came"]]
    first = ["B-PER Ann NNP X", "O left VBD X", "I-PER Lee NNP X"]
    assert conll.rows(first, None, "f")[0] == {
        "tags": ["B-PER", "O", "I-PER"], "tokens": ["Ann", "left", "Lee"], "column3": ["NNP", "VBD", "NNP"],
        "column4": ["X", "X", "X"],
    }  # fmt: skip
    assert conll.rows(["7 O", "8 B-X"], None, "f")[0]["tokens"] == ["7", "8"]


@pytest.mark.parametrize("mark", [",", "; ", "|"])
def test_tags_in_one_text_are_refused(mark: str) -> None:
    with pytest.raises(ValueError, match="has tags that are separated by"):
        TokenClassification().read({"tokens": mark.join(["Ann", "left"]), "tags": [mark.join(["B-PER", "O"])]})
    assert TokenClassification().read({"tokens": ["Ann"], "tags": ["B-PER"]})["tags"] == ["B-PER"]


def test_tags_of_another_notation_are_detected() -> None:
    assert tags.almost_prefixed(["O", "B.PER", "I.PER"]) == ["B.PER", "I.PER"]
    assert tags.almost_prefixed(["o", "b-per"]) == ["b-per"]
    assert tags.almost_prefixed(["NOUN", "VERB", "B-x"]) == []
    assert tags.almost_prefixed(["O"]) == []
