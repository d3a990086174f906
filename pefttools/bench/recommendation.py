"""Which method to recommend: the one with the best mean, and the smaller ones that may be as good.

Not seeing a difference is not showing that there is none, so a method is never recommended because it is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LISTED = 4
"""Most names that a sentence lists."""


@dataclass(frozen=True)
class Recommendation:
    """A method, and the sentence that goes with it."""

    method: str
    may_be_as_good: tuple[str, ...]
    """Methods with fewer trained parameters that these rows cannot tell from it, the smallest first."""
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
        return f"{best} has the best mean; those that may be as good train no fewer parameters: {_listed(alike)}"
    train = "train" if len(smaller) > 1 else "trains"
    return (
        f"{best} has the best mean; {_listed(smaller)} {train} fewer parameters and may be as good:"
        " these rows cannot tell"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
