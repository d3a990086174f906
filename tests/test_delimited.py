"""csv and tsv files of users: every line is read into a row, or the file is refused with the line's number."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest
from conftest import Listener, losses, make_rows, train_tiny, write_csv

from pefttools.data.reading import read
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.recipe import recipes

LABELS = ("pos", "neg", "neu")


def table(folder: Path, name: str = "a.csv", sep: str = ",", **lines: str) -> Path:
    """400 lines under a header, some of them (`line52=…`, numbered as in the file) replaced."""
    made = [f"text{sep}label"] + [f"number {i} of them{sep}{LABELS[i % 3]}" for i in range(400)]
    for name_, line in lines.items():
        made[int(name_.removeprefix("line")) - 1] = line
    return write_file(folder / name, "\n".join(made) + "\n")


def write_file(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows_of(path: Path, listener: Listener | None = None, **settings: Any) -> list[dict[str, Any]]:
    return read(FileSettings(source=str(path), **settings), "data.train", listener or Listener())


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(path, **settings)
    message = str(caught.value)
    for word in ("pandas", "parser", "tokeniz", "_csv", "C error", "dtype"):
        assert word not in message
    return message


UNBALANCED = {"line52": '"so they call it{}pos', "line152": 'as he called it"{}neg'}


def test_quotes_in_a_tsv_file_are_text(tmp_path: Path) -> None:
    lines = {name: line.format("\t") for name, line in UNBALANCED.items()}
    rows = rows_of(table(tmp_path, "a.tsv", "\t", **lines))
    assert len(rows) == 400
    assert rows[50] == {"text": '"so they call it', "label": "pos"}
    assert len(rows_of(table(tmp_path, "b.tsv", "\t", line390='"never closed\tneu'))) == 400
    message = refusal(table(tmp_path, "a.tsv", "\t", **lines), quotes=True)
    assert "a.tsv line 52: the quote that opens here closes in line 152" in message


@pytest.mark.parametrize("sep", [",", ";", "|", "\t"])
def test_unbalanced_quotes_are_refused_instead_of_swallowing_rows(tmp_path: Path, sep: str) -> None:
    lines = {name: line.format(sep) for name, line in UNBALANCED.items()}
    path = table(tmp_path, sep=sep, **lines)
    assert "a.csv line 52: the quote that opens here closes in line 152" in refusal(path)
    assert len(rows_of(path, quotes=False)) == 400


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"line2": '"open,pos', "line4": 'close",neg'}, "line 2: the quote that opens here closes in line 4"),
        ({"line9": '"open,pos', "line10": 'close",neg'}, "line 9: the quote that opens here closes in line 10"),
        ({"line7": '"so" they say,pos'}, "line 7: a field begins with a quote, but text follows"),
        ({"line7": r'"a \"word\" here",pos'}, "or set `escape`"),
        ({"line399": '"open,pos'}, "line 399: the quote that opens here is never closed"),
        ({"line8": 'text,"neg', "line30": 'text,neg"'}, "line 8: the quote that opens here closes in line 30"),
        ({"line202": "a comma, too many,pos"}, "line 202 has 3 columns but the header line has 2 (text, label)"),
        ({"line202": "none"}, "line 202 has 1 column but the header line has 2"),
        ({f"line{i}": "none" for i in range(5, 11)}, "3 more lines cannot be read"),
    ],
)
def test_unreadable_line_is_refused_with_its_number(tmp_path: Path, lines: dict[str, str], message: str) -> None:
    assert message in refusal(table(tmp_path, **lines))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('"Dear John,\nthanks",pos', "Dear John,\nthanks"),
        ('"one, two\n\nthree, four, five\n",pos', "one, two\n\nthree, four, five\n"),
        ('"f(a,b)\nreturn x",pos', "f(a,b)\nreturn x"),
        ('"a ""quoted"" word, and",pos', 'a "quoted" word, and'),
        ('5" pipe,pos', '5" pipe'),
    ],
)
def test_quoted_text_may_contain_separators_and_line_breaks(tmp_path: Path, line: str, text: str) -> None:
    listener = Listener()
    rows = rows_of(table(tmp_path, line52=line, line99="last,pos"), listener)
    assert (len(rows), rows[50], rows[97]) == (400, {"text": text, "label": "pos"}, {"text": "last", "label": "pos"})
    lines = line.count("\n")
    assert listener.notes == (
        [f"{tmp_path}/a.csv: 1 row has a text of several lines, in lines 52 to {52 + lines}"] if lines else []
    )


def test_escape_setting_reads_escaped_quotes_and_separators(tmp_path: Path) -> None:
    path = table(tmp_path, line7=r'"a \"word\", here",pos', line8=r"a comma\, here,pos")
    rows = rows_of(path, escape="\\")
    assert [row["text"] for row in rows[5:7]] == ['a "word", here', "a comma, here"]


@pytest.mark.parametrize(
    ("name", "text", "expected", "note"),
    [
        ("a.csv", "text;label\nwell, no;neg\r\nb;pos", {"text": "well, no", "label": "neg"}, "semicolons"),
        ("a.csv", "text|label\na|b\n", {"text": "a", "label": "b"}, "vertical bars"),
        ("a.csv", "text\tlabel\na, b\tc\n", {"text": "a, b", "label": "c"}, "tabs"),
        ("a.tsv", "text,label\na,b\n", {"text": "a", "label": "b"}, "commas"),
        ("a.csv", "text;score\na, b;1,5\nc;2,5\n", {"text": "a, b", "score": "1,5"}, "semicolons"),
        ("a.csv", '"Satz, roh";b\n"x; y";z\n', {"Satz, roh": "x; y", "b": "z"}, "semicolons"),
        ("a.csv", "sep=;\ntext;label\na, b;c\n", {"text": "a, b", "label": "c"}, None),
        ("a.csv", "text, label\na, neg\nb, pos\n", {"text": "a", "label": "neg"}, None),
        ("a.csv", 'text, label\n"a, b", "c"\n', {"text": "a, b", "label": "c"}, None),
        ("a.csv", "text ,\tlabel\na,b\n", {"text": "a", "label": "b"}, None),
        ("a.csv", ",text,label,\n0,a,b,\n", {"column1": "0", "text": "a", "label": "b"}, None),
        ("a.csv", "\n\r\ntext,label\n\n  \n,b\n", {"text": "", "label": "b"}, None),
        ("a.csv", "text,label\r    a,b\r", {"text": "    a", "label": "b"}, None),
        ("a.csv", 'text\n"one, two"\n', {"text": "one, two"}, None),
    ],
)
def test_separator_is_detected(tmp_path: Path, name: str, text: str, expected: dict[str, str], note: str) -> None:
    listener = Listener()
    assert rows_of(write_file(tmp_path / name, text), listener)[0] == expected
    expected_note = f"{tmp_path / name}: its columns were split at {note}; set `separator` to use another character"
    assert listener.notes == ([expected_note] if note else [])


def test_separator_setting(tmp_path: Path) -> None:
    listener = Listener()
    path = write_file(tmp_path / "a.csv", "text:label\na,b:c\n")
    assert rows_of(path, listener, separator=":") == [{"text": "a,b", "label": "c"}]
    assert rows_of(write_file(tmp_path / "b.csv", "a\tb\n1\t2\n"), listener, separator="tab") == [{"a": "1", "b": "2"}]
    assert not listener.notes
    for separator in ("::", "", '"'):
        with pytest.raises(ValueError, match="must be one character"):
            FileSettings(source="a.csv", separator=separator)
    assert "`separator` is for csv and tsv files" in refusal(write_file(tmp_path / "a.jsonl", "{}"), separator=";")
    unnamed = write_file(tmp_path / "c.csv", "neg;well, no\npos;yes, it is\n")
    assert rows_of(unnamed, listener, header=("label", "text"))[0] == {"label": "neg", "text": "well, no"}


def test_column_names_come_from_the_header_line_or_setting(tmp_path: Path) -> None:
    message = refusal(write_file(tmp_path / "a.csv", "text,label,text\na,b,c\n"))
    assert "line 1: has two columns with the name 'text'" in message
    listener = Listener()
    both = write_file(tmp_path / "b.csv", "Text,Label\na,b\n")
    assert rows_of(both, listener, header=("text", "label")) == [{"text": "a", "label": "b"}]
    assert "its first line equals the names in `header`" in listener.warnings[0]
    assert "line 1 has 3 columns but `header` names 2" in refusal(
        write_file(tmp_path / "c.csv", "a,b,c\n"), header=("text", "label")
    )


MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.txt", "a.conll"])
@pytest.mark.parametrize("encoding", MARKED)
def test_byte_order_mark_sets_the_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    texts = {".csv": "text\ncafé ł\n", ".tsv": "text\ncafé ł\n", ".txt": "café ł\n", ".conll": "café\n"}
    text = texts.get(Path(name).suffix, '{"text": "café ł"}')
    rows = rows_of(write_file(tmp_path / name, MARKED[encoding] + text.encode(encoding)))
    assert rows in ([{"text": "café ł"}], [{"tokens": ["café"]}])


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Привет мир, пока", "cp1251"),
        ("Zażółć gęślą jaźń", "cp1250"),
        ("Labdarúgás, õt üzenet", "cp1252"),
        ("今天天氣很好，我們去公園散步", "big5"),
        ("こんにちは", "shift_jis"),
        ("今日は天気がいいです", "euc_jp"),
        ("오늘 날씨가 좋습니다 그래서 공원에 갑니다", "euc_kr"),
    ],
)
def test_unknown_encoding_is_refused_instead_of_guessed(tmp_path: Path, text: str, encoding: str) -> None:
    path = write_file(tmp_path / "a.txt", ("a long line of plain words to begin with\n" * 20 + text).encode(encoding))
    assert "is not utf-8 (line 21); set `encoding`" in refusal(path)
    assert rows_of(path, encoding=encoding)[-1] == {"text": text}
    assert "contains zero bytes" in refusal(write_file(tmp_path / "b.csv", "text,label\n".encode("utf-16-le")))


def test_cp1252_is_read_with_a_warning(tmp_path: Path) -> None:
    listener = Listener()
    text = "text;label\nplain;a\nun café à la carte, 5 €;b\n"
    rows = rows_of(write_file(tmp_path / "a.csv", text.encode("cp1252")), listener)
    assert rows[1] == {"text": "un café à la carte, 5 €", "label": "b"}
    assert "is not UTF-8; it was read as cp1252, in which line 3 is 'un café à la carte, 5 €;b'" in listener.warnings[0]
    mixed = write_file(tmp_path / "b.csv", "text;label\nâ;a\n".encode() + b"caf\xe9;b\n")
    assert "byte 0xe9 at position 19 is not utf-8 (line 3)" in refusal(mixed)


def test_gb18030_is_read_with_a_warning(tmp_path: Path) -> None:
    """What Excel writes in China."""
    listener = Listener()
    text = "内容,部门\n联通,设备\n打印机一直卡纸,设备\n发票金额和 PO 123 对不上。,财务\n"
    rows = rows_of(write_file(tmp_path / "a.csv", text.encode("gbk")), listener)
    assert rows[2] == {"内容": "发票金额和 PO 123 对不上。", "部门": "财务"}
    assert "was read as gb18030, in which its first Chinese line is '内容,部门'" in listener.warnings[0]
    rare = "".join(chr(0x4E00 + 97 * i) for i in range(150))  # not a text
    assert "set `encoding`" in refusal(write_file(tmp_path / "b.csv", f"text,label\n{rare},b\n".encode("gb18030")))


@pytest.mark.slow
def test_csv_of_a_spreadsheet_gives_the_same_run(recipe_file: Path, tmp_path: Path) -> None:
    rows = make_rows(120, seed=4)
    usual = write_csv(tmp_path / "a.csv", rows)
    (tmp_path / "b.csv").write_bytes(usual.read_text("utf-8").replace(",", "; ").encode("utf-16"))
    runs = [
        train_tiny(recipe_file, tmp_path / name, f"data.train={tmp_path / name}.csv", "train.epochs=1")
        for name in ("a", "b")
    ]
    assert runs[0][1]["data"]["digest"] == runs[1][1]["data"]["digest"]
    assert losses(runs[0][0]) == losses(runs[1][0])


@pytest.mark.parametrize(
    "text",
    [
        "".join(f'"{LABELS[i % 3]}","number {i}"\n' for i in range(40)),
        "".join(f"{i / 2},a sentence of some words,{i}\n" for i in range(40)),
        "A man is playing the flute.;A man plays.;x\nA dog runs.;A cat runs.;y\n",
    ],
)
def test_file_without_header_line_is_refused_with_the_setting_to_use(
    recipe_file: Path, tmp_path: Path, text: str
) -> None:
    path = write_file(tmp_path / "a.csv", text)
    with pytest.raises(UserError, match=r"looks like a row, not like column names; if it is a row, set data\.train"):
        train_tiny(recipe_file, tmp_path / "run", f"data.train={path}")
    assert not (tmp_path / "run").exists()
    named = ["data.train.header=[label, text]"] if "pos" in text else ["data.train.header=[a, text, label]"]
    assert recipes.load(str(recipe_file), [f"data.train={path}", *named]).recipe.data.train.header
