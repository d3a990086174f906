"""Rows of workbooks: what office programs save is read as the same table in csv would be."""

from __future__ import annotations

import datetime
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from conftest import Listener, make_rows, write_recipe

from pefttools import cli
from pefttools.data.reading import read
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError

CONTENT = """<?xml version="1.0"?>
<office:document-content xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
 xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0"
 xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0">
<office:body><office:spreadsheet><table:table table:name="Sheet1">{}</table:table></office:spreadsheet></office:body>
</office:document-content>"""


MANIFEST = """<?xml version="1.0"?>
<manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"/>"""


def workbook(path: Path, *sheets: Sequence[Sequence[Any]], names: Sequence[str] = ("first", "second")) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for name, lines in zip(names, sheets, strict=False):
        sheet = book.create_sheet(name)
        for line in lines:
            sheet.append(list(line))
    book.save(path)
    return path


def rows_of(path: Path, reporter: Listener | None = None, **settings: Any) -> list[dict[str, Any]]:
    return [*read(FileSettings(source=str(path), **settings), "data.train", reporter or Listener())]


def test_cells_become_values(tmp_path: Path) -> None:
    day = datetime.datetime(2026, 3, 1)
    lines = [
        ["text", "label", "number", "day", "moment", "is"],
        ["ä 中文 ", "a", 7, day, day.replace(hour=5), True],
        [None] * 6,
        ["=1+1 is no formula", 2, 0.5, None, None, False],
        ["x"],
    ]
    path = workbook(tmp_path / "rows.xlsx", lines[:3], lines)
    sheet = openpyxl.load_workbook(path)
    sheet["second"]["A4"].data_type = "s"
    sheet.save(path)
    assert rows_of(path, sheet="second") == [
        {
            "text": "ä 中文 ",
            "label": "a",
            "number": 7,
            "day": "2026-03-01",
            "moment": "2026-03-01T05:00:00",
            "is": True,
        },
        {"text": "=1+1 is no formula", "label": 2, "number": 0.5, "day": None, "moment": None, "is": False},
        {"text": "x", "label": None, "number": None, "day": None, "moment": None, "is": None},
    ]


def test_the_first_filled_sheet_is_read_with_a_warning_about_others(tmp_path: Path) -> None:
    table = [["text", "label"], ["a", "b"]]
    reporter = Listener()
    assert rows_of(workbook(tmp_path / "a.xlsx", [], table), reporter) == [{"text": "a", "label": "b"}]
    assert not reporter.warnings
    assert rows_of(workbook(tmp_path / "b.xlsx", table, table), reporter) == [{"text": "a", "label": "b"}]
    assert "has the sheets 'first', 'second'; 'first' was read; set `sheet` to read another" in str(reporter.warnings)


def test_header_replaces_a_missing_line_of_names(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", [["a", "b"], ["c", "d"]])
    expected = [{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]
    assert rows_of(path, header=("text", "label")) == expected
    named = workbook(tmp_path / "b.xlsx", [["text", "label"], ["a", "b"], ["c", "d"]])
    assert rows_of(named, header=("text", "label")) == expected


def test_open_document(tmp_path: Path) -> None:
    def line(*cells: str) -> str:
        texts = (f'<table:table-cell office:value-type="string"><text:p>{c}</text:p></table:table-cell>' for c in cells)
        return f"<table:table-row>{''.join(texts)}</table:table-row>"

    with zipfile.ZipFile(tmp_path / "rows.ods", "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr("META-INF/manifest.xml", MANIFEST)
        archive.writestr("content.xml", CONTENT.format(line("text", "label") + line("a", "b")))
    assert rows_of(tmp_path / "rows.ods") == [{"text": "a", "label": "b"}]


def test_a_formula_without_result_is_no_value(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", [["text", "label"], ["a", "b"], ["#N/A", "b"]])
    book = openpyxl.load_workbook(path)
    book["first"]["A3"].data_type = "e"
    book.save(path)
    assert rows_of(path)[1] == {"text": None, "label": "b"}


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ([["a", "a"], ["b", "c"]], {}, "has two columns with the name 'a'"),
        ([["a", "b"], ["b", "c", "d"]], {}, "line 2: has the value 'd' in a column without a name"),
        ([["a", "b"], ["b", "c"]], {"sheet": "frist"}, "unknown sheet 'frist'; did you mean 'first'"),
        ([], {}, "is empty"),
        ([["a", "b"]], {}, "is empty"),
        ([["a", "b"], ["b", "c"]], {"separator": ","}, "`separator` is for csv and tsv files, but this is workbook"),
    ],
)
def test_bad_workbooks(tmp_path: Path, lines: list[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows_of(workbook(tmp_path / "rows.xlsx", lines), **settings)


def test_hidden_sheets_are_passed_over(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", [["note"], ["do not read"]], [["text", "label"], ["a", "b"]])
    book = openpyxl.load_workbook(path)
    book["first"].sheet_state = "hidden"
    book.save(path)
    assert rows_of(path) == [{"text": "a", "label": "b"}]
    assert rows_of(path, sheet="first") == [{"note": "do not read"}]


def test_formulas_without_stored_values_are_told(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", [["text", "label"], ["a", '="b"'], ["c", '="d"']])
    reporter = Listener()
    assert rows_of(path, reporter)[0] == {"text": "a", "label": None}
    assert "has no value in the column 'label'. If its cells are formulas" in str(reporter.warnings)


def test_a_sheet_without_a_line_of_names_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = workbook(tmp_path / "a.xlsx", [["my printer does not start", "repair"], ["where is my parcel", "repair"]])
    assert cli.run(["new", str(path), "--out", str(tmp_path / "a.yaml")]) == 2
    assert "looks like a row, not like column names; if it is a row, add --header" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\na,b\n", "it is a text file; set `format` to csv"),
        (b"", "it is empty"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "it has a password, or is an old xls file"),
    ],
)
def test_what_a_file_is_instead_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.xlsx").write_bytes(content)
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path / "a.xlsx")


def test_damaged_workbooks_are_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "rows.xlsx", [["text", "label"], *[[f"text {i}", "b"] for i in range(300)]])
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[: len(whole) // 2], b"text,label\na,b\n", b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"rows\.xlsx"):
            rows_of(path)


def test_sheet_is_for_workbooks_only(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    with pytest.raises(UserError, match="`sheet` is for workbooks, but this is csv"):
        rows_of(tmp_path / "rows.csv", sheet="first")


@pytest.mark.slow
def test_train_and_predict_from_a_workbook(
    bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(120)
    path = workbook(tmp_path / "rows.xlsx", [["text", "label"], *[[row["text"], row["label"]] for row in rows]])
    recipe = write_recipe(
        tmp_path / "recipe.yaml", bases("bert"), path, task={"name": "text_classification"}, train={"epochs": 1}
    )
    assert cli.run(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    assert sum(json.loads((tmp_path / "run/result.json").read_text())["data"]["rows"].values()) == 120
    capsys.readouterr()
    assert cli.run(["predict", str(tmp_path / "run"), str(path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 120
