"""Metrics of the user's own: computed at every evaluation, known to the process that registers them, able to choose."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Listener, make_rows
from test_api import fitted
from tiny_bases import tied_language_model

import pefttools
from pefttools.analysis.scored_run import open_run
from pefttools.api.session import REGISTRIES
from pefttools.errors import UserError
from pefttools.metrics.base import ClassMetric

pytestmark = pytest.mark.slow
ROWS = make_rows(120)
TRAIN = {"epochs": 2, "learning_rate": 0.003, "evaluate_every": 0.5, "trackers": [], "precision": "fp32"}


def cost(references: list[str], predictions: list[str]) -> int:
    """A missed fruit costs 5, any other mistake 1."""
    wrong = (reference for reference, found in zip(references, predictions, strict=True) if reference != found)
    return sum(5 if reference == "fruit" else 1 for reference in wrong)


def sureness(
    references: list[str], predictions: list[str], probabilities: list[dict[str, float]]
) -> Mapping[str, float]:
    """The least and the mean probability of the right class."""
    found = [row[reference] for row, reference in zip(probabilities, references, strict=True)]
    return {"least": min(found), "mean": sum(found) / len(found)}


class LastClass(ClassMetric):
    """`last_class`: the share of rows for which the last class is predicted."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:  # type: ignore[override]
        return {"last_class": sum(one == 2 for one in predictions) / len(predictions)}


@pytest.fixture(scope="module", autouse=True)
def _session() -> Iterator[None]:
    yield
    for registry in REGISTRIES:
        registry.added.clear()


@pytest.fixture(scope="module")
def base(bases: Callable[[str], Path]) -> str:
    return str(bases("bert"))


@pytest.fixture(scope="module")
def run(base: str, tmp_path_factory: pytest.TempPathFactory) -> pefttools.TrainedRun:
    return fitted(
        ROWS, tmp_path_factory.mktemp("own") / "run", base, metrics=[cost, sureness, LastClass],
        train={**TRAIN, "best_metric": "cost", "best_mode": "min"},
    )  # fmt: skip


def test_every_evaluation_has_them(run: pefttools.TrainedRun) -> None:
    names = {"cost", "least", "mean", "last_class"}
    assert names <= {*run.metrics}
    assert names <= {*run.result["validation"]}
    assert names <= {*run.result["before"]}
    assert names <= {*run.evaluate()}
    table = run.history.dropna(subset=["validation.cost"])
    assert len(table) == 3
    texts = run.predictions
    assert run.metrics["cost"] == cost(list(texts["reference"]), list(texts["prediction"]))
    predicted = list(texts["prediction"])
    assert run.metrics["last_class"] == pytest.approx(predicted.count("tool") / len(predicted))
    right = [row[reference] for row, reference in zip(texts["probabilities"], texts["reference"], strict=True)]
    assert run.metrics["least"] == pytest.approx(min(right))
    assert run.evaluate(by="length")["by"]["groups"][0]["scores"]["cost"]["value"] >= 0


def test_one_of_them_chooses_the_weights(run: pefttools.TrainedRun, base: str, tmp_path: Path) -> None:
    table = run.history.dropna(subset=["validation.cost"])
    ordered = table.sort_values(["validation.cost", "validation.loss"])
    assert run.result["train"]["best_step"] == ordered["step"].iloc[0]
    highest = fitted(
        ROWS, tmp_path / "worst", base, metrics=[cost], train={**TRAIN, "best_metric": "cost", "best_mode": "max"}
    )
    table = highest.history.dropna(subset=["validation.cost"])
    assert highest.result["validation"]["cost"] == table["validation.cost"].max()
    by_loss = fitted(ROWS, tmp_path / "loss", base, train={**TRAIN, "best_metric": "loss"})
    assert by_loss.result["validation"]["loss"] == pytest.approx(by_loss.history["validation.loss"].min(), rel=1e-4)
    assert by_loss.recipe.digest != fitted(ROWS, tmp_path / "plain", base, train=TRAIN).recipe.digest


def test_other_processes_say_what_they_do_not_know(run: pefttools.TrainedRun, base: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PEFTTOOLS_PLUGINS": str(tmp_path)}
    command = [sys.executable, "-m", "pefttools"]
    scored = subprocess.run([*command, "evaluate", str(run.path), "--json"], capture_output=True, text=True, check=True)
    found = json.loads(scored.stdout)
    assert found["accuracy"] == run.metrics["accuracy"]
    assert "cost" not in found
    assert "unknown metric 'cost'" in scored.stderr
    assert "left out" in scored.stderr
    subprocess.run([*command, "export", str(run.path), "--to", "merged"], capture_output=True, check=True)
    again = [*command, "train", str(run.path / "recipe.yaml"), "--out", str(tmp_path / "again")]
    refused = subprocess.run(again, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "task.extra_metrics: unknown metric 'sureness'" in refused.stderr
    assert "pefttools.register" in refused.stderr
    assert not (tmp_path / "again").exists()
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "mine.py").write_text(
        "from pefttools.metrics.base import ClassMetric\n\n\nclass Mine(ClassMetric):\n"
        "    def _compute(self, predictions, references):\n        return {'mine': float(len(predictions))}\n"
    )
    with_file = [*again, 'task.extra_metrics=["mine"]', "train.best_metric=null", "train.best_mode=auto"]
    subprocess.run(with_file, capture_output=True, text=True, check=True, env=environment)
    result = pefttools.TrainedRun(tmp_path / "again", progress=False).result
    assert result["test"]["mine"] == result["data"]["rows"]["test"]


def test_a_report_leaves_out_what_is_unknown(run: pefttools.TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "added", {})
    listener = Listener()
    assert "cost" not in open_run(run.path, listener).scored.scores
    assert any("unknown metric 'cost'" in one for one in listener.warnings)


def numberless(references: Any, predictions: Any) -> str:
    return "many"


def failing(references: Any, predictions: Any) -> float:
    return 1 / 0


def accuracy(references: Any, predictions: Any) -> float:
    return 1.0


def twice(references: Any, predictions: Any) -> dict[str, float]:
    return {"accuracy": 1.0}


def strange(truth: Any, predictions: Any) -> float:
    return 1.0


WRONG: Mapping[str, tuple[dict[str, Any], str]] = {
    "text": ({"metrics": [numberless]}, "'numberless': must return a number, or a mapping.*'many'"),
    "an error": ({"metrics": [failing]}, "'failing' failed: ZeroDivisionError"),
    "a shipped name": ({"metrics": [accuracy]}, "'accuracy': the name must be an identifier that no file has"),
    "the task's": ({"metrics": [twice]}, "has a metric accuracy already; rename yours"),
    "parameters": ({"metrics": [strange]}, "the parameters must be `references` and `predictions`.*truth, predictions"),
    "lambda": ({"metrics": [lambda references, predictions: 1.0]}, "the name must be an identifier"),
    "no list": ({"metrics": cost}, "metrics: must be a list"),
    "a number": ({"metrics": [3]}, "derived from none of"),
    "unknown": ({"metrics": ["kost"]}, "unknown metric 'kost'"),
    "unknown best": ({"train": {**TRAIN, "best_metric": "acuracy"}}, "train.best_metric.*did you mean 'accuracy'"),
    "no best": ({"overrides": {"train.best_mode": "min"}}, "best_mode=.?min.? has no effect"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_told_and_nothing_is_written(name: str, base: str, tmp_path: Path) -> None:
    more, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        fitted(ROWS, tmp_path / "run", base, **more)
    assert not (tmp_path / "run").exists()


def undefined(references: Any, predictions: Any) -> float:
    """Not a number where one class alone is predicted."""
    return 0.5 if len({*predictions}) > 1 else math.nan


def test_a_value_that_is_not_finite_is_left_out(base: str, tmp_path: Path) -> None:
    found = fitted(ROWS, tmp_path / "run", base, metrics=[undefined], train={**TRAIN, "best_metric": "undefined"})
    assert found.metrics["undefined"] == 0.5
    assert found.result["train"]["best_step"] > 0


def never(references: Any, predictions: Any) -> float:
    return math.nan


def test_a_best_metric_without_values_is_told(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = {**TRAIN, "epochs": 1, "best_metric": "never"}
    fitted(ROWS, tmp_path / "run", base, metrics=[never], train=train, progress=True)
    warned = " ".join(capsys.readouterr().err.split())
    assert "train.best_metric: 'never' has no value before training" in warned


def words(references: list[str], predictions: list[str]) -> float:
    """The mean number of words of a generated answer."""
    return sum(len(text.split()) for text in predictions) / len(predictions)


def test_generated_texts_are_scored_while_training(tmp_path: Path) -> None:
    rows = [{"prompt": row["text"], "completion": row["label"]} for row in ROWS[:40]]
    found = pefttools.fit(
        rows, task={"name": "causal_lm", "max_length": 48, "max_new_tokens": 4, "generate_rows": 2},
        base=tied_language_model(tmp_path / "base"), metrics=[words], out=tmp_path / "run", progress=False,
        train={**TRAIN, "epochs": 1, "best_metric": "words"},
    )  # fmt: skip
    assert len(found.history["validation.words"].dropna()) > 0
    assert 0 <= found.metrics["words"] <= 4
