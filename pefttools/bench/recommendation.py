"""The recommended method, in the one function through which every recommendation goes.

A method is recommended because it is small only where it is shown to be no more than `margin` worse than each other
method: a one-sided test of non-inferiority on paired rows and seeds. Not seeing a difference shows nothing, so in all
other cases the best mean is recommended, and the verdict says what it would take to know.

A method is declared non-inferior if it is so against every other one (an intersection-union test, Berger 1982, which
needs no correction over its comparisons); over the candidates the p values are corrected by Holm (1979).

Where there is an incumbent (a recipe's defaults, in `tune`), it stays unless the other method is shown to be better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pefttools.bench import stats
from pefttools.bench.stats import LEVEL, POWER, Array, Comparison, Difference, holm

LISTED = 4
"""Upper limit of names that a sentence lists."""
MARGIN = 0.01
"""The default margin: one point of a metric between 0 and 1."""
MANY_SEEDS = 10
"""The largest number of seeds that a verdict asks for before it asks for more rows."""


@dataclass(frozen=True)
class Recommendation:
    """The recommended method, alternatives, and the verdict as a sentence."""

    method: str
    """The recommended method; the one with the best mean where nothing can be recommended."""
    best: str
    """The method with the best mean."""
    is_supported: bool
    """Whether there are seeds and rows to compare by; without them `method` is the best mean and no more."""
    shown: tuple[str, ...]
    """Methods with fewer trained parameters than the best that are shown to be within the margin, smallest first."""
    not_shown: tuple[str, ...]
    """Methods with fewer trained parameters in the tier of the best that may be within the margin, or not."""
    needed: str
    """What it would take to know about the smallest of these; empty where nothing is open."""
    verdict: str


@dataclass(frozen=True)
class Judgement:
    """Methods that were scored on the same rows, compared with each other."""

    means: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    """The bounds of the 95% interval of each mean."""
    comparisons: Sequence[Comparison]
    tiers: Mapping[str, int]
    smallest_difference: float | None
    margin: float
    """In the unit of the scores."""
    recommendation: Recommendation
    largest_regret: float
    """By how much another method may be better than the recommended one: the largest one-sided 95% bound."""

    @property
    def is_coarse(self) -> bool:
        """Whether differences as large as the margin could not have been seen."""
        return self.smallest_difference is not None and self.smallest_difference > self.margin


def judge(
    tables: Mapping[str, Array],
    trainable: Mapping[str, int],
    lower_is_better: bool = False,
    margin: float = MARGIN,
    score_range: tuple[float, float] | None = (0.0, 1.0),
    incumbent: str | None = None,
) -> Judgement:
    """Compare methods and recommend one.

    Args:
        tables: method -> scores (seeds, rows), on the same rows, of at least one method.
        trainable: method -> trained parameters.
        margin: in the unit of the scores, or, where they have no range, a share of the best mean.
        score_range: the bounds of the metric, or None (perplexity).
        incumbent: see `recommend`.

    Raises:
        ValueError: the margin is not above 0.
    """
    means = {name: float(table.mean()) for name, table in tables.items()}
    if score_range is None:
        margin *= abs(min(means.values()) if lower_is_better else max(means.values()))
    found = judge_differences(
        means, stats.differences(tables), trainable, lower_is_better, margin, score_range is not None,
        stats.mcnemar(tables), incumbent,
    )  # fmt: skip
    return replace(found, intervals=stats.score_intervals(tables, score_range))


def judge_differences(
    means: Mapping[str, float],
    differences: Mapping[tuple[str, str], Difference],
    trainable: Mapping[str, int],
    lower_is_better: bool = False,
    margin: float = MARGIN,
    in_points: bool = True,
    mcnemar: Mapping[tuple[str, str], float] = {},
    incumbent: str | None = None,
) -> Judgement:
    """Compare methods by the differences of their means, and recommend one; see `recommend` for the arguments."""
    pairs = stats.compare_differences(differences, mcnemar)
    differ = {frozenset((pair.first, pair.second)) for pair in pairs if pair.differs}
    tiers = stats.tiers(means, differ, lower_is_better)
    advice = recommend(means, tiers, trainable, differences, lower_is_better, margin, in_points, incumbent)
    least, sign = stats.smallest_difference(pairs), -1 if lower_is_better else 1
    bounds = [one.upper(sign) for (_, second), one in differences.items() if second == advice.method]
    return Judgement(means, {}, pairs, tiers, least, margin, advice, max([0.0, *bounds]))


def recommend(
    means: Mapping[str, float],
    tiers: Mapping[str, int],
    trainable: Mapping[str, int],
    differences: Mapping[tuple[str, str], Difference],
    lower_is_better: bool = False,
    margin: float = MARGIN,
    in_points: bool = True,
    incumbent: str | None = None,
) -> Recommendation:
    """The smallest method that is shown to be within the margin of all others, else the one with the best mean.

    Args:
        means: method -> mean score, of at least one method.
        tiers: method -> tier, as `stats.tiers` returns them.
        trainable: method -> trained parameters.
        differences: ordered pair -> the difference of the first's score minus the second's, from `stats.differences`.
        margin: in the unit of the scores.
        in_points: whether the verdict gives the margin in points, hundredths of the unit.
        incumbent: the method that is kept unless the best of the others is shown to be better; None for no such one.

    Raises:
        ValueError: the margin is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin: must be above 0, not {margin:g}")
    sign = -1 if lower_is_better else 1
    best = min(means, key=lambda name: (-sign * means[name], trainable[name]))
    if incumbent is not None:
        return _unless_better(incumbent, means, differences, best, sign, in_points)
    smaller = sorted((n for n in means if trainable[n] < trainable[best]), key=lambda name: trainable[name])
    p_values = [_inferiority_p(name, list(means), differences, sign, margin) for name in smaller]
    adjusted = dict(zip(smaller, holm(p_values), strict=True))
    supported = bool(differences) and all(one.num_seeds > 1 for one in differences.values())
    shown = tuple(name for name in smaller if supported and adjusted[name] < 1 - LEVEL)
    open_ = tuple(name for name in smaller if name not in shown and tiers[name] == tiers[best])
    method = shown[0] if shown else best
    needed = _needed(open_, differences, best, sign, margin) if supported and not shown else ""
    found = Recommendation(method, best, supported, shown, open_, needed, "")
    within = f"{100 * margin:g} point{'' if margin == 0.01 else 's'}" if in_points else f"{margin:.3g}"
    alike = [name for name in means if name != best and tiers[name] == tiers[best]]
    return Recommendation(method, best, supported, shown, open_, needed, _verdict(found, alike, len(means), within))


def _unless_better(
    incumbent: str, means: Mapping[str, float], differences: Mapping[tuple[str, str], Difference], best: str, sign: int,
    in_points: bool,
) -> Recommendation:  # fmt: skip
    """The incumbent, unless the best of the others is shown to be better (two-sided, 95%)."""
    if incumbent not in means:
        verdict = f"nothing is recommended: {incumbent} have no result to compare {best} with"
        return Recommendation(best, best, False, (), (), "", verdict)
    other = max((name for name in means if name != incumbent), key=lambda name: sign * means[name], default=None)
    if other is None:
        verdict = f"no detectable gain: keep {incumbent}; nothing else was better on validation rows"
        return Recommendation(incumbent, best, False, (), (), "", verdict)
    one = differences[other, incumbent]
    low, high = one.interval()
    by = _with_error(abs(one.value), (high - low) / 2, in_points)
    if one.num_seeds < 2:
        verdict = f"nothing is recommended on one seed: keep {incumbent}; run at least two seeds"
        return Recommendation(incumbent, best, False, (), (), "", verdict)
    differs = one.p() < 1 - LEVEL
    if differs and sign * one.value > 0:
        verdict = f"{other} is recommended: it is better than {incumbent} by {by}"
        return Recommendation(other, best, True, (), (), "", verdict)
    change = f"{other} is {'better' if sign * one.value > 0 else 'worse'} by {by}"
    verdict = f"no gain: keep {incumbent}; {change}" if differs else f"no detectable gain: keep {incumbent}; {change}"
    return Recommendation(incumbent, best, True, (), (), "", verdict)


def _with_error(value: float, half: float, in_points: bool) -> str:
    """A difference with half of its 95% interval."""
    if in_points:
        return f"{100 * value:.1f} ± {100 * half:.1f} points"
    return f"{value:.3g} ± {half:.2g}"


def _inferiority_p(
    name: str, methods: list[str], differences: Mapping[tuple[str, str], Difference], sign: int, margin: float
) -> float:
    """The largest p of the hypotheses that another method is better than this one by the margin or more."""
    others = [differences.get((other, name)) for other in methods if other != name]
    if any(one is None for one in others):
        return 1.0
    return max((one.p_at_least(margin, sign) for one in others if one is not None), default=1.0)


def _needed(
    names: tuple[str, ...], differences: Mapping[tuple[str, str], Difference], best: str, sign: int, margin: float
) -> str:
    """The sets, or rows and seeds, with which the smallest of the methods would be shown to be within the margin."""
    from scipy import stats

    quantiles = float(stats.norm.ppf(LEVEL) + stats.norm.ppf(POWER))
    for name in names:
        one = differences[best, name]
        room = margin - sign * one.value
        if room <= 0:
            continue  # it is worse by more than the margin, as far as can be seen
        wanted = (room / quantiles) ** 2
        if one.num_sets > 1:
            sets = math.ceil(one.error**2 * one.num_sets / wanted)
            return f"to know about {name}, it takes about {max(one.num_sets + 1, sets)} sets"
        choices = range(one.num_seeds, max(one.num_seeds, MANY_SEEDS) + 1)
        seeds = next((n for n in choices if one.seed_variance * one.num_seeds / n <= wanted / 2), choices[-1])
        of_seeds = one.seed_variance * one.num_seeds / seeds
        if of_seeds >= wanted:
            continue
        rows = max(one.num_rows, math.ceil(one.row_variance * one.num_rows / (wanted - of_seeds)))
        return f"to know about {name}, it takes about {_rounded(rows):,} test rows and {seeds} seeds"
    return ""


def _rounded(rows: int) -> int:
    """Rounded up to two digits."""
    digits = 10 ** max(0, len(str(rows)) - 2)
    return -(-rows // digits) * digits


def _verdict(found: Recommendation, alike: list[str], number: int, within: str) -> str:
    best = found.best
    if number == 1:
        return f"{best} is the only method with a result"
    if not found.is_supported:
        return f"nothing is recommended on one seed; {best} has the best mean; run at least two seeds"
    if found.shown:
        return (
            f"{found.method} is recommended: it trains fewer parameters than {best}, which has the best mean, and is"
            f" shown to be at most {within} worse than every other method"
        )
    if not alike:
        return f"{best} is recommended: it is better than all others"
    sentence = f"{best} is recommended: it has the best mean"
    if found.not_shown:
        sentence += f"; with fewer trained parameters, but not shown to be within {within}: {_listed(found.not_shown)}"
    return f"{sentence}; {found.needed}" if found.needed else sentence


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
