"""`pefttools advise`: the budget, the plan, and a recommendation on rows that are easy to learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pefttools import cli
from pefttools.bench import budget
from pefttools.bench.adviser import Config
from pefttools.bench.challengers import challenged
from pefttools.bench.halving import Candidate, Halving, planned
from pefttools.errors import UserError
from pefttools.recipe import recipes
from pefttools.reporter import SILENT


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5h", 5400), ("1h", 3600)]
)
def test_budget_is_parsed_to_seconds(text: str, seconds: float) -> None:
    assert budget.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "half an hour", "0s", "-5m", "5 m"])
def test_invalid_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--budget: must be"):
        budget.seconds(text)


def candidate(label: str, step: float) -> Candidate:
    return Candidate(label, {"name": "lora"}, 100, 1e-3, (1e-4, 1e-2), step, 1.0, 5.0)


def test_a_larger_budget_buys_a_more_thorough_plan() -> None:
    candidates = [candidate("slow", 0.2), candidate("fast", 0.05), candidate("mid", 0.1), candidate("lazy", 0.4)]
    plans = [planned(candidates, seconds, 5, 100) for seconds in (5, 100, 300, 1000, 4000)]
    assert plans[0] is None
    costs = [plan.seconds for plan in plans[1:] if plan]
    assert costs == sorted(costs)
    assert all(plan.seconds <= seconds for plan, seconds in zip(plans[1:], (100, 300, 1000, 4000), strict=True) if plan)
    last = plans[-1]
    assert last
    assert (len(last.candidates), last.rates, last.seeds) == (4, 3, 3)


def test_each_rung_keeps_a_third_of_the_trials() -> None:
    plan = Halving(tuple(candidate(name, 0.1) for name in "abcdef"), 3, 3, 2, 9.0, 10)
    assert plan.rungs == [(1.0, 18), (3.0, 6)]


def test_learning_rates_stay_in_the_strategys_range() -> None:
    tight = Candidate("tight", {"name": "lora"}, 1, 9e-3, (1e-3, 1e-2), 0.1, 1.0, 1.0)
    rates = tight.rates(3)
    assert len(rates) == 3
    assert min(rates) >= 1e-3
    assert max(rates) <= 1e-2
    assert tight.rates(1) == [9e-3]


class Fake:
    """An adviser with a fake clock, whose trials end at once and take exactly the estimated time."""

    def __init__(self, left: float, scores: dict[str, float]) -> None:
        self.clock = SimpleNamespace(left=left)
        self.scores, self.reporter = scores, SILENT
        self.left_out = [candidate(label, step) for label, step in (("slow", 0.4), ("fair", 0.2), ("good", 0.3))]
        self.ruled_out = {c.label: "too slow for this budget" for c in self.left_out}
        self.tried: list[str] = []

    def short_trial(self, config: Config, epochs: float) -> dict[str, Any]:
        label = config.candidate.label
        self.tried.append(label)
        self.clock.left -= config.candidate.seconds(epochs, 100)
        scored = {"accuracy": self.scores[label], "loss": 1.0}
        return {"status": "done", "metric": "accuracy", "lower_is_better": False, "validation": scored}

    def finals(self, configs: list[Config], plan: Halving) -> dict[Config, list[dict[str, Any]]]:
        self.clock.left -= plan.seeds * configs[0].candidate.seconds(plan.epochs, 100)
        return {config: [{}] * plan.seeds for config in configs}


@pytest.mark.parametrize(
    ("left", "tried", "late"),
    [
        (1e6, ["fair", "good", "slow"], ["good", "fair", "slow"]),
        (370, ["fair", "good", "slow"], ["good"]),
        (200, ["fair"], ["fair"]),
        (100, [], []),
    ],
)
def test_remaining_time_tries_candidates_that_were_left_out(left: float, tried: list[str], late: list[str]) -> None:
    plan = Halving((candidate("first", 0.1),), 3, 1, 1, 5.0, 100)
    fake: Any = Fake(left, {"slow": 0.7, "fair": 0.8, "good": 0.9})
    first = Config(plan.candidates[0], 1e-3)
    found = challenged(fake, plan, {first: [{}]})
    assert fake.tried == tried
    assert [config.candidate.label for config in found] == ["first", *late]
    assert set(fake.ruled_out) == {"slow", "fair", "good"} - set(late)
    assert all(fake.ruled_out[label] == "too slow for this budget" for label in fake.ruled_out if label not in tried)


@pytest.fixture(scope="module")
def advised(
    tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path], rows_file: Path
) -> tuple[int, Path]:
    out = tmp_path_factory.mktemp("advice") / "out"
    code = cli.run(
        [
            "advise",
            "--base",
            str(bases("bert")),
            "--task",
            "text_classification",
            "--data",
            str(rows_file),
            "--budget",
            "35s",
            "--out",
            str(out),
            "train.epochs=3",
            "task.max_length=32",
            "train.precision=fp32",
            "--strategies",
            "lora",
            "--strategies",
            "head",
        ]
    )
    return code, out


@pytest.mark.slow
def test_the_recommendation_is_a_recipe_and_its_run(advised: tuple[int, Path]) -> None:
    code, out = advised
    assert code == 0
    values = json.loads((out / "advice.json").read_text())
    chosen = recipes.load(str(out / "recipe.yaml")).recipe
    assert chosen.strategy.as_dict()["name"] == values["recommended"]["strategy"]["name"]
    assert chosen.train.learning_rate == values["recommended"]["learning_rate"]
    assert values["test"]["accuracy"] > 0.9
    assert values["spent_seconds"] <= 1.1 * values["budget_seconds"]
    assert json.loads((out / "recommended" / "result.json").read_text())["digest"] == chosen.digest


@pytest.mark.slow
def test_finalists_are_chosen_without_test_rows(advised: tuple[int, Path]) -> None:
    records = [json.loads(file.read_text()) for file in (advised[1] / "trials").glob("[!.]*.json")]
    assert len(records) >= 4
    assert all(record["test"] is None for record in records)


@pytest.mark.slow
def test_every_strategy_is_a_finalist_or_ruled_out(advised: tuple[int, Path]) -> None:
    values = json.loads((advised[1] / "advice.json").read_text())
    accounted_for = {row["label"].partition(",")[0] for row in values["finalists"]} | set(values["ruled_out"])
    assert {"lora", "head"} <= accounted_for


def test_budget_below_one_trial_is_refused(
    bases: Callable[[str], Path], rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base", str(bases("bert")), "--task", "text_classification", "--data", str(rows_file)]
    assert cli.run(["advise", *words, "--budget", "1s", "--out", str(tmp_path / "out")]) == 2
    assert "--budget: 1 s is too little" in capsys.readouterr().err


@pytest.mark.slow
def test_folder_with_advice_for_other_settings_is_refused(
    advised: tuple[int, Path], bases: Callable[[str], Path], rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base", str(bases("bert")), "--task", "text_classification", "--data", str(rows_file)]
    assert cli.run(["advise", *words, "--out", str(advised[1])]) == 2
    assert "contains advice for other settings" in capsys.readouterr().err
