"""Question answering: reading rows, windows over contexts, remarks, metrics, and a run."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from conftest import KEYS, WORDS, make_tokenizer, train_tiny, write_recipe, write_rows

from pefttools.data import spans
from pefttools.data.splitting import LeftOut, Splits
from pefttools.errors import UserError
from pefttools.tasks.question_answering import QuestionAnswering

CONTEXT = " ".join(WORDS)  # word0 to word39


def answer(first: int, last: int | None = None) -> dict[str, Any]:
    """The words `first` to `last` of the context as an answer."""
    text = " ".join(WORDS[first : (first if last is None else last) + 1])
    return {"text": text, "answer_start": f"{CONTEXT} ".index(f"{text} ")}


def row_of(*answers: dict[str, Any], question: str = "apple pear plum") -> dict[str, Any]:
    return QuestionAnswering().read({"question": question, "context": CONTEXT, "answers": list(answers)})


# rows


def test_answers_are_read_from_every_notation() -> None:
    task = QuestionAnswering()
    values = {"question": " what? ", "context": " a red fox, a fox", "id": 7, "title": None}
    row = {"question": " what? ", "context": " a red fox, a fox", "id": "7"}
    assert task.read(values) == row
    found = {**row, "answers": [{"text": "fox", "answer_start": 14}]}
    for answers in (
        [{"text": "fox", "answer_start": 14}],
        {"text": ["fox"], "answer_start": [14]},
        {"text": "fox", "answer_start": 14},
        [{"text": " fox", "answer_start": 13}],
        [{"text": "fox", "answer_start": 15}],  # the nearest occurrence is used
        [{"text": "fox", "answer_start": 99}],
        [{"text": "cat", "answer_start": 3}, {"text": "fox", "answer_start": 14}],  # only one of two is in the context
    ):
        assert task.read({**values, "answers": answers}) == found
    first = {**row, "answers": [{"text": "fox", "answer_start": 7}]}
    for answers in ("fox", ["fox"], [{"text": "fox"}], {"text": ["fox"]}, {"text": "fox", "answer_start": -4}):
        assert task.read({**values, "answers": answers}) == first
    none = {**row, "answers": []}
    for answers in ([], None, "", {"text": [], "answer_start": []}, [{"text": "", "answer_start": -1}]):
        assert task.read({**values, "answers": answers}) == none
    assert task.read({**values, "answers": ["fox"], "is_impossible": "True"}) == none
    assert task.read({**values, "answers": ["fox"], "is_impossible": False}) == first


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question": " "}, "has no question"),
        ({"question": None}, "has no question"),
        ({"context": ""}, "has no context"),
        ({"context": True}, "has a context that is not text: True"),
        ({"answers": 3}, "has answers that are neither texts nor a list of them: 3"),
        ({"answers": [{"answer_start": 3}]}, "has an answer without a text: {'answer_start': 3}"),
        ({"answers": [{"text": "a", "answer_start": "x"}]}, "has an answer_start that is not a whole number: 'x'"),
        ({"answers": {"text": ["a"], "answer_start": []}}, "has 1 answers but another number of answer_start: []"),
        ({"is_impossible": "maybe"}, "has an is_impossible that is neither true nor false: 'maybe'"),
    ],
)
def test_invalid_rows_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        QuestionAnswering().read({"question": "q", "context": "a b", "answers": ["a"], **values})
    assert not isinstance(error.value, LeftOut)


@pytest.mark.parametrize("answers", ["cat", [{"text": "cat", "answer_start": 0}], [{"text": "A", "answer_start": 0}]])
def test_an_answer_that_is_not_in_its_context_leaves_its_row_out(answers: Any) -> None:
    with pytest.raises(LeftOut, match="an answer that is not in its context"):
        QuestionAnswering().read({"question": "q", "context": "a b", "answers": answers})


# windows over contexts


def windows(row: dict[str, Any], limit: int = 24, stride: int = 4) -> dict[str, list[Any]]:
    """Three tokens of question, three special ones and, with 24, eighteen of context."""
    return QuestionAnswering(max_length=limit, stride=stride).encode([row], make_tokenizer())


def texts(encoded: dict[str, list[Any]], context: str = CONTEXT) -> list[str]:
    """The part of the context in each window."""
    pairs = zip(encoded["starts"], encoded["ends"], strict=True)
    return [context[min(s for s in starts if s >= 0) : max(ends)] for starts, ends in pairs]


def labelled(encoded: dict[str, list[Any]], context: str = CONTEXT) -> list[str | None]:
    """The text between the labels of every window, None for "not here"."""
    found = []
    for i, (first, last) in enumerate(encoded["labels"]):
        here = (first, last) != (encoded["not_here"][i],) * 2
        found.append(context[encoded["starts"][i][first] : encoded["ends"][i][last]] if here else None)
    return found


def test_windows_overlap_and_cover_the_context() -> None:
    encoded = windows(row_of(answer(2)))
    assert texts(encoded) == [" ".join(WORDS[a:b]) for a, b in ((0, 18), (14, 32), (28, 40))]
    assert encoded["row"] == [0, 0, 0]
    assert encoded["cut"] == [False] * 3
    assert encoded["num_targets"] == [1] * 3
    assert encoded["not_here"] == [0, 0, 0]
    ids = make_tokenizer().convert_ids_to_tokens(encoded["input_ids"][1])
    assert ids == ["[CLS]", "apple", "pear", "plum", "[SEP]", *WORDS[14:32], "[SEP]"]
    assert [s == spans.OUTSIDE for s in encoded["starts"][1]] == [True] * 5 + [False] * 18 + [True]


@pytest.mark.parametrize(
    ("gold", "found"),
    [
        (answer(0), ["word0", None, None]),  # the first word
        (answer(17), ["word17", "word17", None]),  # the last token of a window, and in the overlap
        (answer(14, 17), ["word14 word15 word16 word17", "word14 word15 word16 word17", None]),
        (answer(13, 14), ["word13 word14", None, None]),  # begins before the second window
        (answer(17, 18), [None, "word17 word18", None]),  # ends behind the first window
        (answer(20, 22), [None, "word20 word21 word22", None]),  # in the second only
        (answer(39), [None, None, "word39"]),  # the last word
        (answer(10, 20), [None, None, None]),  # longer than the overlap, so that no window contains it whole
    ],
)
def test_window_is_labeled_with_an_answer_that_it_contains_whole(gold: dict[str, Any], found: list[str | None]) -> None:
    assert labelled(windows(row_of(gold))) == found


def test_unanswerable_question_has_no_span_and_the_first_answer_is_used() -> None:
    assert labelled(windows(row_of())) == [None, None, None]
    assert labelled(windows(row_of(answer(3), answer(20)))) == ["word3", None, None]


def test_answer_within_a_word_is_labeled_as_the_word() -> None:
    context = "🦊 red 中文 word1, word2"
    row = QuestionAnswering().read(
        {"question": "apple", "context": context, "answers": [{"text": "ord1", "answer_start": 10}]}
    )
    encoded = QuestionAnswering().encode([row], make_tokenizer())
    assert labelled(encoded, context) == ["word1"]
    assert texts(encoded, context) == [context]


def test_long_questions_are_truncated_and_marked() -> None:
    long = " ".join(WORDS[:30])
    encoded = QuestionAnswering(max_length=24, stride=4).encode([row_of(answer(1), question=long)], make_tokenizer())
    assert make_tokenizer().convert_ids_to_tokens(encoded["input_ids"][0])[1:13] == WORDS[:12]
    assert set(encoded["cut"]) == {True}
    assert max(map(len, encoded["input_ids"])) == 24
    few = QuestionAnswering(max_question_length=2).encode([row_of(answer(1), question=long)], make_tokenizer())
    assert make_tokenizer().convert_ids_to_tokens(few["input_ids"][0])[:4] == ["[CLS]", "word0", "word1", "[SEP]"]


def test_large_stride_is_lowered_and_small_window_refused() -> None:
    assert texts(windows(row_of(answer(1)), stride=1000)) == texts(windows(row_of(answer(1)), stride=4))
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 8
    with pytest.raises(UserError, match="8 tokens have no room for a question and a context"):
        QuestionAnswering().encode([row_of(answer(1))], tokenizer)


def test_windows_have_their_row_number_and_need_no_answers() -> None:
    task = QuestionAnswering(max_length=24, stride=4)
    rows = [row_of(answer(1)), {"question": "apple", "context": "word1 word2"}, row_of(answer(2))]
    encoded = task.encode(rows, make_tokenizer())
    assert encoded["row"] == [0, 0, 0, 1, 2, 2, 2]
    assert "labels" not in encoded
    assert [len(s) == len(ids) for s, ids in zip(encoded["starts"], encoded["input_ids"], strict=True)] == [True] * 7


def test_a_tokenizer_without_cls_uses_its_first_token() -> None:
    tokenizer = make_tokenizer()
    tokenizer.cls_token = None
    encoded = QuestionAnswering().encode([row_of()], tokenizer)
    assert (encoded["not_here"], encoded["labels"]) == ([0], [[0, 0]])


# fitting, a sample, metrics and a run


def test_fit_detects_unanswerable_questions() -> None:
    some, none = row_of(answer(1)), row_of()
    assert QuestionAnswering().fit(Splits([some, none], [some], [])).unanswerable is True
    assert QuestionAnswering().fit(Splits([some], [some], [], spare=[none])).unanswerable is True
    fitted = QuestionAnswering().fit(Splits([some], [some, none], []))
    assert fitted.unanswerable is False
    (remark,) = fitted.remarks(Splits([some], [some, none], []), make_tokenizer())
    assert remark.startswith("1 of 2 validation questions have no answer")
    forced = QuestionAnswering(unanswerable=True).fit(Splits([some], [none], []))
    assert forced.remarks(Splits([some], [none], []), make_tokenizer()) == []
    with pytest.raises(UserError, match="no question has an answer"):
        QuestionAnswering().fit(Splits([none], [some], []))


def test_a_sample_shows_where_the_answer_is() -> None:
    encoded = windows(row_of(answer(20, 22)))
    rows = [{name: values[i] for name, values in encoded.items()} for i in range(2)]
    shown = [QuestionAnswering().shown(row, make_tokenizer()) for row in rows]
    assert shown[0].startswith("[CLS] apple pear plum [SEP] word0 word1")
    assert shown[0].endswith("\n-> tokens 0 to 0: not here")
    assert shown[1].endswith("\n-> tokens 11 to 13: word20 word21 word22")


def test_metrics_with_several_answers_and_none() -> None:
    task = QuestionAnswering()
    rows = [row_of(answer(1), answer(3)), row_of()]
    assert [task.reference(row) for row in rows] == [["word1", "word3"], []]
    assert task.reference({"question": "q", "context": "c"}) is None
    values = task.metrics([{"prediction": "word3"}, {"prediction": "word3"}], [task.reference(row) for row in rows])
    assert (values["f1"], values["no_answer_accuracy"]) == (0.5, 0.0)


@pytest.mark.slow
def test_a_run_learns_to_find_an_answer(tmp_path: Path, bases: Callable[[str], Path]) -> None:
    """The answer is the only tool among 30 words, in overlapping windows."""
    from pefttools.inference.prediction import predict_rows

    draw = random.Random(0)
    lines = []
    for _ in range(160):
        words = draw.choices(WORDS, k=30)
        position, tool = draw.randrange(30), draw.choice(KEYS["tool"])
        words[position] = tool
        answers = [{"text": tool, "answer_start": " ".join(words).index(tool)}]
        lines.append({"question": "apple", "context": " ".join(words), "answers": answers})
    lines.append({**lines[0], "context": "pear", "answers": [{"text": "nowhere", "answer_start": 0}]})
    rows = write_rows(tmp_path / "rows.jsonl", lines)
    task = {"name": "question_answering", "max_length": 24, "stride": 4}
    train = {"epochs": 3, "learning_rate": 0.003}
    recipe_file = write_recipe(tmp_path / "tiny.yaml", bases("bert"), rows, task=task, strategy="full", train=train)
    run, result = train_tiny(recipe_file, tmp_path / "run")
    assert result["data"]["left_out"]["an answer that is not in its context"] == 1
    assert result["test"]["f1"] > result["before"]["f1"] + 0.3
    context = f" {' '.join(WORDS)} a saw, {' '.join(WORDS)}"
    (prediction,) = predict_rows(run, [{"question": "apple", "context": context}])
    assert prediction["prediction"] == context[prediction["start"] : prediction["end"]] == "saw"
    table = pyarrow.parquet.read_table(run / "predictions.parquet").to_pylist()
    assert len(table) == result["data"]["rows"]["test"]
    assert table[0]["prediction"] == table[0]["nbest"][0]["text"]
