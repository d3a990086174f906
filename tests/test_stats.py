"""The statistics of a suite: intervals cover, real differences are found, and equal methods are not separated."""

from __future__ import annotations

import numpy as np
import pytest

from pefttools.bench import stats

ROWS, SEEDS = 250, 3


def compared(tables: dict[str, stats.Array]) -> list[stats.Comparison]:
    return stats.compare_differences(stats.differences(tables), stats.mcnemar(tables))


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
        (pair,) = compared(simulated(draw, {"a": effect, "b": 0.0}, seed_sd))
        covered += pair.low <= effect <= pair.high
    assert 0.92 <= covered / number <= 0.98


@pytest.mark.parametrize(("chance", "seed_sd"), [(0.9, 0.01), (0.985, 0.003), (0.6, 0.02)])
def test_intervals_of_scores_cover_and_stay_in_range(chance: float, seed_sd: float) -> None:
    draw, covered, number = np.random.default_rng(2), 0, 400
    expected = np.clip(chance + draw.normal(0.0, 0.05, 200000), 0, 1).mean()
    for _ in range(number):
        luck = draw.normal(0.0, seed_sd, (2, 3, 1))
        easy = draw.normal(0.0, 0.05, ROWS)
        tables = (draw.random((2, 3, ROWS)) < np.clip(chance + easy + luck, 0, 1)).astype(float)
        low, high = stats.score_intervals({"a": tables[0], "b": tables[1]})["a"]
        assert 0 <= low < high <= 1
        covered += low <= expected <= high
    assert 0.92 <= covered / number <= 0.995


def test_interval_of_a_perfect_score_ends_at_1() -> None:
    low, high = stats.score_intervals({"a": np.ones((3, 50))})["a"]
    assert 0.9 < low < 0.95
    assert high == 1.0


def test_one_seed_has_no_interval() -> None:
    assert stats.score_intervals({"a": np.ones((1, 50)), "b": np.zeros((1, 50))}) == {}


@pytest.mark.slow
def test_equal_methods_share_a_tier_above_a_worse_one() -> None:
    """Equal methods differ only by chance, so a corrected test separates them in about 5 of 100 suites."""
    draw, together, number = np.random.default_rng(3), 0, 100
    for _ in range(number):
        tables = simulated(draw, {"one": 0.1, "again": 0.1, "loser": -0.2}, 0.01)
        pairs = compared(tables)
        differ = {frozenset((pair.first, pair.second)) for pair in pairs if pair.differs}
        tiers = stats.tiers({name: float(table.mean()) for name, table in tables.items()}, differ)
        assert tiers["loser"] > max(tiers["one"], tiers["again"])
        together += tiers["one"] == tiers["again"]
    assert together / number >= 0.9


def test_identical_predictions_never_differ() -> None:
    table = np.random.default_rng(0).integers(0, 2, (SEEDS, ROWS)).astype(float)
    (pair,) = compared({"a": table, "b": table.copy()})
    assert (pair.difference, pair.p, pair.mcnemar) == (0.0, 1.0, 1.0)
    assert not pair.differs


@pytest.mark.slow
def test_false_alarms_over_all_pairs_are_rare() -> None:
    draw = np.random.default_rng(4)
    alarms = 0
    for _ in range(100):
        tables = simulated(draw, dict.fromkeys("abcdef", 0.0), 0.02)
        alarms += any(pair.differs for pair in compared(tables))
    assert alarms <= 10


def test_mcnemar_by_hand() -> None:
    """Exact binomial: 1 row for a alone, 8 for b alone; twice the lower tail of (1/2)^9."""
    a = np.array([[1.0] * 1 + [0.0] * 8 + [1.0] * 20])
    b = np.array([[0.0] * 1 + [1.0] * 8 + [1.0] * 20])
    (pair,) = compared({"a": a, "b": b})
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
    least = np.median([stats.smallest_difference(compared(table)) or 0.0 for table in tables])
    found = 0
    for _ in range(200):
        (pair,) = compared(simulated(draw, {"a": float(least), "b": 0.0}, 0.0))
        found += pair.differs
    assert 0.7 <= found / 200 <= 0.92
