"""The recommended method: the one with the best mean. Smaller ones that may be as good are listed.

A difference that is not significant may still be there, so a method is never recommended because it is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LISTED = 4
"""Upper limit of names that a sentence lists."""


@dataclass(frozen=True)
class Recommendation:
    """The recommended method, alternatives, and the verdict as a sentence."""

    method: str
    may_be_as_good: tuple[str, ...]
    """Methods with fewer trained parameters that do not differ significantly from it, the smallest first."""
    verdict: str


def recommend(
    means: Mapping[str, float], tiers: Mapping[str, int], trainable: Mapping[str, int], lower_is_better: bool = False
) -> Recommendation:
    """The method with the best mean; of equal means the one with fewer trained parameters.

    Args:
        means: method -> mean score, of at least one method.
        tiers: method -> tier, as `stats.tiers` returns them.
        trainable: method -> trained parameters.
    """
    sign = 1 if lower_is_better else -1
    best = min(means, key=lambda name: (sign * means[name], trainable[name]))
    alike = [name for name in means if name != best and tiers[name] == tiers[best]]
    smaller = sorted((name for name in alike if trainable[name] < trainable[best]), key=lambda name: trainable[name])
    return Recommendation(best, tuple(smaller), _verdict(best, alike, smaller, len(means) - 1))


def _verdict(best: str, alike: list[str], smaller: list[str], others: int) -> str:
    if not others:
        return f"{best} is the only method with a result"
    if not alike:
        return f"{best} is better than all others"
    if not smaller:
        return f"{best} has the best mean; methods that may be as good train no fewer parameters: {_listed(alike)}"
    return (
        f"{best} has the best mean; not significantly different on these rows, with fewer trained parameters:"
        f" {_listed(smaller)}"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
