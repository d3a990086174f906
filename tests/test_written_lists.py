"""Lists written as text, label vectors, tags in other orders, and offsets of flat answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pefttools.data import conll, tags, written_lists
from pefttools.data.reading import read
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.reporter import SILENT
from pefttools.tasks.question_answering import QuestionAnswering
from pefttools.tasks.text_classification import TextClassification
from pefttools.tasks.token_classification import TokenClassification


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['a', 'b']", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("['a' 'b']", ["a", "b"]),
        ("['a'\n 'b' \"c's\"]", ["a", "b", "c's"]),
        ("[0 1 1]", [0, 1, 1]),
        ("[0. 1.]", [0, 1]),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("('a', 'b')", ["a", "b"]),
        ("{'b', 'a'}", ["a", "b"]),
        ("[]", []),
        ("{'text': array(['x'], dtype=object), 'answer_start': array([4])}", {"text": ["x"], "answer_start": [4]}),
        ("a [b] c", None),
        ("[ an aside ]", None),
    ],
)
def test_lists_written_as_text_are_parsed(text: str, value: Any) -> None:
    assert written_lists.parsed(text) == value


@pytest.mark.parametrize("text", ["['a' ... 'b']", "['it's', 'b']"])
def test_invalid_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"list"):
        written_lists.parsed(text)


def test_multi_labels_are_read_from_every_notation() -> None:
    task = TextClassification(multi_label=True)
    for value in ("['b', 'a']", '["a", "b"]', "['a' 'b']", "a|b", ["b", "a"]):
        assert task.read({"text": "x", "label": value})["label"] == ["a", "b"]
    assert task.read({"text": "x", "label": "[]"})["label"] == []


@pytest.mark.parametrize(
    "value",
    [
        [1, 0, 1], "[1, 0, 1]", "[1 0 1]", [0.0, 0.0, 1.0], [True, False, False], ["0", "1", "1"], "1 0 1", "1,0,1",
        "1|0|1", "0.0; 0.0; 1.0",
    ],
)  # fmt: skip
def test_label_vectors_require_task_labels(value: Any) -> None:
    with pytest.raises(ValueError, match=r"but no class names; list the names in task\.labels"):
        TextClassification(multi_label=True).read({"text": "x", "label": value})
    named = TextClassification(multi_label=True, labels=("toxic", "threat", "insult"))
    assert named.read({"text": "x", "label": [1, 0, 1]})["label"] == ["insult", "toxic"]
    with pytest.raises(ValueError, match="list as label"):
        TextClassification().read({"text": "x", "label": value})


def test_label_vector_of_two_is_read_with_two_task_labels() -> None:
    named = TextClassification(multi_label=True, labels=("toxic", "threat"))
    assert [named.read({"text": "x", "label": v})["label"] for v in ([1, 0], [0, 1], "[1, 0]")] == [
        ["toxic"], ["threat"], ["toxic"],
    ]  # fmt: skip
    numbers = TextClassification(multi_label=True, labels=("0", "1"))
    assert numbers.read({"text": "x", "label": [1, 0]})["label"] == ["0", "1"]


@pytest.mark.parametrize("value", [{"a": 1, "b": 0, "c": True}, '{"a": 1, "b": 0, "c": 1.0, "d": null}'])
def test_mappings_of_classes_to_0_and_1_are_read(value: Any) -> None:
    assert TextClassification(multi_label=True).read({"text": "x", "label": value})["label"] == ["a", "c"]
    with pytest.raises(ValueError, match="has a label that is not a single text"):
        TextClassification().read({"text": "x", "label": value})
    with pytest.raises(ValueError, match=r"has the value 0\.9 for the label"):
        TextClassification(multi_label=True).read({"text": "x", "label": {"a": 0.9}})


@pytest.mark.parametrize("value", ["['a', 'b']", "[a, b]"])
def test_list_as_single_label_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"set task\.multi_label=true"):
        TextClassification().read({"text": "x", "label": value})


def test_a_list_without_quotes_is_refused() -> None:
    with pytest.raises(ValueError, match="has a list without quotes as labels"):
        TextClassification(multi_label=True).read({"text": "x", "label": "[a, b]"})
    assert TextClassification().read({"text": "x", "label": "[NULL]"})["label"] == "[NULL]"
    assert TextClassification().read({"text": "x", "label": "1,0"})["label"] == "1,0"


def test_token_lists_written_by_pandas_are_read() -> None:
    row = TokenClassification().read({"tokens": "['Ann', 'left', '.']", "tags": "['B-PER' 'O' 'O']"})
    assert row == {"tokens": ["Ann", "left", "."], "tags": ["B-PER", "O", "O"]}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["PER-B", "PER-I", "O"], ["B-PER", "I-PER", "O"]),
        (["B_PER", "O"], ["B-PER", "O"]),
        (["PER_S", "O"], ["S-PER", "O"]),
        (["B-PER", "I-B"], ["B-PER", "I-B"]),
        (["NN", "VB-I"], ["NN", "VB-I"]),
        (["O"], ["O"]),
    ],
)
def test_prefixes_at_the_end_of_tags_are_moved_first(found: list[str], expected: list[str]) -> None:
    assert tags.with_prefix_first(found) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Ann B-PER\nleft\tO\n\nBo\tB-PER\nran O\n",
        "O\tleft\nB-PER\tAnn\n",
        "-DOCSTART- O\n\nAnn\u00a0B-PER\nleft  O\n",
    ],
)
def test_conll_column_order_is_detected(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.bio"
    file.write_text(text, "utf-8")
    rows = read(FileSettings(source=str(file)), "data.train", SILENT)
    pairs = {(token, tag) for row in rows for token, tag in zip(row["tokens"], row["tags"], strict=True)}
    assert {("Ann", "B-PER"), ("left", "O")} <= pairs


def test_conllu_is_read() -> None:
    line = "{}\t{}\t_\t{}\t_\t_\t0\troot\t_\t_"
    lines = [
        "# text = du gehst",
        line.format("1-2", "dus", "_"),
        line.format(1, "du", "PRON"),
        line.format(2, "gehst", "VERB"),
    ]
    (row,) = conll.rows(lines, None, "x")
    assert (row["tokens"], row["tags"]) == (["du", "gehst"], ["PRON", "VERB"])


CONTEXT = "  Ann beat Bea; Ann won."


def flat(**values: Any) -> Any:
    return QuestionAnswering().read({"question": "Who?", "context": CONTEXT, **values}).get("answers")


def test_flat_answer_must_be_at_its_offset() -> None:
    for start in (16, "16", "16.0", 16.0):
        assert flat(answer="Ann", answer_start=start) == [{"text": "Ann", "answer_start": 16}]
    assert flat(answers="Ann", answer_start=2) == [{"text": "Ann", "answer_start": 2}]
    assert flat(answers="{'text': ['Ann'], 'answer_start': [16]}") == [{"text": "Ann", "answer_start": 16}]
    for none in (
        {"answer": "", "answer_start": -1},
        {"answer": None, "answer_start": None},
        {"answers": "{'text': [], 'answer_start': []}"},
    ):
        assert flat(**none) == []
    for wrong in (15, 0, -1):
        with pytest.raises(ValueError, match="count positions in characters"):
            flat(answer="Ann", answer_start=wrong)
    with pytest.raises(ValueError, match="not a whole number"):
        flat(answer="Ann", answer_start="x")


def test_rows_without_answers_are_refused() -> None:
    from pefttools.data.splitting import Splits

    row = QuestionAnswering().read({"question": "Who?", "context": CONTEXT})
    with pytest.raises(UserError, match=r"data\.columns\.answers"):
        QuestionAnswering().fit(Splits([row], [], []))


def test_detected_tag_scheme_is_noted() -> None:
    from pefttools.data.splitting import Splits

    row = TokenClassification().read({"tokens": "Ann left", "tags": "PER-B O"})
    splits = Splits([row], [], [])
    (note,) = TokenClassification().fit(splits).notes(splits)
    assert note == "tags are of the scheme bio; the first sentence as token/tag: Ann/B-PER left/O"
