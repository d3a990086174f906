"""The statistics of a suite: intervals cover, real differences are found, and equal methods are not separated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pefttools.bench import stats
from pefttools.bench.recommendation import recommend

ROWS, SEEDS = 250, 3


def simulated(draw: np.random.Generator, effects: dict[str, float], seed_sd: float) -> dict[str, stats.Array]:
    """Correct (1) or wrong (0) on easy and hard rows; a method's effect is added to its chance of being correct."""
    easy = draw.normal(0.0, 0.15, ROWS)
    tables = {}
    for name, effect in effects.items():
        luck = draw.normal(0.0, seed_sd, (SEEDS, 1))
        own = draw.normal(0.0, 0.1, ROWS)
        chance = np.clip(0.6 + effect + easy + own + luck, 0, 1)
        tables[name] = (draw.random((SEEDS, ROWS)) < chance).astype(float)
    return tables


@pytest.mark.slow
@pytest.mark.parametrize("seed_sd", [0.0, 0.02])
def test_intervals_of_differences_cover(seed_sd: float) -> None:
    draw, effect, covered, number = np.random.default_rng(5), 0.06, 0, 400
    for _ in range(number):
        (pair,) = stats.compare(simulated(draw, {"a": effect, "b": 0.0}, seed_sd))
        covered += pair.low <= effect <= pair.high
    assert 0.92 <= covered / number <= 0.98


def test_intervals_of_means_cover() -> None:
    draw, covered, number = np.random.default_rng(2), 0, 2000
    for _ in range(number):
        _, low, high = stats.interval(draw.normal(0.9, 0.01, SEEDS).tolist())
        covered += low <= 0.9 <= high
    assert 0.92 <= covered / number <= 0.98


def test_one_seed_has_no_interval() -> None:
    mean, low, high = stats.interval([0.5])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)


def test_interval_is_that_of_student_t() -> None:
    mean, low, high = stats.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert (low, high) == pytest.approx((2 - 4.302652729911275 / math.sqrt(3), 2 + 4.302652729911275 / math.sqrt(3)))


@pytest.mark.slow
def test_equal_methods_share_a_tier_above_a_worse_one() -> None:
    """Equal methods differ only by chance, so a corrected test separates them in about 5 of 100 suites."""
    draw, together, number = np.random.default_rng(3), 0, 100
    for _ in range(number):
        tables = simulated(draw, {"one": 0.1, "again": 0.1, "loser": -0.2}, 0.01)
        pairs = stats.compare(tables)
        differ = {frozenset((pair.first, pair.second)) for pair in pairs if pair.differs}
        tiers = stats.tiers({name: float(table.mean()) for name, table in tables.items()}, differ)
        assert tiers["loser"] > max(tiers["one"], tiers["again"])
        together += tiers["one"] == tiers["again"]
    assert together / number >= 0.9


def test_identical_predictions_never_differ() -> None:
    table = np.random.default_rng(0).integers(0, 2, (SEEDS, ROWS)).astype(float)
    (pair,) = stats.compare({"a": table, "b": table.copy()})
    assert (pair.difference, pair.p, pair.mcnemar) == (0.0, 1.0, 1.0)
    assert not pair.differs


@pytest.mark.slow
def test_false_alarms_over_all_pairs_are_rare() -> None:
    draw = np.random.default_rng(4)
    alarms = 0
    for _ in range(100):
        tables = simulated(draw, dict.fromkeys("abcdef", 0.0), 0.02)
        alarms += any(pair.differs for pair in stats.compare(tables))
    assert alarms <= 10


def test_mcnemar_by_hand() -> None:
    """Exact binomial: 1 row for a alone, 8 for b alone; twice the lower tail of (1/2)^9."""
    a = np.array([[1.0] * 1 + [0.0] * 8 + [1.0] * 20])
    b = np.array([[0.0] * 1 + [1.0] * 8 + [1.0] * 20])
    (pair,) = stats.compare({"a": a, "b": b})
    assert pair.mcnemar == pytest.approx(2 * (1 + 9) / 2**9)


def test_holm_equals_r() -> None:
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_lower_is_better_reverses_tiers() -> None:
    differ = {frozenset(("low", "high"))}
    assert stats.tiers({"low": 1.0, "high": 2.0}, differ, lower_is_better=True) == {"low": 1, "high": 2}
    assert stats.tiers({"low": 1.0, "high": 2.0}, differ) == {"high": 1, "low": 2}


@pytest.mark.slow
def test_smallest_difference_is_found_with_a_power_of_80_percent() -> None:
    draw = np.random.default_rng(6)
    tables = [simulated(draw, {"a": 0.0, "b": 0.0}, 0.0) for _ in range(10)]
    least = np.median([stats.smallest_difference(stats.compare(table)) or 0.0 for table in tables])
    found = 0
    for _ in range(200):
        (pair,) = stats.compare(simulated(draw, {"a": float(least), "b": 0.0}, 0.0))
        found += pair.differs
    assert 0.7 <= found / 200 <= 0.92


SIZES = {"ia3": 10, "lora": 100, "full": 1000}


@pytest.mark.parametrize(
    ("means", "tiers", "method", "smaller", "verdict"),
    [
        ({"ia3": 0.81, "lora": 0.84, "full": 0.83}, (1, 1, 1), "lora", ("ia3",), "with fewer trained parameters: ia3"),
        (
            {"ia3": 0.81, "lora": 0.84, "full": 0.85},
            (1, 1, 1),
            "full",
            ("ia3", "lora"),
            "parameters: ia3, lora",
        ),
        ({"ia3": 0.81, "lora": 0.84, "full": 0.83}, (2, 1, 1), "lora", (), "train no fewer parameters: full"),
        ({"ia3": 0.61, "lora": 0.84, "full": 0.73}, (3, 1, 2), "lora", (), "lora is better than all others"),
        ({"ia3": 0.84, "lora": 0.84, "full": 0.84}, (1, 1, 1), "ia3", (), "train no fewer parameters: lora, full"),
    ],
)
def test_the_best_mean_is_recommended(
    means: dict[str, float], tiers: tuple[int, ...], method: str, smaller: tuple[str, ...], verdict: str
) -> None:
    """Not the smallest method of the first tier: a difference that is not significant can still exist."""
    found = recommend(means, dict(zip(means, tiers, strict=True)), SIZES)
    assert (found.method, found.may_be_as_good) == (method, smaller)
    assert verdict in found.verdict


def test_lower_mean_is_recommended_if_lower_is_better() -> None:
    assert recommend({"ia3": 9.0, "lora": 8.0}, {"ia3": 1, "lora": 1}, SIZES, lower_is_better=True).method == "lora"
