"""Which method is recommended: a smaller one only if it is shown to be as good within the margin, else the best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pefttools import cli
from pefttools.bench.recommendation import Judgement, judge

SIZES = {"ia3": 10, "lora": 100, "full": 1000}


def scored(rows: int, seeds: int = 3, /, **accuracies: float) -> dict[str, NDArray[np.float64]]:
    """Tables (seeds, rows) of methods that are right on the same first rows, up to their accuracy."""
    order = np.random.default_rng(0).permutation(rows)
    return {name: np.tile((order < round(a * rows)).astype(float), (seeds, 1)) for name, a in accuracies.items()}


def judged(rows: int, seeds: int = 3, margin: float = 0.01, /, **accuracies: float) -> Judgement:
    return judge(scored(rows, seeds, **accuracies), SIZES, margin=margin)


def test_a_smaller_method_is_recommended_once_it_is_shown_to_be_as_good() -> None:
    found = judged(4000, ia3=0.80, lora=0.899, full=0.9).recommendation
    assert (found.method, found.best, found.shown) == ("lora", "full", ("lora",))
    assert "lora is recommended: it trains fewer parameters than full" in found.verdict
    assert "at most 1 point worse than every other method" in found.verdict


def test_the_best_mean_is_recommended_where_nothing_is_shown() -> None:
    """50 rows cannot show a difference of two points, which is not the same as showing that there is none."""
    found = judged(50, ia3=0.86, lora=0.88, full=0.9).recommendation
    assert (found.method, found.shown, found.not_shown) == ("full", (), ("ia3", "lora"))
    assert "not shown to be within 1 point: ia3, lora" in found.verdict


def test_the_verdict_says_what_it_would_take_to_know() -> None:
    found = judged(200, ia3=0.60, lora=0.895, full=0.9).recommendation
    assert found.method == "full"
    assert found.needed.startswith("to know about lora, it takes about ")
    rows = int(found.needed.split("about ")[2].split(" ")[0].replace(",", ""))
    assert judged(rows, ia3=0.60, lora=0.895, full=0.9).recommendation.method == "lora"


def test_nothing_is_recommended_on_one_seed() -> None:
    found = judged(4000, 1, ia3=0.80, lora=0.899, full=0.9).recommendation
    assert not found.is_supported
    assert found.verdict == "nothing is recommended on one seed; full has the best mean; run at least two seeds"


def test_the_margin_of_a_metric_without_bounds_is_a_share_of_the_best() -> None:
    noise = np.random.default_rng(1).normal(0.0, 1.0, 400)
    tables = {name: np.tile(mean + noise, (3, 1)) for name, mean in (("ia3", 20.3), ("lora", 20.1), ("full", 20.0))}
    found = judge(tables, SIZES, lower_is_better=True, margin=0.01, score_range=None)
    assert found.margin == pytest.approx(0.2, rel=0.01)
    assert found.recommendation.method == "lora"
    assert "at most 0.199 worse" in found.recommendation.verdict


def test_a_better_and_smaller_method_needs_no_proof() -> None:
    found = judged(200, ia3=0.95, lora=0.8, full=0.7).recommendation
    assert (found.method, found.verdict) == ("ia3", "ia3 is recommended: it is better than all others")


@pytest.mark.slow
def test_a_worse_method_is_rarely_declared_as_good() -> None:
    """A smaller method that is truly 1.2 points worse passes for one within 1 point in at most 5 of 100 suites."""
    draw, wrong, number = np.random.default_rng(7), 0, 200
    for _ in range(number):
        easy = draw.normal(0.0, 0.1, 3000)
        tables = {}
        for name, effect in (("ia3", -0.012), ("lora", -0.012), ("full", 0.0)):
            chance = np.clip(0.85 + effect + easy + draw.normal(0, 0.002, (3, 1)), 0, 1)
            tables[name] = (draw.random((3, 3000)) < chance).astype(np.float64)
        wrong += judge(tables, SIZES).recommendation.method != "full"
    assert wrong / number <= 0.05


def against_defaults(rows: int, seeds: int = 3, /, **accuracies: float) -> Judgement:
    tables = {"defaults": scored(rows, seeds, **accuracies)["lora"], "tuned": scored(rows, seeds, **accuracies)["full"]}
    return judge(tables, {"defaults": 100, "tuned": 100}, incumbent="defaults")


def test_an_incumbent_stays_unless_another_method_is_shown_to_be_better() -> None:
    better, alike = against_defaults(4000, lora=0.87, full=0.9), against_defaults(100, lora=0.89, full=0.9)
    assert better.recommendation.method == "tuned"
    assert better.recommendation.verdict == "tuned is recommended: it is better than defaults by 3.0 ± 0.5 points"
    assert alike.recommendation.method == "defaults"
    assert alike.recommendation.verdict.startswith("no detectable gain: keep defaults; tuned is better by 1.0 ± ")
    worse = against_defaults(4000, lora=0.9, full=0.87).recommendation
    assert worse.verdict == "no gain: keep defaults; tuned is worse by 3.0 ± 0.5 points"
    single = against_defaults(4000, 1, lora=0.87, full=0.9).recommendation
    assert (single.method, single.is_supported) == ("defaults", False)


def test_on_planted_ties_a_gain_is_seldom_seen() -> None:
    """Two methods of equal true accuracy, with rows and seeds that they do not share."""
    draw, wrong, number = np.random.default_rng(2), 0, 200
    for _ in range(number):
        shared = draw.normal(size=400)
        tables = {
            name: (shared + draw.normal(size=(3, 400)) + draw.normal(0, 0.03, (3, 1)) < 1.2).astype(np.float64)
            for name in ("defaults", "tuned")
        }
        wrong += judge(tables, {"defaults": 1, "tuned": 1}, incumbent="defaults").recommendation.method != "defaults"
    assert wrong / number <= 0.05


@pytest.mark.parametrize("margin", ["0", "-0.01"])
def test_a_margin_of_nothing_is_refused(margin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    words = ["advise", "--base", "x", "--task", "text_classification", "--data", "x.csv", f"--margin={margin}"]
    assert cli.run([*words, "--out", out]) == 2
    assert f"--margin: must be above 0, not {margin}" in capsys.readouterr().err
    assert cli.run(["bench", "classic", f"margin={margin}", "--out", out]) == 2
    assert f"margin: input should be greater than 0, got {margin}" in capsys.readouterr().err
