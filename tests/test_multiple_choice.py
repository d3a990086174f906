"""Multiple choice: notations of choices and labels, rows with different numbers of choices, and training."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import KEYS, WORDS, make_tokenizer, train_tiny, write_rows

import pefttools
from pefttools.bases.loading import BaseSettings
from pefttools.data.encoding import columns_of
from pefttools.data.settings import DataSettings
from pefttools.data.splitting import load_splits
from pefttools.errors import UserError
from pefttools.exporters import verify
from pefttools.inference.prediction import predict_rows
from pefttools.tasks.multiple_choice import MultipleChoice

ABC = ["red", "green", "blue"]
TASK = MultipleChoice(max_length=32, num_choices=3)


def quizzes(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Which of two or three words is a fruit?"""
    draw = random.Random(seed)
    rows = []
    for _ in range(number):
        answer = draw.choice(KEYS["fruit"])
        choices = [answer, *draw.sample([*KEYS["tool"], *KEYS["colour"]], draw.randint(1, 2))]
        draw.shuffle(choices)
        text = " ".join(draw.choices(WORDS, k=draw.randint(2, 5)))
        rows.append({"text": text, "choices": choices, "label": choices.index(answer)})
    return rows


@pytest.fixture(scope="module")
def run(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quizzes")
    data = f"data.train={write_rows(folder / 'rows.jsonl', quizzes(500))}"
    task = "task={name: multiple_choice, max_length: 32}"
    return train_tiny(recipe_file, folder / "run", task, data, "train.epochs=2")[0]


@pytest.mark.parametrize(
    "values",
    [
        {"choices": ABC, "label": 2},
        {"choices": tuple(ABC), "label": 2.0},
        {"choices": ABC, "label": " c "},
        {"choices": ABC, "label": "C"},
        {"choices": ABC, "label": "2"},
        {"choices": ABC, "label": "blue"},
        {"choices": {"text": ABC, "label": ["x", "y", "z"]}, "label": "z"},
        {"choices": {"text": ABC, "label": ["1", "2", "3"]}, "label": "3"},
        {"choice_a": "red", "choice_b": "green", "choice_c": "blue", "choice_d": None, "choice_e": " ", "label": 2},
    ],
)
def test_row_is_read_from_every_notation(values: dict[str, Any]) -> None:
    assert MultipleChoice().read({"text": "which?", **values}) == {"text": "which?", "choices": ABC, "label": 2}


def test_ambiguous_label_is_read_as_set_by_label_is() -> None:
    row = {"text": "1 + 1 =", "choices": [1, 2, 3], "label": "2"}
    with pytest.raises(ValueError, match=r"label '2', which may mean '2', '3'; set task.label_is to number, letter or"):
        MultipleChoice().read(row)
    assert MultipleChoice(label_is="number").read(row)["label"] == 2
    assert MultipleChoice(label_is="words").read(row)["label"] == 1
    assert MultipleChoice(first_number=1).read(row)["label"] == 1  # both readings agree
    assert MultipleChoice(label_is="letter").read({**row, "choices": ["B", "A"], "label": "A"})["label"] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"choices": ABC, "label": 3},
            r"label '3', which names none of its 3 choices .*0 to 2, or A to C, or a text",
        ),
        ({"choices": ABC, "label": "D"}, "label 'D', which names none of its 3 choices"),
        ({"choices": ABC, "label": -1}, "label '-1', which names none"),
        ({"choices": ABC, "label": "yellow"}, "label 'yellow', which names none"),
        ({"choices": ABC, "label": True}, "has a label that is neither a number nor a text: True"),
        ({"choices": ABC, "label": [1]}, r"has a label that is neither a number nor a text: \[1\]"),
        ({"choices": ABC, "label": 1.5}, "has a label that is neither a number nor a text: 1.5"),
        ({"choices": ABC, "label": None}, "has no label"),
        ({"choices": ABC, "label": float("nan")}, "has no label"),
        ({"choices": ["red"], "label": 0}, "has one choice only; a row needs 2 to 26"),
        ({"choices": [], "label": 0}, "has no choices; a row needs 2 to 26"),
        ({"choices": ["x"] * 27, "label": 0}, "has 27 choices; a row needs 2 to 26"),
        ({"label": 0}, "has no choices"),
        ({"choices": "red, green", "label": 0}, "has choices that are not a list: 'red, green'"),
        ({"choices": ["red", ""], "label": 0}, "has no choice B"),
        ({"choices": ["red", ["green"]], "label": 0}, r"has a choice B that is not text: \['green'\]"),
        ({"choices": ABC, "choice_b": "green", "label": 0}, "has both choices and choice_b"),
        ({"choice_a": "red", "choice_c": "blue", "label": 0}, "has no choice_b, but a later choice"),
        ({"choices": {"text": ABC, "label": ["A"]}, "label": "A"}, "has 3 choices and 1 names for them"),
        ({"text": " ", "choices": ABC, "label": 0}, "has no text"),
        ({"text": True, "choices": ABC, "label": 0}, "has a text that is not text: True"),
    ],
)
def test_invalid_rows_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultipleChoice().read({"text": "which?", **values})


def test_error_about_an_invalid_row_names_its_file(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [*quizzes(9), {"text": "which?", "choices": ABC, "label": 7}])
    with pytest.raises(UserError, match=r"data.train: .*rows.jsonl: row 10 has the label '7', which names none"):
        load_splits(DataSettings.model_validate({"train": str(file)}), MultipleChoice())


def test_every_choice_is_encoded_with_its_question() -> None:
    rows = [{"text": "word1", "choices": ABC, "label": 2}, {"text": "word2 word3", "choices": ABC[:2], "label": 0}]
    tokenizer = make_tokenizer(("input_ids", "token_type_ids", "attention_mask"))
    columns = TASK.encode(rows, tokenizer)
    assert tokenizer.batch_decode(columns["input_ids"][1]) == [
        "[CLS] word2 word3 [SEP] red [SEP]",
        "[CLS] word2 word3 [SEP] green [SEP]",
    ]
    assert columns["token_type_ids"][0][0] == [0, 0, 0, 1, 1]
    assert {n: columns[n] for n in ("labels", "num_targets", "cut", "length")} == {
        "labels": [2, 0], "num_targets": [1, 1], "cut": [False, False], "length": [15, 12],
    }  # fmt: skip
    batch = TASK.collate(columns, tokenizer, 8)
    assert {name: tuple(values.shape) for name, values in batch.items()} == {
        "input_ids": (2, 3, 8), "attention_mask": (2, 3, 8), "token_type_ids": (2, 3, 8), "choice_mask": (2, 3),
        "labels": (2,),
    }  # fmt: skip
    assert batch["attention_mask"].sum(-1).tolist() == [[5, 5, 5], [6, 6, 6]]
    assert batch["choice_mask"].tolist() == [[True] * 3, [True, True, False]]
    assert set(TASK.inputs_of(batch)) == {"input_ids", "attention_mask", "token_type_ids"}


def test_long_context_is_truncated_before_the_question() -> None:
    row = {"context": "word9 " * 40, "text": "word1 word2", "choices": ABC, "label": 0}
    columns = MultipleChoice(max_length=12).encode([row], make_tokenizer())
    assert columns["cut"] == [True]
    assert {len(ids) for ids in columns["input_ids"][0]} == {12}
    assert make_tokenizer().decode(columns["input_ids"][0][2]).endswith("word9 [SEP] word1 word2 blue [SEP]")


def test_padding_choices_do_not_change_predictions_and_loss(bases: Callable[[str], Path]) -> None:
    torch.manual_seed(0)
    base = TASK.load(BaseSettings(source=str(bases("bert"))))
    rows = [{"text": "word1", "choices": ABC[:2], "label": 1}, {"text": "word2 word4", "choices": ABC, "label": 0}]
    alone = verify.logits_and_predictions(base.model, TASK, rows[:1], base.tokenizer)[1]
    logits, predictions = verify.logits_and_predictions(base.model, TASK, rows, base.tokenizer)
    assert predictions[0]["probabilities"] == pytest.approx(alone[0]["probabilities"], abs=1e-5)
    assert list(predictions[0]["probabilities"]) == ["A", "B"]
    assert all(sum(one["probabilities"].values()) == pytest.approx(1) for one in predictions)
    assert [one["choice"] for one in predictions] == [
        row["choices"][one["prediction"]] for row, one in zip(rows, predictions, strict=True)
    ]
    assert [len(row) for row in logits] == [2, 3]
    assert torch.cat(logits).isfinite().all()
    columns = columns_of(rows, TASK, base.tokenizer)
    batch = TASK.collate(columns, base.tokenizer, 8)
    loss = TASK.loss(base.model(**TASK.inputs_of(batch)), batch)
    parts = [torch.log_softmax(row[: len(r["choices"])], -1)[r["label"]] for row, r in zip(logits, rows, strict=True)]
    assert loss.item() == pytest.approx(-sum(part.item() for part in parts), rel=1e-5)


def test_padding_choices_are_never_predicted() -> None:
    outputs = SimpleNamespace(logits=torch.tensor([[1.0, 2.0, 9.0]]))
    batch = {"choice_mask": torch.tensor([[True, True, False]])}
    [prediction] = TASK.predict(outputs, batch)
    assert prediction == {"prediction": 1, "probabilities": pytest.approx({"A": 0.268941, "B": 0.731059}, abs=1e-6)}


def test_bias_without_effect_is_saved_and_not_trained(bases: Callable[[str], Path]) -> None:
    base = TASK.load(BaseSettings(source=str(bases("bert"))))
    assert "classifier.bias" in base.model.state_dict()
    assert "classifier.bias" not in dict(base.model.named_parameters())


def test_longest_rows_for_planning_are_full() -> None:
    assert TASK.longest(512) == 96
    row = {name: values[0] for name, values in TASK.encode(quizzes(1), make_tokenizer()).items()}
    full = TASK.repeat_to_length(row, 96)
    assert [len(ids) for ids in full["input_ids"]] == [32] * 3
    assert TASK.collate({n: [v, v] for n, v in full.items()}, make_tokenizer(), 8)["input_ids"].shape == (2, 3, 32)
    assert TASK.probe({"input_ids": torch.arange(6).view(3, 2)})["input_ids"].tolist() == [
        [[0, 1], [4, 5]], [[2, 3], [0, 1]], [[4, 5], [2, 3]],
    ]  # fmt: skip


def test_majority_baseline_is_the_most_frequent_position() -> None:
    train = [{"label": position} for position in (1, 1, 0)]
    assert TASK.majority_baseline(train, [{"label": 1}, {"label": 2}, {"label": 1}, {"label": 0}]) == {"accuracy": 0.5}


@pytest.mark.slow
def test_run_learns_and_predicts(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["test"]["accuracy"] > 0.95
    assert result["before"]["majority"]["accuracy"] < 0.7
    [prediction] = predict_rows(run, [{"text": "word1 word2", "choices": ["saw", "red", "pear"]}])
    assert (prediction["prediction"], prediction["choice"], prediction["text"]) == (2, "pear", "word1 word2")
    assert max(prediction["probabilities"], key=prediction["probabilities"].get) == "C"


@pytest.mark.slow
def test_merged_model_gives_the_same_predictions_in_transformers(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForMultipleChoice

    trained = pefttools.load(run)
    rows = [trained.task.read(row) for row in quizzes(20, seed=4)]
    ours = verify.logits_and_predictions(trained.model, trained.task, rows, trained.base.tokenizer)[1]
    trained.recipe.strategy.merge(trained.model).save_pretrained(tmp_path)
    model, report = AutoModelForMultipleChoice.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = verify.logits_and_predictions(model, trained.task, rows, trained.base.tokenizer)[1]
    for one, other in zip(ours, theirs, strict=True):
        assert one["prediction"] == other["prediction"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
