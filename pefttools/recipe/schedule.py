"""Learning-rate multipliers as pure functions of progress in [0, 1].

The training loop calls them once per step. They have no state, so resumed runs have the same rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """1 throughout."""
    del progress
    return 1.0


def linear(progress: float) -> float:
    """From 1 to 0 on a straight line."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """From 1 to 0 on half a cosine (Loshchilov & Hutter 2017, eq. 5, one cycle)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Schedule] = {f.__name__: f for f in (constant, linear, cosine)}


def multiplier(progress: float, schedule: str, warmup: float) -> float:
    """The factor on the learning rate at `progress`.

    It rises linearly from 0 over the first `warmup` share, then follows the schedule over the rest.
    """
    if progress < warmup:
        return progress / warmup
    return SCHEDULES[schedule](min(1.0, (progress - warmup) / (1.0 - warmup)))
