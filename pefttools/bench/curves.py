"""Where a learning curve ends: a power law fitted to its first part, with the uncertainty of the fit.

Errors of learning curves follow e(s) = c + a·s⁻ᵇ well (Hestness et al. 2017; Domhan et al. 2015 use it among others).
The posterior is computed on a grid of b and c, where a is the weighted least-squares solution; e(1) is its mean and
standard deviation. A finished curve of the same rows calibrates it: what the law misses there at the same place is
added, because the last part of every run gains from its falling learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = Sequence[tuple[float, float]]
"""(progress from 0 to 1, badness: the lower the better) of the evaluations of a run."""

EXPONENTS = np.linspace(0.1, 2.0, 20)
FLOORS = 40
"""Number of values of c."""


@dataclass(frozen=True)
class Forecast:
    """The expected badness at the end of a run."""

    mean: float
    sd: float

    def probability_below(self, other: float, sd: float = 0.0) -> float:
        """Probability that the end is better than `other`, which itself has the standard deviation `sd`."""
        spread = math.hypot(self.sd, sd)
        if spread == 0:
            return float(self.mean < other)
        return 0.5 * math.erfc((self.mean - other) / (spread * math.sqrt(2)))


def forecast(points: Points, noise: float, finished: Points = ()) -> Forecast:
    """The end of a curve from its first part.

    Args:
        points: the evaluations so far, at least one.
        noise: standard deviation of an evaluation, from the number of validation rows.
        finished: the evaluations of a finished run, to calibrate by.
    """
    found = _extrapolated(points, noise)
    place = points[-1][0]
    early = [point for point in finished if point[0] <= place + 1e-9]
    if place >= 1 or not early or len(early) == len(finished):
        return found
    reference = _extrapolated(early, noise)
    missed = finished[-1][1] - reference.mean
    return Forecast(found.mean + missed, math.hypot(found.sd, abs(missed) / 2))


def _extrapolated(points: Points, noise: float) -> Forecast:
    place, last = points[-1]
    noise = max(noise, 1e-6)
    if place >= 1:
        return Forecast(last, noise)
    if len(points) == 1:
        return Forecast(last, max(noise, abs(last)))  # nothing is known about its slope
    progress = np.array([max(point[0], 1e-3) for point in points])
    values = np.array([point[1] for point in points])
    ends, weights = _grid(progress, values, noise)
    mean = float((weights * ends).sum())
    return Forecast(mean, math.hypot(math.sqrt(float((weights * (ends - mean) ** 2).sum())), noise))


def _grid(
    progress: NDArray[np.float64], values: NDArray[np.float64], noise: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends e(1) of all laws on the grid, and their posterior weights: (laws,) each."""
    span = float(np.ptp(values)) + 3 * noise
    floors = float(values.min()) - np.linspace(0.0, 2.0, FLOORS) * span
    powers = progress[None, :] ** -EXPONENTS[:, None]  # (exponents, points)
    rest = values[None, None, :] - floors[None, :, None]  # (1, floors, points)
    slopes = (rest * powers[:, None, :]).sum(-1) / (powers**2).sum(-1)[:, None]
    slopes = np.maximum(slopes, 0.0)
    misfit = ((rest - slopes[:, :, None] * powers[:, None, :]) ** 2).sum(-1) / (2 * noise**2)
    likelihood = np.exp(-(misfit - misfit.min()))
    return (floors[None, :] + slopes).ravel(), (likelihood / likelihood.sum()).ravel()
