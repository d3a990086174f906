"""The comparison of methods over several test sets: by the mean of their scores, every set counting alike.

It answers what holds on new sets like these, not only for new rows and seeds of these (Demšar 2006). Data with levels
(sets, then seeds and rows) is resampled by whole sets, because the differences of sets contain the variation of the
levels below already, and resampling these again would count it twice (Davison and Hinkley 1997, §3.8). For a mean, that
bootstrap's variance is known: it is (K−1)/K of s²/K, with s² the variance of the differences of K sets. Without that
factor it is unbiased, and Student's t with K−1 degrees of freedom accounts for the few sets (Hartung and Knapp 2001).
Where sets happen to vary less than their rows (paired bootstrap) and seeds must make them vary, the variance of rows
and seeds is taken (Röver et al. 2015), which makes intervals a little too wide where sets do not differ:
benchmarks/results/pooling.md has the coverage.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pefttools.bench import stats
from pefttools.bench.recommendation import MARGIN, Judgement, judge_differences
from pefttools.bench.stats import Array, Difference

FEWEST = 3
"""Number of sets from which something can be said about others."""


@dataclass(frozen=True)
class ScoredSet:
    """The scores of methods on one test set."""

    name: str
    metric: str
    tables: Mapping[str, Array]
    """Method -> scores (seeds, rows)."""
    trainable: Mapping[str, int]
    score_range: tuple[float, float] | None = (0.0, 1.0)
    lower_is_better: bool = False

    def standardised(self) -> dict[str, Array]:
        """The scores as shares of the metric's range, the higher the better."""
        assert self.score_range is not None
        low, high = self.score_range
        shares = {name: (table - low) / (high - low) for name, table in self.tables.items()}
        return {name: 1 - share for name, share in shares.items()} if self.lower_is_better else shares


@dataclass(frozen=True)
class Pool:
    """Methods compared over several sets."""

    sets: tuple[str, ...]
    metrics: tuple[str, ...]
    left_out: Mapping[str, str]
    """Set or method -> why it is not part of the comparison."""
    trainable: Mapping[str, int]
    """Method -> trained parameters, the median over sets."""
    by_set: Mapping[str, Mapping[str, float]]
    """Method -> set -> mean score as a share of the metric's range."""
    differences: Mapping[tuple[str, str], Difference]
    """Ordered pair -> the difference of the first's mean minus the second's, for new sets."""
    judgement: Judgement
    visible_on_these: float | None
    """The smallest difference that these rows and seeds could detect if only these sets were of interest."""

    def best_first(self) -> list[str]:
        """The methods by tier, then by mean."""
        return sorted(self.by_set, key=lambda name: (self.judgement.tiers[name], -self.judgement.means[name]))


def pool(sets: Sequence[ScoredSet], margin: float = MARGIN) -> Pool | None:
    """Compare methods over sets; None where fewer than `FEWEST` sets have at least two methods in common.

    A set whose metric has no bounds (perplexity) is left out, because its scores cannot be averaged with others; so is
    a method without scores on one of the sets.

    Args:
        margin: as a share of the metrics' range.

    Raises:
        ValueError: the margin is not above 0.
    """
    left_out = {one.name: f"{one.metric} has no bounds" for one in sets if one.score_range is None}
    used = [one for one in sets if one.score_range is not None and one.tables]
    if len(used) < FEWEST:
        return None
    methods = [name for name in used[0].tables if all(name in one.tables for one in used)]
    for name in dict.fromkeys(name for one in used for name in one.tables):
        if missing := [one.name for one in used if name not in one.tables]:
            left_out[name] = f"has no scores on {', '.join(missing)}"
    if len(methods) < 2:
        return None
    tables = [{name: one.standardised()[name] for name in methods} for one in used]
    by_set = {m: {one.name: float(table[m].mean()) for one, table in zip(used, tables, strict=True)} for m in methods}
    trainable = {m: int(statistics.median(one.trainable[m] for one in used)) for m in methods}
    means = {m: statistics.fmean(by_set[m].values()) for m in methods}
    on_these = pooled([stats.differences(table) for table in tables])
    on_new = {pair: with_sets(one, _spread(by_set, *pair)) for pair, one in on_these.items()}
    return Pool(
        tuple(one.name for one in used), tuple(dict.fromkeys(one.metric for one in used)), left_out, trainable, by_set,
        on_new, judge_differences(means, on_new, trainable, margin=margin),
        stats.smallest_difference(stats.compare_differences(on_these)),
    )  # fmt: skip


def pooled(by_set: Sequence[Mapping[tuple[str, str], Difference]]) -> dict[tuple[str, str], Difference]:
    """Ordered pair -> the mean of its differences over these sets, with the variances of rows and seeds alone."""
    number = len(by_set)
    found: dict[tuple[str, str], Difference] = {}
    for a, b in itertools.permutations(dict.fromkeys(name for pair in by_set[0] for name in pair), 2):
        ones = [differences[a, b] for differences in by_set]
        of_rows = sum(one.row_variance for one in ones) / number**2
        of_seeds = sum(one.seed_variance for one in ones) / number**2
        freedom = stats.total_freedom([(one.error**2, one.freedom) for one in ones])
        found[a, b] = Difference(
            statistics.fmean(one.value for one in ones), of_rows, of_seeds, sum(one.num_rows for one in ones),
            min(one.num_seeds for one in ones), freedom, num_sets=number,
        )  # fmt: skip
    return found


def with_sets(one: Difference, variance: float) -> Difference:
    """The difference with its error for new sets.

    Args:
        variance: that of the mean over the sets, from the sets' differences.
    """
    rest = variance - one.row_variance - one.seed_variance
    return replace(one, set_variance=rest, freedom=one.num_sets - 1) if rest > 0 else one


def _spread(by_set: Mapping[str, Mapping[str, float]], first: str, second: str) -> float:
    values = [by_set[first][name] - by_set[second][name] for name in by_set[first]]
    return float(np.var(values, ddof=1)) / len(values)
