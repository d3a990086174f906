"""Methods compared over several test sets: coverage for new sets, what is left out, and what is recommended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from pefttools import cli
from pefttools.bench.pooling import ScoredSet, pool

SIZES = {"a": 10, "b": 20, "c": 30}


def drawn(
    draw: np.random.Generator, gains: Mapping[str, float], sets: int, rows: int = 300, spread: float = 0.0
) -> list[ScoredSet]:
    """Sets of right (1) and wrong (0) rows; a method's gain varies over sets with the standard deviation `spread`."""
    found = []
    for number in range(sets):
        level, easy, tables = draw.uniform(0.5, 0.85), draw.normal(0.0, 0.1, rows), {}
        for name, gain in gains.items():
            luck = draw.normal(0.0, 0.01, (3, 1))
            chance = level + gain + draw.normal(0.0, spread) + easy + draw.normal(0.0, 0.05, rows) + luck
            tables[name] = (draw.random((3, rows)) < np.clip(chance, 0, 1)).astype(float)
        found.append(ScoredSet(f"set {number}", "accuracy", tables, SIZES))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("sets", [3, 7])
def test_intervals_hold_for_new_sets(sets: int, spread: float) -> None:
    """benchmarks/pooling.py measures the coverage with more draws."""
    draw, covered, number = np.random.default_rng(3), 0, 150
    for _ in range(number):
        found = pool(drawn(draw, {"a": 0.03, "b": 0.0}, sets, 150, spread))
        assert found is not None
        low, high = found.differences["a", "b"].interval()
        covered += low <= 0.03 <= high
    assert covered / number >= 0.91


def test_the_mean_is_over_sets_not_rows() -> None:
    def of(accuracy: float, rows: int) -> NDArray[np.float64]:
        return np.tile((np.arange(rows) < accuracy * rows).astype(float), (2, 1))

    sets = [
        ScoredSet(f"set {rows}", "accuracy", {"a": of(0.5, rows), "b": of(share, rows)}, SIZES)
        for rows, share in ((10, 0.9), (100, 0.5), (1000, 0.6))
    ]
    found = pool(sets)
    assert found is not None
    assert found.judgement.means == pytest.approx({"a": 0.5, "b": (0.9 + 0.5 + 0.6) / 3})
    one = found.differences["b", "a"]
    assert (one.value, one.num_sets) == (pytest.approx((0.4 + 0.0 + 0.1) / 3), 3)
    assert one.error**2 == pytest.approx(np.var([0.4, 0.0, 0.1], ddof=1) / 3)
    assert one.freedom == 2


def test_sets_that_disagree_show_less_than_their_rows_do() -> None:
    """On these sets `a` is better beyond doubt; that it is better on new ones is another question."""
    tables = [{"a": np.full((2, 4000), 0.7 + gain), "b": np.full((2, 4000), 0.7)} for gain in (0.08, -0.02, 0.03)]
    found = pool([ScoredSet(f"set {i}", "accuracy", table, SIZES) for i, table in enumerate(tables)])
    assert found is not None
    assert found.visible_on_these == pytest.approx(0.0, abs=1e-6)
    assert (found.judgement.smallest_difference or 0.0) > 0.05
    assert found.judgement.tiers == {"a": 1, "b": 1}


def test_a_smaller_method_is_recommended_where_all_sets_show_it() -> None:
    losses = (0.001, 0.003, 0.002, 0.004, 0.0)  # of `a` against `c`, set by set
    tables = [
        {"a": np.full((2, 900), 0.7 - loss), "b": np.full((2, 900), 0.5), "c": np.full((2, 900), 0.7)}
        for loss in losses
    ]
    found = pool([ScoredSet(f"set {i}", "accuracy", table, SIZES) for i, table in enumerate(tables)])
    assert found is not None
    advice = found.judgement.recommendation
    assert advice.method == "a"
    assert "shown to be at most 1 point worse" in advice.verdict


def test_what_it_takes_is_told_in_sets() -> None:
    found = pool(drawn(np.random.default_rng(1), {"a": 0.0, "b": 0.0, "c": 0.004}, 4, spread=0.02))
    assert found is not None
    assert found.judgement.recommendation.needed.endswith("sets")


def test_metrics_are_shares_of_their_range_and_unbounded_ones_are_left_out() -> None:
    table = {"a": np.full((2, 50), 0.5), "b": np.full((2, 50), 0.0)}
    sets = [
        ScoredSet("one", "matthews_correlation", table, SIZES, (-1.0, 1.0)),
        ScoredSet("two", "accuracy", table, SIZES),
        ScoredSet("three", "error", table, SIZES, (0.0, 1.0), lower_is_better=True),
        ScoredSet("four", "perplexity", table, SIZES, None, lower_is_better=True),
    ]
    found = pool(sets)
    assert found is not None
    assert found.by_set["a"] == {"one": 0.75, "two": 0.5, "three": 0.5}
    assert found.by_set["b"] == {"one": 0.5, "two": 0.0, "three": 1.0}
    assert found.left_out == {"four": "perplexity has no bounds"}


def test_a_method_without_scores_on_a_set_is_left_out() -> None:
    sets = drawn(np.random.default_rng(0), {"a": 0.0, "b": 0.0, "c": 0.0}, 3)
    sets[1] = ScoredSet("set 1", "accuracy", {n: t for n, t in sets[1].tables.items() if n != "b"}, SIZES)
    found = pool(sets)
    assert found is not None
    assert set(found.by_set) == {"a", "c"}
    assert found.left_out == {"b": "has no scores on set 1"}


@pytest.mark.parametrize("sets", [1, 2])
def test_two_sets_say_nothing_about_others(sets: int) -> None:
    assert pool(drawn(np.random.default_rng(0), {"a": 0.0, "b": 0.0}, sets)) is None


def test_nothing_is_recommended_on_one_seed() -> None:
    sets = drawn(np.random.default_rng(0), {"a": 0.0, "b": 0.0}, 3)
    alone = [ScoredSet(one.name, "accuracy", {n: t[:1] for n, t in one.tables.items()}, SIZES) for one in sets]
    found = pool(alone)
    assert found is not None
    assert not found.judgement.recommendation.is_supported
    assert "nothing is recommended on one seed" in found.judgement.recommendation.verdict


def test_the_margin_must_be_above_0() -> None:
    with pytest.raises(ValueError, match="margin: must be above 0"):
        pool(drawn(np.random.default_rng(0), {"a": 0.0, "b": 0.0}, 3), margin=0.0)


@pytest.mark.slow
def test_a_suite_of_three_sets_opens_with_all_of_them(
    tmp_path: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command: pooled for each setting of the other axes, here two sizes."""
    tasks = {f"set {i}": {"recipe": str(recipe_file), "set": {"data.split_seed": i}} for i in range(3)}
    axes = {"tasks": tasks, "sizes": [8, "all"], "strategies": {"lora": None, "loser": {"name": "frozen"}}}
    suite = {
        "recipe": str(recipe_file),
        "set": {"train.epochs": 1},
        "axes": axes,
        "seeds": [0, 1],
        "tuning": {"trials": 1},
    }
    (tmp_path / "three.yaml").write_text(yaml.safe_dump(suite))
    assert cli.run(["bench", str(tmp_path / "three.yaml"), "--out", str(tmp_path / "out")]) == 0
    values = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [pool["name"] for pool in values["pools"]] == ["8", "all"]
    for found in values["pools"]:
        mine = [one for one in values["problems"] if one["name"].endswith(f" · {found['name']}")]
        assert found["sets"] == [one["name"] for one in mine]
        for row in found["methods"]:
            of_sets = [r["mean"] for one in mine for r in one["methods"] if r["method"] == row["method"]]
            assert row["mean"] == pytest.approx(np.mean(of_sets))
        assert {row["method"] for row in found["methods"]} == {"lora", "loser"}
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.index("## All sets: 8") < table.index("## All sets: all") < table.index("## set 0 · 8")
    assert "all sets" in capsys.readouterr().out
