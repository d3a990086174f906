"""Regression: reading numbers, training in any unit, and predictions in the unit of the labels."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import WORDS, make_tokenizer, train_tiny, write_csv
from scipy import stats
from torch import nn

import pefttools
from pefttools.bases.loading import BaseSettings
from pefttools.data.settings import DataSettings
from pefttools.data.splitting import Splits, load_splits
from pefttools.errors import UserError
from pefttools.exporters.driver import export
from pefttools.metrics import combined
from pefttools.nn import score
from pefttools.tasks.regression import Regression


def prices(number: int, seed: int = 0) -> list[dict[str, str]]:
    """Texts whose price is the number of fruits, in a large unit, far from 0."""
    draw = random.Random(seed)
    rows = []
    for _ in range(number):
        fruits = draw.randint(0, 4)
        words = draw.choices(WORDS, k=8 - fruits) + draw.choices(["apple", "pear", "plum"], k=fruits)
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "label": str(300_000 + 20_000 * fruits)})
    return rows


@pytest.fixture(scope="module")
def run(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prices")
    data = f"data.train={write_csv(folder / 'rows.csv', prices(500))}"
    return train_tiny(recipe_file, folder / "run", "task={name: regression, max_length: 32}", data)[0]


@pytest.mark.parametrize("seed", range(3))
def test_correlations_and_errors_equal_scipy(seed: int) -> None:
    draw = random.Random(seed)
    references = [draw.choice([0, 1, 2, 3.5]) for _ in range(50)]  # with ties
    predictions = [value + draw.gauss(0, 1) for value in references]
    errors = [a - b for a, b in zip(predictions, references, strict=True)]
    assert combined("pearson", "spearman", "mse", "mae").compute(
        predictions=predictions, references=references
    ) == pytest.approx(
        {
            "pearson": stats.pearsonr(predictions, references)[0],
            "spearman": stats.spearmanr(predictions, references)[0],
            "mse": sum(error**2 for error in errors) / 50,
            "mae": sum(map(abs, errors)) / 50,
        },
        rel=1e-12,
    )


@pytest.mark.parametrize(
    ("predictions", "references"), [([2.0] * 3, [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [2.0] * 3), ([1.0], [2.0])]
)
def test_constant_values_have_zero_correlation(predictions: list[float], references: list[float]) -> None:
    found = combined("pearson", "spearman").compute(predictions=predictions, references=references)
    assert found == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize(
    ("value", "number"), [("3", 3.0), (" 3.5 ", 3.5), (4, 4.0), (-0.25, -0.25), ("1e3", 1000.0), ("-7", -7.0)]
)
def test_numbers_are_read(value: Any, number: float) -> None:
    assert Regression().read({"text": "a", "label": value})["label"] == number


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("good", "has a label that is not a number: 'good'"),
        ("3,5", "has a label that is not a number: '3,5'"),
        ("1_000", "has a label that is not a number: '1_000'"),
        (True, "has a label that is not a number: True"),
        ([1.0], r"has a label that is not a number: \[1.0\]"),
        ({"value": 1}, "has a label that is not a number: {'value': 1}"),
        ("nan", "has a label that is not finite: 'nan'"),
        (float("inf"), "has a label that is not finite: inf"),
        (10**400, "has a label that is not a number: 1000"),
        ("-1e16", r"has a label beyond ±1e\+15, too large for single precision: -1e\+16"),
        (" ", "has no label"),
        (None, "has no label"),
    ],
)
def test_labels_that_are_not_numbers_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regression().read({"text": "a", "label": value})


def test_error_about_an_invalid_row_has_its_number(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "rows.csv", [{"text": f"a{i}", "label": "x" if i == 4 else "1"} for i in range(9)])
    with pytest.raises(UserError, match=r"data.train: .*rows.csv: row 5 has a label that is not a number: 'x'"):
        load_splits(DataSettings.model_validate({"train": str(file)}), Regression())


def splits(*train: dict[str, Any]) -> Splits:
    return Splits(list(train), list(train[:1]), [])


def test_mean_and_scale_are_those_of_the_training_labels() -> None:
    task = Regression().fit(splits(*({"text": "a", "label": label} for label in (1.0, 2.0, 6.0))))
    assert (task.label_mean, task.label_scale, task.pair) == (3.0, pytest.approx(14**0.5 / 3**0.5), False)
    fixed = Regression(label_mean=0.0, label_scale=2.0).fit(
        splits({"text": "a", "label": 1.0}, {"text": "b", "label": 2.0})
    )
    assert (fixed.label_mean, fixed.label_scale) == (0.0, 2.0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": 0.1}] * 3, "every row has the label 0.1; there is nothing to learn"),
        ([{"text": "a", "label": 1.0}, {"text": "a", "text_pair": "b", "label": 2.0}], "some rows are pairs of texts"),
        ([{"text": "a", "label": "low"}], "data.bins: makes classes of numbers"),
    ],
)
def test_data_without_usable_labels_is_refused(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Regression().fit(splits(*rows))


def test_loss_is_in_standard_deviations_of_the_labels() -> None:
    task = Regression(label_mean=100.0, label_scale=10.0)
    batch = {"input_ids": torch.zeros(2, 3), "labels": torch.tensor([100.0, 130.0])}
    outputs = SimpleNamespace(logits=torch.tensor([[120.0], [100.0]]))
    assert task.loss(outputs, batch).item() == pytest.approx(2.0**2 + 3.0**2)
    assert task.logits(outputs, batch).tolist() == [[pytest.approx(120 / 110)], [pytest.approx(100 / 110)]]
    assert task.predict(outputs, batch) == [{"prediction": 120.0}, {"prediction": 100.0}]
    assert task.majority_baseline([{"label": 1.0}, {"label": 3.0}], [{"label": 2.0}, {"label": 5.0}]) == {
        "pearson": 0.0, "spearman": 0.0, "mse": 4.5, "mae": 1.5,
    }  # fmt: skip


def test_text_pairs_are_encoded_and_truncated() -> None:
    rows = [
        {"text": "word1 word2 word3", "text_pair": "word4", "label": 1.5},
        {"text": "word1", "text_pair": "word2", "label": 2},
    ]
    encoded = Regression(pair=True, max_length=5).encode(rows, make_tokenizer())
    assert [len(ids) for ids in encoded["input_ids"]] == [5, 5]
    assert {name: encoded[name] for name in ("cut", "labels", "num_targets")} == {
        "cut": [True, False], "labels": [1.5, 2.0], "num_targets": [1, 1],
    }  # fmt: skip


def test_symmetric_pairs_are_predicted_in_both_orders() -> None:
    rows = [
        {"text": "word1 word2", "text_pair": "word4", "label": 1.5},
        {"text": "word1", "text_pair": "word2", "label": 2},
    ]
    task = Regression(pair=True, symmetric=True)
    encoded = task.encode(rows, make_tokenizer())
    assert make_tokenizer().batch_decode(encoded["input_ids"][:2]) == [
        "[CLS] word1 word2 [SEP] word4 [SEP]", "[CLS] word4 [SEP] word1 word2 [SEP]",
    ]  # fmt: skip
    assert {name: encoded[name] for name in ("row", "labels", "num_targets")} == {
        "row": [0, 0, 1, 1], "labels": [1.5, 1.5, 2.0, 2.0], "num_targets": [1] * 4,
    }  # fmt: skip
    assert task.aggregate(rows[0], [], [{"prediction": 1.0}, {"prediction": 2.0}]) == {"prediction": 1.5}
    with pytest.raises(UserError, match=r"task.symmetric: needs pairs of texts, but data.train has no text_pair"):
        Regression(symmetric=True).fit(splits({"text": "a", "label": 1.0}, {"text": "b", "label": 2.0}))


@pytest.mark.parametrize("bias", [True, False])
def test_scaled_linear_saves_as_a_plain_linear_with_the_same_outputs(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 1, bias=bias)
    start = [p.detach().clone() for p in plain.parameters()]
    layer = score.ScaledLinear.of(plain, 300.0, 50.0, trained=False)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), start, strict=True))
    reloaded = nn.Linear(6, 1, bias=bias)
    reloaded.load_state_dict(layer.state_dict())
    values = torch.randn(5, 6)
    torch.testing.assert_close(reloaded(values), layer(values))
    assert layer(torch.zeros(1, 6)).item() == pytest.approx(300.0 + 50.0 * start[1].item() if bias else 0.0)
    other = score.ScaledLinear.of(nn.Linear(6, 1, bias=bias), 300.0, 50.0, trained=False)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(values), layer(values))
    again = score.ScaledLinear.of(reloaded, -7.0, 3.0, trained=True)
    torch.testing.assert_close(again(values), layer(values))


@pytest.mark.slow
def test_run_learns_and_predicts_in_the_unit_of_the_labels(run: Path) -> None:
    test = json.loads((run / "result.json").read_text())["test"]
    assert test["pearson"] > 0.9
    assert test["mae"] < 10_000
    trained = pefttools.load(run)
    config = trained.base.model.config
    assert (config.num_labels, config.problem_type) == (1, "regression")


@pytest.mark.slow
def test_merged_model_and_adapter_give_the_same_predictions_in_transformers(
    run: Path, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    assert export(run, "merged", tmp_path / "merged")["max_logit_error"] <= 1e-5
    trained = pefttools.load(run)
    texts = [row["text"] for row in prices(20, seed=5)]
    batch = AutoTokenizer.from_pretrained(tmp_path / "merged")(texts, padding=True, return_tensors="pt")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    base = AutoModelForSequenceClassification.from_pretrained(bases("bert"), num_labels=1)
    adapter = PeftModel.from_pretrained(base, str(run / "adapter")).eval()
    # training that continues from it in another unit starts with the same predictions
    continued = Regression(label_mean=1.0, label_scale=2.0).load(BaseSettings(source=str(tmp_path / "merged"))).model
    with torch.no_grad():
        ours = trained.model(**batch).logits
        for model in (merged, adapter, continued):
            torch.testing.assert_close(model(**batch).logits, ours, rtol=1e-5, atol=0.5)
    assert 290_000 < ours.min() < 320_000 < ours.mean() < 360_000


@pytest.mark.slow
def test_full_fine_tuning_of_years_saves_equal_predictions(recipe_file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    rows = [{**row, "label": str(1990 + int(row["label"]) / 10_000)} for row in prices(120)]
    data, task = f"data.train={write_csv(tmp_path / 'rows.csv', rows)}", "task={name: regression, max_length: 32}"
    run = train_tiny(recipe_file, tmp_path / "run", task, data, "strategy=full", "train.epochs=1")[0]
    trained = pefttools.load(run)
    batch = trained.base.tokenizer([rows[0]["text"]], return_tensors="pt")
    with torch.no_grad():
        ours = trained.model(**batch).logits
        trained.recipe.strategy.merge(trained.model).save_pretrained(tmp_path / "merged")
        reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        theirs = reloaded(**batch).logits
    outputs = [SimpleNamespace(logits=logits) for logits in (ours, theirs)]
    ours, theirs = (trained.task.logits(output, batch) for output in outputs)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    assert 0.99 < ours.item() < 1.01


def test_labels_beyond_the_resolution_of_float32_are_remarked() -> None:
    far, near = Regression(label_mean=1.7e9, label_scale=100.0), Regression(label_mean=2000.0, label_scale=10.0)
    tokenizer, rows = make_tokenizer(), splits({"text": "a", "label": 1.0})
    assert near.remarks(rows, tokenizer) == []
    assert far.remarks(rows, tokenizer) == [
        "the labels have mean 1.7e+09 and standard deviation 100: single precision cannot resolve their"
        " differences well; subtract a constant from them"
    ]


def test_head_without_a_bias_has_a_scale_that_includes_the_mean(bases: Callable[[str], Path]) -> None:
    base = Regression(label_mean=30.0, label_scale=40.0).load(BaseSettings(source=str(bases("llama"))))
    layer: Any = base.model.get_submodule("score")
    assert (layer.bias, layer.mean, layer.scale) == (None, 0.0, 50.0)
