"""The race of `advise`: who is tried, dropped and finished, by planted learning curves and a clock that they move."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pefttools.bench.adviser import Adviser
from pefttools.bench.budget import Clock
from pefttools.bench.curves import forecast
from pefttools.bench.race import Candidate, Entry, Race
from pefttools.reporter import SILENT, Reporter
from pefttools.tasks.text_classification import TextClassification

EVALUATIONS = 8


@dataclass
class Planted:
    """A runner whose candidates have the curve floor + size · progress^−exponent, and take `seconds` for all steps."""

    seconds_left: float
    curves: dict[str, tuple[float, float, float, float]]
    """Label -> floor, size, exponent, seconds."""
    reporter: Reporter = SILENT
    rate_penalty: float = 0.01
    calls: list[tuple[str, float, int]] = field(default_factory=list)

    def badness(self, entry: Entry, progress: float, seed: int = 0) -> float:
        floor, size, exponent, _ = self.curves[entry.candidate.label]
        wrong_rate = self.rate_penalty * abs(math.log(entry.learning_rate / entry.candidate.default_lr))
        return floor + size * (progress**-exponent - 1) + wrong_rate + 0.001 * (seed % 2)

    def train(self, entry: Entry, progress: float, seed: int = 0) -> bool:
        done = entry.progress if seed == 0 else 0.0
        cost = self.curves[entry.candidate.label][3] * (progress - done)
        if cost > self.seconds_left:
            self.seconds_left = 0.0
            return False
        self.seconds_left -= cost
        self.calls.append((entry.label, progress, seed))
        if seed == 0:
            places = [i / EVALUATIONS for i in range(1, EVALUATIONS + 1) if i / EVALUATIONS <= progress]
            entry.curve = [(place, self.badness(entry, place)) for place in places]
            entry.seconds += cost
        if progress >= 1:
            entry.records.append({"seed": seed, "badness": self.badness(entry, 1.0, seed)})
        return True

    def noise(self, badness: float) -> float:
        del badness
        return 0.004


def race(seconds: float, **curves: tuple[float, float, float, float]) -> tuple[Race, Planted, list[Entry]]:
    runner = Planted(seconds, curves)
    candidates = [Candidate(label, {"name": label}, 100, 1e-3, (1e-4, 1e-2)) for label in curves]
    one = Race(runner, candidates)
    return one, runner, one.run()


def test_the_reference_is_finished_first() -> None:
    _, runner, finalists = race(1e4, lora=(0.10, 0.05, 0.5, 60.0), full=(0.09, 0.05, 0.5, 120.0))
    assert runner.calls[0] == ("lora, lr 0.001", 1.0, 0)
    assert {one.candidate.label for one in finalists} == {"lora", "full"}
    assert {len(one.records) for one in finalists} == {5}


def test_a_slow_starter_is_not_dropped_at_a_quarter() -> None:
    """At a quarter it is 10 points behind, but its curve falls faster and ends 3 points ahead."""
    found, _, finalists = race(1e4, lora=(0.10, 0.02, 0.5, 60.0), slow=(0.07, 0.05, 1.0, 60.0))
    slow = next(one for one in found.entries if one.candidate.label == "slow")
    assert slow.curve[1][1] > 0.2
    assert slow.is_finished
    assert finalists[0].candidate.label == "slow"


def test_a_hopeless_method_is_dropped_with_its_chance() -> None:
    found, runner, _ = race(1e4, lora=(0.10, 0.02, 0.5, 60.0), bad=(0.4, 0.02, 0.5, 60.0))
    bad = next(one for one in found.entries if one.candidate.label == "bad")
    assert "at 25% of the steps, its chance to beat lora, lr 0.001 was 0.0%" in bad.dropped
    assert all(progress <= 0.25 for label, progress, _ in runner.calls if label.startswith("bad"))


def test_other_learning_rates_race_too() -> None:
    found, _, _ = race(1e4, lora=(0.10, 0.02, 0.5, 60.0), full=(0.09, 0.02, 0.5, 60.0))
    rates = {
        label: {e.learning_rate for e in found.entries if e.candidate.label == label} for label in ("lora", "full")
    }
    assert {len(values) for values in rates.values()} == {3}


@pytest.mark.parametrize("seconds", [65.0, 100.0, 150.0, 250.0, 500.0, 2000.0])
def test_time_is_never_overrun_and_every_entry_is_accounted_for(seconds: float) -> None:
    curves = {label: (0.1 + i / 100, 0.03, 0.5, 60.0 + 10 * i) for i, label in enumerate(("lora", "b", "c", "d"))}
    found, runner, finalists = race(seconds, **curves)
    assert runner.seconds_left >= 0
    assert finalists[0].records
    assert len({len(one.records) for one in finalists}) == 1
    assert all(entry.dropped or entry.is_finished for entry in found.entries)
    if seconds == 65.0:
        assert [entry.dropped for entry in found.entries[1:4]] == ["was not tried: there was no time"] * 3


def test_the_reference_stays_a_finalist_when_time_is_short() -> None:
    """After the first seeds there is time for two more runs: of the best and of the reference, not of the second."""
    curves = {"lora": (0.12, 0.02, 0.5, 60.0), "a": (0.10, 0.02, 0.5, 60.0), "b": (0.11, 0.02, 0.5, 60.0)}
    found, _, _ = race(1e4, **curves)
    spent = sum(entry.seconds for entry in found.entries)
    _, _, finalists = race(spent + 2.5 * 60 * 1.15, **curves)
    assert [one.candidate.label for one in finalists] == ["a", "lora"]
    assert [len(one.records) for one in finalists] == [2, 2]


def test_a_sole_finalist_gets_no_further_seeds() -> None:
    _, runner, finalists = race(1e4, lora=(0.10, 0.02, 0.5, 60.0), bad=(0.4, 0.02, 0.5, 60.0))
    assert [one.candidate.label for one in finalists] == ["lora"]
    assert {seed for _, _, seed in runner.calls} == {0}


def test_a_resumed_race_knows_how_long_finished_runs_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"status": "done", "metric": "accuracy", "validation": {"accuracy": 0.9}, "wall": 80.0, "curve": []}
    monkeypatch.setattr(Adviser, "_perform", lambda *_: record)
    start: Any = SimpleNamespace(task=TextClassification(), train=SimpleNamespace(epochs=1, batch_size=32))
    adviser = Adviser(start, tmp_path, Clock(600), SILENT, rows={"train": 320, "validation": 40})
    entry = Entry(Candidate("lora", {"name": "lora"}, 100, 1e-3, (1e-4, 1e-2)), 1e-3)
    assert adviser.train(entry, 1.0)
    assert (entry.seconds, entry.is_finished) == (80.0, True)


def test_a_reference_without_time_gives_no_result() -> None:
    _, _, finalists = race(10.0, lora=(0.1, 0.02, 0.5, 60.0))
    assert finalists == []


def test_forecasts_cover_the_ends_of_planted_curves() -> None:
    draw, scores = np.random.default_rng(0), []
    places = np.arange(1, EVALUATIONS + 1) / EVALUATIONS
    for _ in range(200):
        late = draw.uniform(0, 0.02)

        def curve(size: float, exponent: float, floor: float, late: float = late) -> list[tuple[float, float]]:
            return [
                (float(s), float(floor + size * s**-exponent - late * s**4 + draw.normal(0, 0.008))) for s in places
            ]

        size, exponent, floor = draw.uniform(0.01, 0.1), draw.uniform(0.3, 1.5), draw.uniform(0.05, 0.2)
        ahead = forecast(curve(size, exponent, floor)[:3], 0.008, curve(0.05, 0.6, 0.12))
        scores.append((floor + size - late - ahead.mean) / ahead.sd)
    assert 0.9 <= np.mean(np.abs(scores) < 1.96) <= 0.99
    assert abs(np.mean(scores)) < 0.4
