"""Statistics of trials: intervals, paired tests corrected for multiple comparisons, tiers, detectable differences.

The scores of a method are a table (seeds, rows): every seed's score on every test row. Two methods are compared on the
same rows. The difference of their means varies with the sampled rows, which the paired bootstrap measures (Efron and
Tibshirani 1993, ch. 16; Koehn 2004), and with the seeds. Three seeds give a poor estimate of a variance, so each
method's is shrunk toward the median over all methods (Smyth 2004, eq. 4, with `PRIOR` degrees of freedom). The two
variances are added; the degrees of freedom are Welch and Satterthwaite's. McNemar's exact test (1947) is also computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
POWER = 0.8
"""Probability with which the reported smallest difference would be detected."""
RESAMPLES = 4000
PRIOR = 4
"""Degrees of freedom of the prior variance over seeds, the median over methods."""


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same rows; the difference is the score of `first` minus that of `second`."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    """The bounds of the difference's 95% interval, not corrected for multiple comparisons."""
    p: float
    p_holm: float
    """p corrected for all pairs of the problem (Holm 1979)."""
    mcnemar: float | None
    """Exact p of McNemar's test on the majority of each method's seeds, Holm-corrected; None unless all row scores are
    0 or 1."""

    @property
    def differs(self) -> bool:
        return self.p_holm < 1 - LEVEL


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of values (seeds,) and the bounds of its 95% t interval, which are NaN for a single seed."""
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(np.std(values, ddof=1)) / math.sqrt(len(values)) * float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return mean, mean - half, mean + half


def compare(tables: Mapping[str, Array], seed: int = 0) -> list[Comparison]:
    """Compare every pair of methods.

    Args:
        tables: method -> scores (seeds, rows), on the same rows; the number of seeds may differ.
        seed: seed of the bootstrap.
    """
    pairs = list(itertools.combinations(tables, 2))
    if not pairs:
        return []
    means = {name: table.mean(axis=0) for name, table in tables.items()}
    resampled = _resampled(np.stack(list(means.values())), seed)
    index = {name: i for i, name in enumerate(tables)}
    seeds = _seed_variances(tables)
    found: list[tuple[str, str, float, float, float, float]] = []
    for a, b in pairs:
        difference = float(np.mean(means[a] - means[b]))
        of_rows = float(np.var(resampled[:, index[a]] - resampled[:, index[b]], ddof=1))
        parts = [(of_rows, len(means[a]) - 1), *(seeds[name] for name in (a, b))]
        found.append((a, b, difference, *_tested(difference, parts)))
    corrected = holm([p for *_, p in found])
    mcnemar = _mcnemar(tables, pairs)
    return [
        Comparison(*one, adjusted, mcnemar.get((one[0], one[1])))
        for one, adjusted in zip(found, corrected, strict=True)
    ]


def smallest_difference(pairs: Sequence[Comparison]) -> float | None:
    """The difference of two methods that would be detected with probability `POWER` with these rows and seeds.

    It is the median over pairs, corrected for the number of comparisons; None without a pair.
    """
    from scipy import stats

    if not pairs:
        return None
    errors = [(pair.high - pair.low) / 2 / stats.norm.ppf((1 + LEVEL) / 2) for pair in pairs]
    level = 1 - (1 - LEVEL) / 2 / len(pairs)
    return float(np.median(errors) * (stats.norm.ppf(level) + stats.norm.ppf(POWER)))


def tiers(means: Mapping[str, float], differ: Set[frozenset[str]], lower_is_better: bool = False) -> dict[str, int]:
    """Method -> tier, from 1. A tier has the best of the remaining methods and all that do not differ from it.

    Args:
        differ: the pairs that differ significantly.
    """
    left = sorted(means, key=lambda name: means[name], reverse=not lower_is_better)
    found: dict[str, int] = {}
    tier = 0
    while left:
        tier += 1
        best = left[0]
        alike = [name for name in left if frozenset((best, name)) not in differ]
        found |= dict.fromkeys(alike, tier)
        left = [name for name in left if name not in found]
    return found


def _tested(difference: float, parts: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Interval and p of a difference whose variance is a sum of `parts`, each a variance with degrees of freedom."""
    from scipy import stats

    variance = sum(part for part, _ in parts)
    if variance <= 0:
        return difference, difference, 1.0 if difference == 0 else 0.0
    freedom = variance**2 / sum(part**2 / df for part, df in parts if df > 0)
    error = math.sqrt(variance)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return difference - half, difference + half, float(2 * stats.t.sf(abs(difference) / error, freedom))


def _resampled(means: Array, seed: int) -> Array:
    """Bootstrap means over resampled rows, the same rows for all methods: (RESAMPLES, methods).

    Args:
        means: every method's mean over seeds, (methods, rows).
    """
    return _weights(means.shape[1], seed) @ means.T


@lru_cache(maxsize=4)
def _weights(rows: int, seed: int) -> Array:
    """The share of each row in each bootstrap sample: (RESAMPLES, rows)."""
    draw = np.random.default_rng(seed)
    return draw.multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES) / rows


def _seed_variances(tables: Mapping[str, Array]) -> dict[str, tuple[float, float]]:
    """Method -> the moderated variance of its mean over seeds, and its degrees of freedom.

    The interaction of rows and seeds is subtracted, because the variance over rows already includes it.
    """
    from scipy import stats

    raw: dict[str, float] = {}
    for name, table in tables.items():
        seeds, rows = table.shape
        if seeds > 1:
            centred = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            interaction = float((centred**2).sum()) / ((rows - 1) * (seeds - 1)) if rows > 1 else 0.0
            raw[name] = max(0.0, float(np.var(table.mean(axis=1), ddof=1)) - interaction / rows)
    if not raw:
        return dict.fromkeys(tables, (0.0, 0.0))
    freedom = {name: tables[name].shape[0] - 1 for name in raw}
    usual = float(np.median([stats.chi2.median(df) / df for df in freedom.values()]))
    middle = max(float(np.median(list(raw.values()))) / usual, float(np.mean(list(raw.values()))) / 2)
    found = {}
    for name, table in tables.items():
        df = freedom.get(name, 0)
        moderated = (PRIOR * middle + df * raw.get(name, 0.0)) / (PRIOR + df)
        found[name] = (moderated / table.shape[0], PRIOR + df)
    return found


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected by Holm (1979): the i-th smallest of m, from 0, is multiplied by m − i; order is kept."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


def _mcnemar(tables: Mapping[str, Array], pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
    from scipy import stats

    if not all(np.isin(table, (0, 1)).all() for table in tables.values()):
        return {}
    right = {name: table.mean(axis=0) >= 0.5 for name, table in tables.items()}
    values = []
    for a, b in pairs:
        only_a, only_b = int((right[a] & ~right[b]).sum()), int((~right[a] & right[b]).sum())
        both = only_a + only_b
        values.append(float(stats.binomtest(min(only_a, only_b), both).pvalue) if both else 1.0)
    return dict(zip(pairs, holm(values), strict=True))
