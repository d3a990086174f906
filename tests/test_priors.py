"""What the committed table says about methods: similar sets count more, and only the order of candidates follows it."""

from __future__ import annotations

from typing import Any

import pytest

from pefttools.bench import priors


def of_set(rows: int, classes: int, **methods: tuple[float, float]) -> dict[str, Any]:
    scores = {
        priors.key({"name": name}): {"score": score, "seconds": seconds} for name, (score, seconds) in methods.items()
    }
    return {"name": f"{rows} rows", "rows": rows, "classes": classes, "methods": scores}


@pytest.fixture
def two_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [
        of_set(500, 2, lora=(0.8, 10.0), full=(0.9, 20.0), bitfit=(0.7, 5.0)),
        of_set(50_000, 50, lora=(0.8, 100.0), full=(0.7, 800.0), bitfit=(0.75, 50.0)),
    ]
    monkeypatch.setattr(priors, "table", lambda: {"sets": sets})


WANTED = {"bitfit": {"name": "bitfit"}, "new": {"name": "new"}, "full": {"name": "full"}, "lora": {"name": "lora"}}


@pytest.mark.usefixtures("two_sets")
def test_the_set_that_is_alike_counts_more() -> None:
    small, large = priors.expected(WANTED["full"], 500, 2), priors.expected(WANTED["full"], 50_000, 50)
    assert small is not None
    assert large is not None
    assert small.gain == pytest.approx(0.1, abs=0.001)
    assert large.gain == pytest.approx(-0.1, abs=0.001)
    assert small.time == pytest.approx(2.0, rel=0.01)
    between = priors.expected(WANTED["full"], 5000, 10)
    assert between is not None
    assert between.gain == pytest.approx(0.0, abs=0.02)


@pytest.mark.usefixtures("two_sets")
def test_lora_comes_first_and_what_is_not_in_the_table_last() -> None:
    assert list(priors.ordered(WANTED, 500, 2)) == ["lora", "full", "bitfit", "new"]
    assert list(priors.ordered(WANTED, 50_000, 50)) == ["lora", "bitfit", "full", "new"]


@pytest.mark.usefixtures("two_sets")
def test_rows_without_classes_are_compared_by_their_number_alone() -> None:
    one = priors.expected(WANTED["full"], 500, None)
    assert one is not None
    assert one.gain == pytest.approx(0.1, abs=0.005)


@pytest.mark.usefixtures("two_sets")
def test_the_expectations_are_one_line() -> None:
    line = priors.told(priors.ordered(WANTED, 500, 2), 500, 2)
    assert line == "full +10.0 points in 2× the time, bitfit -10.0 points in 0.5× the time"
