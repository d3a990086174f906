"""Question answering: contexts into windows, windows into answers, and SQuAD's exact match and F1."""

from __future__ import annotations

import collections
import json
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet
import pytest
import torch
import yaml
from conftest import KEYS, WORDS, make_tokenizer, train_tiny

from pefttools.data import spans
from pefttools.data.splitting import LeftOut, Splits
from pefttools.errors import UserError
from pefttools.metrics.squad import Metric
from pefttools.tasks.question_answering import QuestionAnswering

CONTEXT = " ".join(WORDS)  # word0 to word39
LOW = -30.0


def answer(first: int, last: int | None = None) -> dict[str, Any]:
    """The words from one to another of the context, as an answer."""
    text = " ".join(WORDS[first : (first if last is None else last) + 1])
    return {"text": text, "answer_start": f"{CONTEXT} ".index(f"{text} ")}


def row_of(*answers: dict[str, Any], question: str = "apple pear plum") -> dict[str, Any]:
    return QuestionAnswering().read({"question": question, "context": CONTEXT, "answers": list(answers)})


# rows


def test_every_form_of_answers_is_read() -> None:
    task = QuestionAnswering()
    values = {"question": " what? ", "context": " a red fox, a fox", "id": 7, "title": None}
    row = {"question": "what?", "context": " a red fox, a fox", "id": "7"}
    assert task.read(values) == row
    found = {**row, "answers": [{"text": "fox", "answer_start": 14}]}
    for answers in (
        [{"text": "fox", "answer_start": 14}],
        {"text": ["fox"], "answer_start": [14]},
        {"text": "fox", "answer_start": 14},
        [{"text": " fox", "answer_start": 13}],
        [{"text": "fox", "answer_start": 15}],  # the nearest place it is at
        [{"text": "fox", "answer_start": 99}],
        [{"text": "cat", "answer_start": 3}, {"text": "fox", "answer_start": 14}],  # one of two is there
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
    ("values", "said"),
    [
        ({"question": " "}, "has no question"),
        ({"question": None}, "has no question"),
        ({"context": ""}, "has no context"),
        ({"context": 3}, "has a context that is no text: 3"),
        ({"answers": 3}, "has answers that are neither texts nor a list of them: 3"),
        ({"answers": [{"answer_start": 3}]}, "has an answer without a text: {'answer_start': 3}"),
        ({"answers": [{"text": "a", "answer_start": "x"}]}, "has an answer_start that is no whole number: 'x'"),
        ({"answers": {"text": ["a"], "answer_start": []}}, "has 1 answers and not as many answer_start: []"),
        ({"is_impossible": "maybe"}, "has an is_impossible that is neither true nor false: 'maybe'"),
    ],
)
def test_bad_rows_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        QuestionAnswering().read({"question": "q", "context": "a b", "answers": ["a"], **values})
    assert not isinstance(error.value, LeftOut)


@pytest.mark.parametrize("answers", ["cat", [{"text": "cat", "answer_start": 0}], [{"text": "A", "answer_start": 0}]])
def test_an_answer_that_is_not_in_its_context_leaves_its_row_out(answers: Any) -> None:
    with pytest.raises(LeftOut, match="an answer that is not in its context"):
        QuestionAnswering().read({"question": "q", "context": "a b", "answers": answers})


# contexts into windows


def windows(row: dict[str, Any], limit: int = 24, stride: int = 4) -> dict[str, list[Any]]:
    """Three tokens of question, three special ones and, with 24, eighteen of context."""
    return QuestionAnswering(max_length=limit, stride=stride).encode([row], make_tokenizer())


def texts(encoded: dict[str, list[Any]], context: str = CONTEXT) -> list[str]:
    """What each window has of the context."""
    pairs = zip(encoded["starts"], encoded["ends"], strict=True)
    return [context[min(s for s in starts if s >= 0) : max(ends)] for starts, ends in pairs]


def labelled(encoded: dict[str, list[Any]], context: str = CONTEXT) -> list[str | None]:
    """The text between the labels of every window, None for "not here"."""
    said = []
    for i, (first, last) in enumerate(encoded["labels"]):
        here = (first, last) != (encoded["not_here"][i],) * 2
        said.append(context[encoded["starts"][i][first] : encoded["ends"][i][last]] if here else None)
    return said


def test_windows_overlap_and_keep_the_whole_context() -> None:
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
    ("given", "found"),
    [
        (answer(0), ["word0", None, None]),  # the very start
        (answer(17), ["word17", "word17", None]),  # the last token of a window, and in the overlap
        (answer(14, 17), ["word14 word15 word16 word17", "word14 word15 word16 word17", None]),
        (answer(13, 14), ["word13 word14", None, None]),  # begins before the second window
        (answer(17, 18), [None, "word17 word18", None]),  # ends behind the first window
        (answer(20, 22), [None, "word20 word21 word22", None]),  # in the second only
        (answer(39), [None, None, "word39"]),  # the very end
        (answer(10, 20), [None, None, None]),  # longer than the overlap: no window has the whole of it
    ],
)
def test_a_window_is_labelled_with_the_answer_it_has_whole(given: dict[str, Any], found: list[str | None]) -> None:
    assert labelled(windows(row_of(given))) == found


def test_a_question_without_answer_is_nowhere_and_the_first_answer_counts() -> None:
    assert labelled(windows(row_of())) == [None, None, None]
    assert labelled(windows(row_of(answer(3), answer(20)))) == ["word3", None, None]


def test_part_of_a_word_is_labelled_as_the_word_and_places_are_characters() -> None:
    context = "🦊 red 中文 word1, word2"
    row = QuestionAnswering().read(
        {"question": "apple", "context": context, "answers": [{"text": "ord1", "answer_start": 10}]}
    )
    encoded = QuestionAnswering().encode([row], make_tokenizer())
    assert labelled(encoded, context) == ["word1"]
    assert texts(encoded, context) == [context]


def test_long_questions_are_cut_and_counted() -> None:
    long = " ".join(WORDS[:30])
    encoded = QuestionAnswering(max_length=24, stride=4).encode([row_of(answer(1), question=long)], make_tokenizer())
    assert make_tokenizer().convert_ids_to_tokens(encoded["input_ids"][0])[1:13] == WORDS[:12]
    assert set(encoded["cut"]) == {True}
    assert max(map(len, encoded["input_ids"])) == 24
    few = QuestionAnswering(max_question_length=2).encode([row_of(answer(1), question=long)], make_tokenizer())
    assert make_tokenizer().convert_ids_to_tokens(few["input_ids"][0])[:4] == ["[CLS]", "word0", "word1", "[SEP]"]


def test_a_great_stride_is_lowered_and_a_small_window_refused() -> None:
    assert texts(windows(row_of(answer(1)), stride=1000)) == texts(windows(row_of(answer(1)), stride=4))
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 8
    with pytest.raises(UserError, match="8 tokens have no room for a question and a context"):
        QuestionAnswering().encode([row_of(answer(1))], tokenizer)


def test_rows_keep_their_windows_apart_and_need_no_answers() -> None:
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


# windows into answers


def outputs_for(encoded: dict[str, list[Any]], **scores: dict[tuple[int, int], float]) -> tuple[Any, Any]:
    """A batch of the windows, and logits that are low but at (window, token)."""
    task, tokenizer = QuestionAnswering(), make_tokenizer()
    batch = task.collate(encoded, tokenizer, 8)
    logits = {side: torch.full(batch["input_ids"].shape, LOW) for side in ("start", "end")}
    for side, values in scores.items():
        for place, value in values.items():
            logits[side][place] = value
    return SimpleNamespace(start_logits=logits["start"], end_logits=logits["end"]), batch


def said_of(
    task: QuestionAnswering, row: dict[str, Any], encoded: dict[str, list[Any]], outputs: Any, batch: Any
) -> Any:
    rows = [{name: values[i] for name, values in encoded.items()} for i in range(len(encoded["row"]))]
    return task.join(row, rows, task.predict(outputs, batch))


def test_a_batch_says_what_is_context() -> None:
    encoded = QuestionAnswering(max_length=24, stride=4).encode(
        [row_of(answer(1)), {**row_of(answer(2)), "context": "word0 word1 word2"}], make_tokenizer()
    )
    batch = QuestionAnswering().collate(encoded, make_tokenizer(), 16)
    assert batch["input_ids"].shape == batch["context"].shape == (4, 32)
    assert batch["context"].sum(1).tolist() == [18, 18, 12, 3]
    assert batch["labels"].tolist() == encoded["labels"]
    assert set(QuestionAnswering().inputs_of(batch)) == {"input_ids", "attention_mask"}


def test_two_labels_and_two_tokens_are_no_labels_a_token() -> None:
    columns = {
        "input_ids": [[1, 2]], "starts": [[-1, 0]], "ends": [[-1, 5]], "not_here": [0], "labels": [[1, 1]]
    }  # fmt: skip
    assert QuestionAnswering().collate(columns, make_tokenizer(), 8)["labels"].tolist() == [[1, 1]]
    longer = QuestionAnswering().stretched({name: values[0] for name, values in columns.items()}, 5)
    assert (longer["labels"], longer["starts"]) == ([0, 0], [-1, 0, 0, 0, 0])


def test_the_best_span_of_all_windows_is_the_answer() -> None:
    encoded = windows(row_of(answer(20, 22)))
    # window 1 begins with word14 at token 5
    outputs, batch = outputs_for(encoded, start={(0, 7): 1.0, (1, 11): 9.0}, end={(0, 8): 1.0, (1, 13): 9.0})
    for window in (0, 2):  # what is not there is said not to be
        outputs.start_logits[window, 0] = outputs.end_logits[window, 0] = 5.0
    said = said_of(QuestionAnswering(), row_of(), encoded, outputs, batch)
    expected = answer(20, 22)
    assert said["prediction"] == expected["text"]
    assert CONTEXT[said["start"] : said["end"]] == expected["text"]
    assert said["start"] == expected["answer_start"]
    assert said["nbest"][0] == {
        "text": expected["text"], "start": said["start"], "end": said["end"], "probability": said["probability"]
    }  # fmt: skip
    assert len(said["nbest"]) == 5
    assert said["nbest"][1]["text"] == "word2 word3"
    assert sum(one["probability"] for one in said["nbest"]) == pytest.approx(1)
    assert "null_margin" not in said


def test_an_answer_in_the_overlap_is_told_once() -> None:
    encoded = windows(row_of(answer(15)))
    outputs, batch = outputs_for(encoded, start={(0, 20): 9.0, (1, 6): 8.0}, end={(0, 20): 9.0, (1, 6): 8.0})
    said = said_of(QuestionAnswering(), row_of(), encoded, outputs, batch)
    assert [one["text"] for one in said["nbest"]].count("word15") == 1
    assert said["prediction"] == "word15"


def test_spans_lie_in_the_context_forwards_and_are_not_too_long() -> None:
    encoded = windows(row_of(answer(1)), limit=60)
    high = {(0, 1): 50.0, (0, 2): 50.0, (0, 45): 50.0, (0, 30): 4.0, (0, 10): 3.0}
    outputs, batch = outputs_for(encoded, start=high, end={(0, 2): 50.0, (0, 20): 5.0, (0, 29): 8.0, (0, 12): 2.0})
    assert batch["context"][0].tolist() == [False] * 5 + [True] * 40 + [False] * 3

    def best(length: int) -> str:
        task = QuestionAnswering(max_answer_length=length)
        return said_of(task, row_of(), encoded, outputs, batch)["prediction"]

    # question tokens are no answer however high they score; 30 to 29 would go backwards
    assert best(30) == " ".join(WORDS[5:25])  # 3 + 8: tokens 10 to 29, twenty of them
    assert best(20) == " ".join(WORDS[5:25])
    assert best(19) == " ".join(WORDS[5:16])  # 3 + 5: tokens 10 to 20
    assert best(3) == "word5 word6 word7"  # 3 + 2: tokens 10 to 12
    assert best(100) == best(30)


def test_the_search_for_spans_finds_what_trying_all_finds() -> None:
    encoded = windows(row_of(answer(1)))
    task = QuestionAnswering(max_answer_length=6, num_best=20)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        batch = task.collate(encoded, make_tokenizer(), 8)
        start, end = (torch.randn(batch["input_ids"].shape, generator=generator) * 3 for _ in range(2))
        outputs = SimpleNamespace(start_logits=start, end_logits=end)
        found = task.predict(outputs, batch)
        for window in range(3):
            allowed = batch["context"][window].clone()
            allowed[0] = True
            logs = [side[window].masked_fill(~allowed, -torch.inf).log_softmax(0) for side in (start, end)]
            inside = batch["context"][window].nonzero().flatten().tolist()
            tried = sorted(((logs[0][i] + logs[1][j]).item(), i, j) for i in inside for j in inside if i <= j < i + 6)[
                ::-1
            ][:20]
            assert [(i, j) for i, j, _ in found[window]["spans"]] == [(i, j) for _, i, j in tried]
            assert [s for *_, s in found[window]["spans"]] == pytest.approx([s for s, *_ in tried], abs=1e-5)
            assert found[window]["nowhere"] == pytest.approx((logs[0][0] + logs[1][0]).item(), abs=1e-5)


def test_no_answer_is_given_only_where_it_may_be_and_beyond_the_threshold() -> None:
    encoded = windows(row_of())
    outputs, batch = outputs_for(encoded, start={(1, 11): 4.0}, end={(1, 11): 4.0})
    outputs.start_logits[:, 0] = outputs.end_logits[:, 0] = 5.0  # of every window "not here" is likelier: by 1 + 1

    def said(**settings: Any) -> Any:
        return said_of(QuestionAnswering(**settings), row_of(), encoded, outputs, batch)

    assert said()["prediction"] == said(unanswerable=False)["prediction"] == "word20"
    none = said(unanswerable=True)
    assert (none["prediction"], none["start"], none["end"]) == ("", None, None)
    assert none["null_margin"] == pytest.approx(2.0, abs=1e-4)
    assert none["nbest"][0]["text"] == "word20"
    assert none["probability"] + sum(one["probability"] for one in none["nbest"]) == pytest.approx(1)
    assert said(unanswerable=True, null_threshold=2.1)["prediction"] == "word20"
    outputs.start_logits[1, 0] = LOW  # one window that has an answer is enough
    assert said(unanswerable=True)["prediction"] == "word20"


def test_an_answer_is_always_a_stretch_of_the_context_without_spaces_around_it() -> None:
    context = "  Über   den\tWolken\n"
    encoded = {"starts": [-1, 0, 6, 12], "ends": [-1, 6, 12, 20]}  # a tokenizer that counts spaces to words
    said = {"spans": [(1, 2, -1.0), (2, 3, -2.0), (3, 3, -3.0)], "nowhere": -9.0}
    found = QuestionAnswering().join({"context": context, "question": "wo"}, [encoded], [said])
    assert [one["text"] for one in found["nbest"]] == ["Über   den", "den\tWolken", "Wolken"]
    assert all(context[one["start"] : one["end"]] == one["text"] for one in found["nbest"])


def test_a_context_the_tokenizer_makes_nothing_of_has_no_answer() -> None:
    said = QuestionAnswering().join({"context": "x"}, [{"starts": [-1], "ends": [-1]}], [{"spans": [], "nowhere": 0.0}])
    assert (said["prediction"], said["start"], said["probability"], said["nbest"]) == ("", None, 1.0, [])


# the loss


def test_the_loss_is_the_mean_of_both_ends_over_what_may_be_said() -> None:
    encoded = windows(row_of(answer(20, 22)))
    generator = torch.Generator().manual_seed(0)
    task = QuestionAnswering()

    def of(windows: list[int], multiple: int, start: torch.Tensor, end: torch.Tensor) -> float:
        columns = {name: [values[i] for i in windows] for name, values in encoded.items()}
        batch = task.collate(columns, make_tokenizer(), multiple)
        padding = (0, batch["input_ids"].shape[1] - 24)
        sides = [torch.nn.functional.pad(side[windows], padding, value=70.0) for side in (start, end)]
        return task.loss(SimpleNamespace(start_logits=sides[0], end_logits=sides[1]), batch).item()

    start, end = (torch.randn(3, 24, generator=generator) for _ in range(2))
    expected = 0.0
    for window, (first, last) in enumerate([(0, 0), (11, 13), (0, 0)]):
        allowed = [0, *range(5, 5 + (12 if window == 2 else 18))]
        for side, place in ((start, first), (end, last)):
            expected -= 0.5 * (side[window, place] - side[window, allowed].logsumexp(0)).item()
    assert of([0, 1, 2], 8, start, end) == pytest.approx(expected, rel=1e-5)
    assert of([0, 1, 2], 32, start, end) == pytest.approx(expected, rel=1e-5)  # padding is no answer
    assert sum(of([i], 8, start, end) for i in range(3)) == pytest.approx(expected, rel=1e-5)


def test_virtual_tokens_in_front_are_cut_off() -> None:
    encoded = windows(row_of(answer(20, 22)))
    outputs, batch = outputs_for(encoded, start={(1, 11): 9.0}, end={(1, 13): 9.0})
    longer = SimpleNamespace(
        start_logits=torch.nn.functional.pad(outputs.start_logits, (5, 0), value=99.0),
        end_logits=torch.nn.functional.pad(outputs.end_logits, (5, 0), value=99.0),
    )
    task = QuestionAnswering()
    assert task.logits(outputs, batch).shape == (3, 24, 2)
    assert torch.equal(task.logits(longer, batch), task.logits(outputs, batch))
    assert task.predict(longer, batch) == task.predict(outputs, batch)
    assert torch.equal(task.loss(longer, batch), task.loss(outputs, batch))


def test_fitting_looks_for_unanswerable_questions() -> None:
    some, none = row_of(answer(1)), row_of()
    assert QuestionAnswering().fit(Splits([some, none], [some], [])).unanswerable is True
    assert QuestionAnswering().fit(Splits([some], [some], [], spare=[none])).unanswerable is True
    fitted = QuestionAnswering().fit(Splits([some], [some, none], []))
    assert fitted.unanswerable is False
    (told,) = fitted.remarks(Splits([some], [some, none], []), make_tokenizer())
    assert told.startswith("1 of 2 validation questions have no answer")
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


# exact match and F1


def squad(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    values = Metric(keep_in_memory=True).compute(predictions=predictions, references=references)
    assert values is not None
    return values


def official(said: str, right: str) -> tuple[float, float]:
    """Exact match and F1 of one pair by the definitions of SQuAD's paper and script, written anew."""

    def normal(text: str) -> str:
        kept = [c for c in text.lower() if c not in set(string.punctuation)]
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", "".join(kept)).split())

    ours, theirs = normal(said).split(), normal(right).split()
    exact = float(normal(said) == normal(right))
    if not ours or not theirs:
        return exact, float(ours == theirs)
    same = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if same == 0:
        return exact, 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return exact, 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("said", "right", "exact", "f1"),
    [
        ("the Eiffel Tower", "Eiffel tower.", 1, 1),
        ("Eiffel", "the Eiffel Tower", 0, 2 / 3),
        ("a tower in Paris", "Paris, the tower", 0, 4 / 5),
        ("dog", "cat", 0, 0),
        ("", "", 1, 1),
        ("dog", "", 0, 0),
        ("", "dog", 0, 0),
        ("1,000 men", "1000 men", 1, 1),
        ("to to be", "to be be", 0, 2 / 3),
        ("anthem", "them", 0, 0),  # articles are words, not letters
    ],
)
def test_exact_match_and_f1_are_squads(said: str, right: str, exact: float, f1: float) -> None:
    values = squad([said], [[right] if right else []])
    assert values["exact_match"] == exact
    assert values["f1"] == pytest.approx(f1)
    assert official(said, right) == pytest.approx((exact, f1))


def test_many_rows_with_several_references_are_squads() -> None:
    draw = random.Random(0)
    words = ["the", "a", "Tower", "tower,", "in", "Paris", "Paris.", "1999", "An", "over-all"]

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randint(2, 5))) + " x"

    predictions, references = (
        [text() for _ in range(300)],
        [[text() for _ in range(draw.randint(1, 3))] for _ in range(300)],
    )
    values = squad(predictions, references)
    pairs = [[official(p, r) for r in rs] for p, rs in zip(predictions, references, strict=True)]
    assert values["exact_match"] == pytest.approx(sum(max(e for e, _ in row) for row in pairs) / 300)
    assert values["f1"] == pytest.approx(sum(max(f for _, f in row) for row in pairs) / 300)
    assert set(values) == {"exact_match", "f1"}


def test_rows_without_answer_are_told_apart() -> None:
    values = squad(["", "x", "y", "y z"], [[], [], ["y"], ["z"]])
    assert values == pytest.approx(
        {
            "exact_match": 0.5, "f1": (1 + 0 + 1 + 2 / 3) / 4, "exact_match_answerable": 0.5,
            "f1_answerable": (1 + 2 / 3) / 2, "no_answer_accuracy": 0.5,
        }
    )  # fmt: skip
    assert squad([""], [[]]) == {"exact_match": 1.0, "f1": 1.0, "no_answer_accuracy": 1.0}


@pytest.mark.parametrize(
    ("said", "right", "exact", "f1"),
    [
        ("北京市", "北京", 0, 4 / 5),  # 2 of 3 characters said, 2 of 2 wanted
        ("《红楼梦》。", "红楼梦", 1, 1),
        ("1999年", "在1999年", 0, 4 / 5),  # a number is a word: 2 of 2 said, 2 of 3 wanted
        ("iPhone 手机", "iphone手机", 1, 1),
        ("东京", "北京", 0, 1 / 2),
        ("さくら", "サクラ", 0, 0),
    ],
)
def test_characters_are_the_words_of_chinese(said: str, right: str, exact: float, f1: float) -> None:
    values = squad([said], [[right]])
    assert values["exact_match"] == exact
    assert values["f1"] == pytest.approx(f1)


def test_the_tasks_metrics() -> None:
    task = QuestionAnswering()
    rows = [row_of(answer(1), answer(3)), row_of()]
    assert [task.reference(row) for row in rows] == [["word1", "word3"], []]
    assert task.reference({"question": "q", "context": "c"}) is None
    values = task.metrics([{"prediction": "word3"}, {"prediction": "word3"}], [task.reference(row) for row in rows])
    assert (values["f1"], values["no_answer_accuracy"]) == (0.5, 0.0)


def test_a_run_learns_to_find_an_answer(tmp_path: Path, bases: Callable[[str], Path]) -> None:
    """From a file to predictions: the answer is the tool among 30 words, looked for in overlapping windows."""
    from pefttools.use import predict_rows

    draw = random.Random(0)
    lines = []
    for _ in range(160):
        words = draw.choices(WORDS, k=30)
        place, tool = draw.randrange(30), draw.choice(KEYS["tool"])
        words[place] = tool
        answers = [{"text": tool, "answer_start": " ".join(words).index(tool)}]
        lines.append({"question": "apple", "context": " ".join(words), "answers": answers})
    lines.append({**lines[0], "context": "pear", "answers": [{"text": "nowhere", "answer_start": 0}]})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe_file = tmp_path / "tiny.yaml"
    values = {
        "base": {"source": str(bases("bert")), "dropout": 0.0},
        "data": {"train": str(file)},
        "task": {"name": "question_answering", "max_length": 24, "stride": 4},
        "strategy": "full",
        "train": {"epochs": 3, "batch_size": 16, "learning_rate": 0.003, "precision": "fp32", "trackers": []},
    }
    recipe_file.write_text(yaml.safe_dump(values))
    run, result = train_tiny(recipe_file, tmp_path / "run")
    assert result["data"]["left_out"]["an answer that is not in its context"] == 1
    assert result["test"]["f1"] > result["before"]["f1"] + 0.3
    context = f" {' '.join(WORDS)} a saw, {' '.join(WORDS)}"
    (said,) = predict_rows(run, [{"question": "apple", "context": context}])
    assert said["prediction"] == context[said["start"] : said["end"]] == "saw"
    table = pyarrow.parquet.read_table(run / "predictions.parquet").to_pylist()
    assert len(table) == result["data"]["rows"]["test"]
    assert table[0]["prediction"] == table[0]["nbest"][0]["text"]
