"""The charts of a suite: frames that contain what they show, labels that do not overlap, files that do not change."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pefttools.bench import charts, labels, plots, vega
from pefttools.bench.frames import frame, front, share, widened, within

MEANS = {"full": 0.92, "lora": 0.91, "bitfit": 0.89, "prefix": 0.88, "adapter": 0.9}


def problem(means: dict[str, float], lower_is_better: bool = False) -> dict[str, Any]:
    rows = [
        {"method": name, "mean": mean, "low": mean - 0.02, "high": mean + 0.03, "params": {"trainable": 10**i},
         "peak_bytes": 2**30 + i, "seconds": 5.0 + i, "adapter_bytes": 100 * i, "curve":
         [{"learning_rate": 1e-2, "score": mean}, {"learning_rate": 1e-3, "score": None},
          {"learning_rate": 1e-4, "score": mean - 0.1}]}
        for i, (name, mean) in enumerate(means.items())
    ]  # fmt: skip
    return {"name": "one", "metric": "accuracy", "lower_is_better": lower_is_better, "methods": rows}


def test_pareto_front_has_only_points_that_none_beats() -> None:
    points = [(1, 0.5), (2, 0.4), (3, 0.7), (3, 0.6), (4, 0.7)]
    assert front(points) == [(1, 0.5), (3, 0.7)]
    assert front(points, lower_is_better=True) == [(1, 0.5), (2, 0.4)]


def test_frame_contains_all_intervals_but_those_of_far_outliers() -> None:
    near = [(0.88, 0.9, 0.93), (0.85, 0.91, 0.95), (0.89, 0.92, 0.94), (0.9, 0.92, 0.93)]
    low, high = frame(near)
    assert low < 0.85
    assert high > 0.95
    assert frame([*near, (0.2, 0.3, 0.4)]) == (low, high)
    assert frame([*near, (0.83, 0.84, 0.85)])[0] < 0.83  # further than the others, but the chart has room for it
    high_is_bad = [(1 - high, 1 - value, 1 - low) for low, value, high in [*near, (0.2, 0.3, 0.4)]]
    assert frame(high_is_bad, lower_is_better=True) == pytest.approx((1 - high, 1 - low))
    assert frame([(0.5, 0.5, 0.5)])[0] < 0.5


def test_axes_have_room_and_places() -> None:
    assert widened([1.0, 100.0], is_logarithmic=True) == pytest.approx((10**-0.1, 10**2.1))
    assert share(10, 1, 100, is_logarithmic=True) == pytest.approx(0.5)
    assert within(0.1, (0.5, 1.5)) == pytest.approx(0.52)


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_nothing_is_outside_the_frame(lower_is_better: bool) -> None:
    shown = problem({**MEANS, "outlier": 1.9 if lower_is_better else 0.2}, lower_is_better)
    ends = frame([(row["low"], row["mean"], row["high"]) for row in shown["methods"]], lower_is_better)
    rows = charts.cost_rows(shown, charts.COSTS["file"], ends)
    assert all(ends[0] <= row[name] <= ends[1] for row in rows for name in ("y", "low", "high"))
    assert [row["label"] for row in rows][-1] == ("outlier ↑ 1.9000" if lower_is_better else "outlier ↓ 0.2000")
    assert all(row["x"] > 0 for row in rows)  # a file of 0 bytes has a place on a logarithmic axis
    assert rows[0]["cost"] == 0


def test_labels_cover_neither_points_nor_each_other() -> None:
    draw = random.Random(0)
    points = [(draw.uniform(0, 400), draw.uniform(0, 300), "method" * draw.randint(1, 3)) for _ in range(40)]
    middles = labels.place(points, 400, 300)
    boxes = [
        labels._box(*middle, len(text) * labels.LETTER / 2)
        for middle, (_, _, text) in zip(middles, points, strict=True) if middle
    ]  # fmt: skip
    assert len(boxes) > 15
    assert not any(labels._overlap(*pair) for pair in itertools.combinations(boxes, 2))
    assert not any(labels._overlap(box, (x, y, x, y)) for box in boxes for x, y, _ in points)
    assert all(left >= 0 and top >= 0 and right <= 400 and bottom <= 300 for left, top, right, bottom in boxes)


def test_look_depends_on_names_alone() -> None:
    look = vega.Look.of(["lora", "full", "bitfit"])
    assert look == vega.Look.of(["bitfit", "bitfit", "full", "lora"])
    many = vega.Look.of([f"method-{i}" for i in range(32)])
    assert len({mark["colour"] for mark in many.marks.values()}) == 32


def test_a_chart_has_only_trials_that_finished() -> None:
    assert charts.curves(problem({"lora": 0.9})) == {"lora": [(1e-4, 0.8), (1e-2, 0.9)]}


def test_files_are_reproducible(tmp_path: Path) -> None:
    problems = [problem(MEANS), {**problem({"lora": 0.5, "full": 0.6}), "name": "two"}]
    written = [{p.name: p.read_bytes() for p in plots.write({"problems": problems}, tmp_path / n)} for n in "ab"]
    assert written[0] == written[1]
    assert written[0]["pareto.png"].startswith(b"\x89PNG")
    text = written[0]["pareto.svg"].decode()
    assert all(f">{name}</text>" in text for name in (*MEANS, "two", "trained parameters", "peak memory, MB"))
    assert plots.write({"problems": [{"methods": [{"method": "bad"}]}]}, tmp_path / "none") == []


def test_layers_of_a_figure_have_names_of_their_own() -> None:
    """Layers of one name would share the axes of the last one."""
    drawn = plots.figure({"problems": [problem(MEANS), problem({"lora": 0.2, "full": 0.3})]})
    names = list(_names(drawn))
    assert len(names) == len(set(names)) == 2 + 6 + 6 * 4


def _names(scope: dict[str, Any]) -> Iterator[str]:
    for mark in scope.get("marks", []):
        yield mark["name"]
        yield from _names(mark)
