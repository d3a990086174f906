"""Spans from windows: the best spans, unanswerable questions, and the loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import WORDS, make_tokenizer
from test_question_answering import CONTEXT, answer, row_of, windows

from pefttools.tasks.question_answering import QuestionAnswering

LOW = -30.0


def outputs_for(encoded: dict[str, list[Any]], **scores: dict[tuple[int, int], float]) -> tuple[Any, Any]:
    """A batch of the windows, and logits that are low except at the given (window, token)."""
    task, tokenizer = QuestionAnswering(), make_tokenizer()
    batch = task.collate(encoded, tokenizer, 8)
    logits = {side: torch.full(batch["input_ids"].shape, LOW) for side in ("start", "end")}
    for side, values in scores.items():
        for position, value in values.items():
            logits[side][position] = value
    return SimpleNamespace(start_logits=logits["start"], end_logits=logits["end"]), batch


def prediction_for(
    task: QuestionAnswering, row: dict[str, Any], encoded: dict[str, list[Any]], outputs: Any, batch: Any
) -> Any:
    rows = [{name: values[i] for name, values in encoded.items()} for i in range(len(encoded["row"]))]
    return task.aggregate(row, rows, task.predict(outputs, batch))


def test_batch_marks_the_tokens_of_the_context() -> None:
    encoded = QuestionAnswering(max_length=24, stride=4).encode(
        [row_of(answer(1)), {**row_of(answer(2)), "context": "word0 word1 word2"}], make_tokenizer()
    )
    batch = QuestionAnswering().collate(encoded, make_tokenizer(), 16)
    assert batch["input_ids"].shape == batch["context"].shape == (4, 32)
    assert batch["context"].sum(1).tolist() == [18, 18, 12, 3]
    assert batch["labels"].tolist() == encoded["labels"]
    assert set(QuestionAnswering().inputs_of(batch)) == {"input_ids", "attention_mask"}


def test_span_labels_are_not_padded_like_tokens() -> None:
    columns = {
        "input_ids": [[1, 2]], "starts": [[-1, 0]], "ends": [[-1, 5]], "not_here": [0], "labels": [[1, 1]]
    }  # fmt: skip
    assert QuestionAnswering().collate(columns, make_tokenizer(), 8)["labels"].tolist() == [[1, 1]]
    longer = QuestionAnswering().repeat_to_length({name: values[0] for name, values in columns.items()}, 5)
    assert (longer["labels"], longer["starts"]) == ([0, 0], [-1, 0, 0, 0, 0])


def test_prediction_is_the_best_span_of_all_windows() -> None:
    encoded = windows(row_of(answer(20, 22)))
    # window 1 begins with word14 at token 5
    outputs, batch = outputs_for(encoded, start={(0, 7): 1.0, (1, 11): 9.0}, end={(0, 8): 1.0, (1, 13): 9.0})
    for window in (0, 2):  # these windows predict that the answer is not there
        outputs.start_logits[window, 0] = outputs.end_logits[window, 0] = 5.0
    prediction = prediction_for(QuestionAnswering(), row_of(), encoded, outputs, batch)
    expected = answer(20, 22)
    assert prediction["prediction"] == expected["text"]
    assert CONTEXT[prediction["start"] : prediction["end"]] == expected["text"]
    assert prediction["start"] == expected["answer_start"]
    assert prediction["nbest"][0] == {
        "text": expected["text"], "start": prediction["start"], "end": prediction["end"],
        "probability": prediction["probability"],
    }  # fmt: skip
    assert len(prediction["nbest"]) == 5
    assert prediction["nbest"][1]["text"] == "word2 word3"
    assert sum(one["probability"] for one in prediction["nbest"]) == pytest.approx(1)
    assert "null_margin" not in prediction


def test_answer_in_overlapping_windows_is_listed_once() -> None:
    encoded = windows(row_of(answer(15)))
    outputs, batch = outputs_for(encoded, start={(0, 20): 9.0, (1, 6): 8.0}, end={(0, 20): 9.0, (1, 6): 8.0})
    prediction = prediction_for(QuestionAnswering(), row_of(), encoded, outputs, batch)
    assert [one["text"] for one in prediction["nbest"]].count("word15") == 1
    assert prediction["prediction"] == "word15"


def test_spans_lie_in_the_context_and_are_limited_in_length() -> None:
    encoded = windows(row_of(answer(1)), limit=60)
    high = {(0, 1): 50.0, (0, 2): 50.0, (0, 45): 50.0, (0, 30): 4.0, (0, 10): 3.0}
    outputs, batch = outputs_for(encoded, start=high, end={(0, 2): 50.0, (0, 20): 5.0, (0, 29): 8.0, (0, 12): 2.0})
    assert batch["context"][0].tolist() == [False] * 5 + [True] * 40 + [False] * 3

    def best(length: int) -> str:
        task = QuestionAnswering(max_answer_length=length)
        return prediction_for(task, row_of(), encoded, outputs, batch)["prediction"]

    # tokens of the question are never an answer; the span 30 to 29 would be reversed
    assert best(30) == " ".join(WORDS[5:25])  # 3 + 8: tokens 10 to 29, twenty of them
    assert best(20) == " ".join(WORDS[5:25])
    assert best(19) == " ".join(WORDS[5:16])  # 3 + 5: tokens 10 to 20
    assert best(3) == "word5 word6 word7"  # 3 + 2: tokens 10 to 12
    assert best(100) == best(30)


def test_span_search_equals_exhaustive_search() -> None:
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


def test_no_answer_is_predicted_only_if_allowed_and_beyond_the_threshold() -> None:
    encoded = windows(row_of())
    outputs, batch = outputs_for(encoded, start={(1, 11): 4.0}, end={(1, 11): 4.0})
    outputs.start_logits[:, 0] = outputs.end_logits[:, 0] = 5.0  # "not here" is likelier in every window, by 1 + 1

    def prediction(**settings: Any) -> Any:
        return prediction_for(QuestionAnswering(**settings), row_of(), encoded, outputs, batch)

    assert prediction()["prediction"] == prediction(unanswerable=False)["prediction"] == "word20"
    none = prediction(unanswerable=True)
    assert (none["prediction"], none["start"], none["end"]) == ("", None, None)
    assert none["null_margin"] == pytest.approx(2.0, abs=1e-4)
    assert none["nbest"][0]["text"] == "word20"
    assert none["probability"] + sum(one["probability"] for one in none["nbest"]) == pytest.approx(1)
    assert prediction(unanswerable=True, null_threshold=2.1)["prediction"] == "word20"
    outputs.start_logits[1, 0] = LOW  # one window that has an answer is enough
    assert prediction(unanswerable=True)["prediction"] == "word20"


def test_predicted_spans_have_no_spaces_around_them() -> None:
    context = "  Über   den\tWolken\n"
    encoded = {"starts": [-1, 0, 6, 12], "ends": [-1, 6, 12, 20]}  # a tokenizer whose tokens include spaces
    prediction = {"spans": [(1, 2, -1.0), (2, 3, -2.0), (3, 3, -3.0)], "nowhere": -9.0}
    found = QuestionAnswering().aggregate({"context": context, "question": "wo"}, [encoded], [prediction])
    assert [one["text"] for one in found["nbest"]] == ["Über   den", "den\tWolken", "Wolken"]
    assert all(context[one["start"] : one["end"]] == one["text"] for one in found["nbest"])


def test_context_without_tokens_has_no_answer() -> None:
    prediction = QuestionAnswering().aggregate(
        {"context": "x"}, [{"starts": [-1], "ends": [-1]}], [{"spans": [], "nowhere": 0.0}]
    )
    assert (prediction["prediction"], prediction["start"], prediction["probability"], prediction["nbest"]) == (
        "",
        None,
        1.0,
        [],
    )


# the loss


def test_loss_is_the_mean_of_start_and_end_over_allowed_tokens() -> None:
    encoded = windows(row_of(answer(20, 22)))
    generator = torch.Generator().manual_seed(0)
    task = QuestionAnswering()

    def loss_of(windows: list[int], multiple: int, start: torch.Tensor, end: torch.Tensor) -> float:
        columns = {name: [values[i] for i in windows] for name, values in encoded.items()}
        batch = task.collate(columns, make_tokenizer(), multiple)
        padding = (0, batch["input_ids"].shape[1] - 24)
        sides = [torch.nn.functional.pad(side[windows], padding, value=70.0) for side in (start, end)]
        return task.loss(SimpleNamespace(start_logits=sides[0], end_logits=sides[1]), batch).item()

    start, end = (torch.randn(3, 24, generator=generator) for _ in range(2))
    expected = 0.0
    for window, (first, last) in enumerate([(0, 0), (11, 13), (0, 0)]):
        allowed = [0, *range(5, 5 + (12 if window == 2 else 18))]
        for side, position in ((start, first), (end, last)):
            expected -= 0.5 * (side[window, position] - side[window, allowed].logsumexp(0)).item()
    assert loss_of([0, 1, 2], 8, start, end) == pytest.approx(expected, rel=1e-5)
    assert loss_of([0, 1, 2], 32, start, end) == pytest.approx(expected, rel=1e-5)  # padding is no answer
    assert sum(loss_of([i], 8, start, end) for i in range(3)) == pytest.approx(expected, rel=1e-5)


def test_virtual_tokens_are_removed_from_logits() -> None:
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
