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
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

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


@dataclass(frozen=True)
class Difference:
    """A difference of two methods' mean scores on the same rows, and the variances of which its error is made."""

    value: float
    row_variance: float
    seed_variance: float
    num_rows: int
    num_seeds: int
    """The smaller number of seeds of the two."""
    freedom: float
    """Degrees of freedom of the sum of the variances (Welch and Satterthwaite)."""
    set_variance: float = 0.0
    """What the choice of test sets adds, where the difference is a mean over several."""
    num_sets: int = 1

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.row_variance + self.seed_variance + self.set_variance)

    def interval(self) -> tuple[float, float]:
        """The bounds of the 95% interval."""
        half = t_quantile((1 + LEVEL) / 2, self.freedom) * self.error
        return self.value - half, self.value + half

    def upper(self, sign: int = 1) -> float:
        """The upper one-sided 95% bound of the difference times `sign`."""
        return sign * self.value + t_quantile(LEVEL, self.freedom) * self.error

    def p(self) -> float:
        """Two-sided p of no difference."""
        return min(1.0, 2 * self.p_at_least(0.0, -1 if self.value < 0 else 1, tail="upper"))

    def p_at_least(self, margin: float, sign: int = 1, tail: Literal["lower", "upper"] = "lower") -> float:
        """One-sided p of the hypothesis that the true difference, times `sign`, is `margin` or more.

        With `tail="upper"` that of the hypothesis that it is `margin` or less.
        """
        from scipy import stats

        distance = margin - sign * self.value if tail == "lower" else sign * self.value - margin
        if self.error <= 0:
            return 0.0 if distance > 0 else 1.0
        return float(stats.t.sf(distance / self.error, self.freedom))


def score_intervals(
    tables: Mapping[str, Array], score_range: tuple[float, float] | None = (0.0, 1.0)
) -> dict[str, tuple[float, float]]:
    """Method -> the bounds of the 95% interval of its mean score, for new rows and new seeds; empty on one seed.

    The variance over rows and the moderated variance over seeds are added. Between the bounds of `score_range` the
    interval is Wilson's (1927), with the number of rows that a mean of such a variance would have, so that it never
    leaves them; without a range it is Student's.

    Args:
        tables: method -> scores (seeds, rows), on the same rows.
    """
    if all(len(table) < 2 for table in tables.values()):
        return {}
    seeds = _seed_variances(tables)
    found = {}
    for name, table in tables.items():
        by_row, number = table.mean(axis=0), table.shape[1]
        mean = float(by_row.mean())
        of_rows = float(by_row.var(ddof=1)) / number if number > 1 else math.inf
        of_seeds, freedom = seeds[name]
        quantile = t_quantile((1 + LEVEL) / 2, total_freedom([(of_rows, number - 1), (of_seeds, freedom)]))
        if score_range is None:
            half = quantile * math.sqrt(of_rows + of_seeds)
            found[name] = (mean - half, mean + half)
        else:
            found[name] = wilson(mean, of_rows + of_seeds, number, quantile, *score_range)
    return found


def wilson(mean: float, variance: float, number: int, quantile: float, low: float, high: float) -> tuple[float, float]:
    """Wilson's interval of a mean between `low` and `high` with this variance, of at most `number` rows."""
    width = high - low
    share, variance = min(1.0, max(0.0, (mean - low) / width)), variance / width**2
    effective = share * (1 - share) / variance if variance > 0 else number
    effective = max(1.0, effective) if 0 < share < 1 else number
    square = quantile**2
    centre = (share + square / (2 * effective)) / (1 + square / effective)
    half = (
        quantile / (1 + square / effective) * math.sqrt(share * (1 - share) / effective + square / (4 * effective**2))
    )
    return low + width * max(0.0, min(share, centre - half)), low + width * min(1.0, max(share, centre + half))


def total_freedom(parts: Sequence[tuple[float, float]]) -> float:
    """Welch and Satterthwaite's degrees of freedom of a sum of variances, each with its own."""
    variance = sum(part for part, _ in parts)
    shares = sum(part**2 / freedom for part, freedom in parts if freedom > 0)
    return variance**2 / shares if shares > 0 else math.inf


def t_quantile(level: float, freedom: float) -> float:
    """The quantile of Student's t distribution."""
    from scipy import stats

    return float(stats.norm.ppf(level) if math.isinf(freedom) else stats.t.ppf(level, freedom))


def differences(tables: Mapping[str, Array], seed: int = 0) -> dict[tuple[str, str], Difference]:
    """Ordered pair of methods -> the difference of their mean scores, in both orders.

    Args:
        tables: method -> scores (seeds, rows), on the same rows; the number of seeds may differ.
        seed: seed of the bootstrap over rows.
    """
    if len(tables) < 2:
        return {}
    means = {name: table.mean(axis=0) for name, table in tables.items()}
    resampled = _resampled(np.stack(list(means.values())), seed)
    index = {name: i for i, name in enumerate(tables)}
    seeds = _seed_variances(tables)
    found: dict[tuple[str, str], Difference] = {}
    for a, b in itertools.combinations(tables, 2):
        value = float(np.mean(means[a] - means[b]))
        of_rows = float(np.var(resampled[:, index[a]] - resampled[:, index[b]], ddof=1))
        number = len(means[a])
        freedom = total_freedom([(of_rows, number - 1), seeds[a], seeds[b]])
        fewest = min(len(tables[a]), len(tables[b]))
        one = Difference(value, of_rows, seeds[a][0] + seeds[b][0], number, fewest, freedom)
        found[a, b], found[b, a] = one, replace(one, value=-value)
    return found


def compare_differences(
    found_differences: Mapping[tuple[str, str], Difference], exact: Mapping[tuple[str, str], float] = {}
) -> list[Comparison]:
    """Compare every pair of methods.

    Args:
        found_differences: ordered pair -> the difference, in both orders, as `differences` returns them.
        exact: pair -> p of McNemar's test, from `mcnemar`.
    """
    names = dict.fromkeys(name for pair in found_differences for name in pair)
    pairs = list(itertools.combinations(names, 2))
    found = [(a, b, one.value, *one.interval(), one.p()) for a, b in pairs for one in (found_differences[a, b],)]
    corrected = holm([p for *_, p in found])
    return [
        Comparison(*one, adjusted, exact.get((one[0], one[1]))) for one, adjusted in zip(found, corrected, strict=True)
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
    while left:
        tier, best = 1 + max(found.values(), default=0), left[0]
        alike = [name for name in left if frozenset((best, name)) not in differ]
        found |= dict.fromkeys(alike, tier)
        left = [name for name in left if name not in found]
    return found


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


def mcnemar(tables: Mapping[str, Array]) -> dict[tuple[str, str], float]:
    """Pair of methods -> the Holm-corrected p of McNemar's test; empty unless all scores are 0 or 1."""
    if not all(np.isin(table, (0, 1)).all() for table in tables.values()):
        return {}
    right = {name: table.mean(axis=0) >= 0.5 for name, table in tables.items()}
    pairs, values = list(itertools.combinations(tables, 2)), []
    for a, b in pairs:
        values.append(exact_mcnemar(int((right[a] & ~right[b]).sum()), int((~right[a] & right[b]).sum())))
    return dict(zip(pairs, holm(values), strict=True))


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """p of McNemar's exact test, from the numbers of rows that only one of the two methods predicts correctly."""
    from scipy import stats

    either = only_first + only_second
    return float(stats.binomtest(min(only_first, only_second), either).pvalue) if either else 1.0
