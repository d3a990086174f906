"""Classification by the likelihood of verbalisers: equal to transformers' own loss; invalid prompts and settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_chat import make_tokenizer
from tiny_decoders import make_model

from pefttools.data.splitting import Splits
from pefttools.errors import UserError
from pefttools.settings import check
from pefttools.tasks.base import IGNORED
from pefttools.tasks.prompted_classification import PromptedClassification

ROWS = [
    {"text": "a fine film", "label": "good"},
    {"text": "dull", "label": "bad"},
    {"text": "I slept {well}", "label": "bad"},
    {"text": "do see it, 好", "label": "good"},
]


def make_task(**values: Any) -> PromptedClassification:
    return PromptedClassification(**values).fit(Splits(ROWS, ROWS[:1], []))


def predictions_of(task: PromptedClassification, model: Any, rows: list[dict[str, str]], tokenizer: Any) -> list[Any]:
    """The prediction for each row."""
    columns = task.encode(rows, tokenizer)
    batch = task.collate(columns, tokenizer, 8)
    with torch.inference_mode():
        predictions = task.predict(model(**task.inputs_of(batch)), batch)
    encoded = [{name: column[i] for name, column in columns.items()} for i in range(len(predictions))]
    parts = [[i for i, number in enumerate(columns["row"]) if number == row] for row in range(len(rows))]
    return [
        task.aggregate(row, [encoded[i] for i in indices], [predictions[i] for i in indices])
        for row, indices in zip(rows, parts, strict=True)
    ]


def log_likelihood(model: Any, tokenizer: Any, head: str, answer: str) -> float:
    """The log-likelihood by transformers' mean loss over the bytes of the answer."""
    ids = torch.tensor([tokenizer(head + answer)["input_ids"]])
    number = len(answer.encode())
    labels = ids.clone()
    labels[:, :-number] = IGNORED
    with torch.inference_mode():
        return -number * model(input_ids=ids, labels=labels).loss.item()


def test_every_candidate_is_encoded_and_the_right_one_is_the_target() -> None:
    tokenizer, task = make_tokenizer(), make_task(prompt="{text}?", verbalizers={"good": " yes"})
    columns = task.encode(ROWS[:1], tokenizer)
    assert task.labels == ("bad", "good")
    assert [tokenizer.decode(ids) for ids in columns["input_ids"]] == ["a fine film? bad", "a fine film? yes"]
    for ids, scored, verbalizer in zip(columns["input_ids"], columns["scored"], (" bad", " yes"), strict=True):
        assert tokenizer.decode([i for i, one in zip(ids, scored, strict=True) if one]) == verbalizer
    assert columns["labels"][0] == [IGNORED] * 16
    assert columns["labels"][1] == [*[IGNORED] * 12, *columns["input_ids"][1][12:]]
    assert columns["num_targets"] == [0, 4]
    assert (columns["row"], columns["candidate"]) == ([0, 0], [0, 1])
    training = task.encode_training(ROWS, tokenizer)
    assert [tokenizer.decode(ids)[-4:] for ids in training["input_ids"]] == [" yes", " bad", " bad", " yes"]
    assert training["num_targets"] == [4] * 4


@pytest.mark.parametrize("normalize", ["sum", "mean"])
@pytest.mark.parametrize("calibrate", [False, True])
def test_likelihoods_are_those_of_transformers(normalize: Any, calibrate: bool) -> None:
    model, tokenizer = make_model("llama"), make_tokenizer()
    verbalizers = {"good": " excellent", "bad": " no"}
    task = make_task(verbalizers=verbalizers, normalize=normalize, calibrate=calibrate)
    for row, predicted in zip(ROWS, predictions_of(task, model, ROWS, tokenizer), strict=True):
        scores = []
        for answer in (" no", " excellent"):
            score = log_likelihood(model, tokenizer, f"{row['text']}\nLabel:", answer)
            score -= log_likelihood(model, tokenizer, "\nLabel:", answer) if calibrate else 0
            scores.append(score / len(answer) if normalize == "mean" else score)
        shares = [math.exp(score) for score in scores]
        expected = [share / sum(shares) for share in shares]
        assert list(predicted["probabilities"].values()) == pytest.approx(expected, rel=1e-4)
        assert predicted["prediction"] == ("bad", "good")[expected[1] > expected[0]]


def test_loss_is_that_of_the_right_verbalizers() -> None:
    model, tokenizer, task = make_model("llama"), make_tokenizer(), make_task()
    expected = -sum(log_likelihood(model, tokenizer, f"{r['text']}\nLabel:", f" {r['label']}") for r in ROWS)
    for columns in (task.encode(ROWS, tokenizer), task.encode_training(ROWS, tokenizer)):
        batch = task.collate(columns, tokenizer, 8)
        assert task.loss(model(**task.inputs_of(batch)), batch).item() == pytest.approx(expected, rel=1e-5)
        assert sum(columns["num_targets"]) == 18


def test_examples_come_before_the_row() -> None:
    tokenizer, task = make_tokenizer(), make_task(shots=1, prompt="Text: {text}\nIt is")
    labels = [example["label"] for example in task.examples]
    assert sorted(labels) == ["bad", "good"]
    (first, second) = (f"Text: {e['text']}\nIt is {e['label']}\n\n" for e in task.examples)
    text = tokenizer.decode(task.encode([{"text": "new"}], tokenizer)["input_ids"][0])
    assert text == f"{first}{second}Text: new\nIt is bad"
    assert make_task(shots=1).examples == task.examples
    assert task.fit(Splits(ROWS[:2], ROWS[:1], [])).examples == task.examples  # the examples of a run stay the same
    assert {len(make_task(shots=n).examples) for n in (2, 5)} == {4}


def test_chat_prompts_use_the_template_of_the_base() -> None:
    tokenizer, task = make_tokenizer(), make_task(chat=True, prompt="Is it good?\n{text}")
    texts = [tokenizer.decode(ids) for ids in task.encode(ROWS[1:2], tokenizer)["input_ids"]]
    head = "<|im_start|>user\nIs it good?\ndull<|im_end|>\n<|im_start|>assistant\n"
    assert texts == [f"{head}bad", f"{head}good"]


def test_only_the_text_within_a_prompt_is_truncated() -> None:
    tokenizer, task = make_tokenizer(), make_task(max_length=24)
    columns = task.encode([{"text": "abcdefghijklmnopqrst", "label": "bad"}, ROWS[1]], tokenizer)
    assert [tokenizer.decode(ids) for ids in columns["input_ids"][:2]] == [
        "abcdefghijkl\nLabel: bad", "abcdefghijkl\nLabel: good",
    ]  # fmt: skip
    assert columns["cut"] == [True, False, False, False]


def test_text_pairs_fill_both_fields() -> None:
    rows = [{**row, "text_pair": "b"} for row in ROWS]
    task = PromptedClassification(prompt="{text} / {text_pair} =").fit(Splits(rows, rows[:1], []))
    tokenizer = make_tokenizer()
    assert tokenizer.decode(task.encode(rows[1:2], tokenizer)["input_ids"][0]) == "dull / b = bad"


def test_metrics_and_majority_baseline() -> None:
    task = make_task()
    predictions = [{"prediction": label} for label in ("good", "bad", "good", "good")]
    scores = task.metrics(predictions, [row["label"] for row in ROWS])
    assert scores["accuracy"] == 0.75
    assert scores["f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert scores["per_class"]["bad"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert task.majority_baseline(ROWS, ROWS)["accuracy"] == 0.5


def test_remark_on_verbalisers_of_different_length() -> None:
    splits, tokenizer = Splits(ROWS, ROWS[:1], []), make_tokenizer()
    (remark,) = make_task().remarks(splits, tokenizer)
    assert remark.startswith(
        "the verbaliser of 'good' has 5 tokens, that of 'bad' 4; longer verbalisers are less likely"
    )
    assert make_task(normalize="mean").remarks(splits, tokenizer) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "Label:"}, "task.prompt: has no {text}"),
        ({"prompt": "{text} {title}"}, "task.prompt: has {title}; only {text} and {text_pair} are known"),
        ({"prompt": "{text"}, "task.prompt: is not a format string: expected '}'"),
    ],
)
def test_invalid_prompts_are_refused(values: dict[str, Any], message: str) -> None:
    task, problems = check(PromptedClassification, values, "task")
    assert task is None
    assert problems[0].startswith(message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"verbalizers": {"god": " yes"}}, "task.verbalizers: unknown label 'god'; did you mean 'good'?"),
        (
            {"verbalizers": {"good": " x", "bad": " x"}},
            "task.verbalizers: 'bad', 'good' have the same verbaliser, ' x'",
        ),
        ({"prompt": "{text} {text_pair}"}, "task.prompt: has {text_pair}, but the rows have none"),
        ({"labels": ("good",)}, "data.train: labels that no training row has: 'bad'"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_task(**values)
    assert any(problem.startswith(message) for problem in caught.value.problems), caught.value.problems


def test_rows_are_read_and_unknown_labels_refused() -> None:
    task = make_task()
    assert task.read({"text": " a ", "label": 3.0}) == {"text": " a ", "label": "3"}
    assert task.read({"text": "a"}) == {"text": "a"}
    for bad, message in (({"label": None}, "has no label"), ({"label": ["x"]}, "not a single text")):
        with pytest.raises(ValueError, match=message):
            task.read({"text": "a", **bad})
    with pytest.raises(UserError, match=r"data.test: labels the model does not know: 'ugly'. It has 'bad', 'good'"):
        task.check_scorable("data.test", [{"text": "a", "label": "ugly"}])
