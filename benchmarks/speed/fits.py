"""Least-squares fits of medians: a line y = a + b·x, and a power law y = c·x^k, which is a line in the logarithms.

R² is the share of the variance that the fit explains; for the power law it is computed on the logarithms.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy

MIB = 2**20
QUANTITIES = {"step_seconds": ("seconds a step", 1.0), "peak_bytes": ("MiB over the model", 1 / MIB)}
"""Quantity -> its name and its factor in tables."""


@dataclass(frozen=True)
class Line:
    """y = a + b·x."""

    a: float
    b: float
    r2: float

    def at(self, x: float) -> float:
        return self.a + self.b * x


@dataclass(frozen=True)
class Power:
    """y = c·x^k."""

    c: float
    k: float
    r2: float

    def at(self, x: float) -> float:
        return self.c * x**self.k


def line(xs: Sequence[float], ys: Sequence[float]) -> Line:
    slope, start = (float(value) for value in numpy.polyfit(xs, ys, 1))
    return Line(start, slope, _explained(ys, [start + slope * x for x in xs]))


def power(xs: Sequence[float], ys: Sequence[float]) -> Power:
    straight = line([math.log(x) for x in xs], [math.log(y) for y in ys])
    return Power(math.exp(straight.a), straight.b, straight.r2)


def _explained(ys: Sequence[float], fitted: Sequence[float]) -> float:
    """R²; 1 if all values are equal."""
    mean = statistics.mean(ys)
    total = sum((y - mean) ** 2 for y in ys)
    return 1 - sum((y - f) ** 2 for y, f in zip(ys, fitted, strict=True)) / total if total else 1.0


@dataclass(frozen=True)
class Sweep:
    """The measurements of one swept size; `spreads` has median, minimum and maximum at each value, in tables' units."""

    name: str
    values: tuple[int, ...]
    spreads: Mapping[str, Sequence[tuple[float, float, float]]]

    @classmethod
    def of(cls, name: str, measured: Mapping[int, Sequence[Mapping[str, Any]]]) -> Sweep:
        """A sweep from the measurements at each value; values without measurements are left out."""
        present = {value: rounds for value, rounds in measured.items() if rounds}
        spreads = {
            quantity: [_spread([one[quantity] * scale for one in rounds]) for rounds in present.values()]
            for quantity, (_, scale) in QUANTITIES.items()
        }
        return cls(name, tuple(present), spreads)

    def medians(self, quantity: str) -> list[float]:
        return [median for median, _, _ in self.spreads[quantity]]

    def line(self, quantity: str) -> Line:
        return line(self.values, self.medians(quantity))

    def power(self, quantity: str) -> Power:
        return power(self.values, self.medians(quantity))

    def as_dict(self) -> dict[str, Any]:
        fitted = {q: {"line": asdict(self.line(q)), "power": asdict(self.power(q))} for q in QUANTITIES}
        return {**asdict(self), "units": {q: about for q, (about, _) in QUANTITIES.items()}, "fits": fitted}


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def report(sweeps: Sequence[Sweep], centre: Mapping[str, int], machine: str) -> str:
    """The report in Markdown."""
    fixed = ", ".join(f"{name} {value}" for name, value in centre.items())
    text = [
        "# How cost grows",
        "",
        f"`python benchmarks/speed/growth.py`; {machine}.",
        f"LoRA on every matrix of a model with MiniLM's configuration; {fixed}, except for the swept size. Fits are"
        " least squares of medians over rounds; R² of a power law is computed on the logarithms.",
        "",
        "![](growth.svg)",
        "",
        "| swept | quantity | power law x^k: k | R² | line a + b·x | R² |",
        "|---|---|---:|---:|---|---:|",
    ]
    for sweep in sweeps:
        for quantity, (about, _) in QUANTITIES.items():
            law, straight = sweep.power(quantity), sweep.line(quantity)
            text.append(
                f"| {sweep.name} | {about} | {law.k:.2f} | {law.r2:.3f} | {straight.a:.3g} + {straight.b:.3g}·x"
                f" | {straight.r2:.3f} |"
            )
    text += ["", "| swept | value | seconds a step | MiB over the model |", "|---|---:|---|---|"]
    for sweep in sweeps:
        for i, value in enumerate(sweep.values):
            cells = ("{:.3g} ({:.3g} to {:.3g})".format(*sweep.spreads[quantity][i]) for quantity in QUANTITIES)
            text.append(f"| {sweep.name} | {value} | {' | '.join(cells)} |")
    return "\n".join([*text, ""])
