"""From measurements to figures: medians over rounds, and ratios taken round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cases import CASES
from kept import Measured

PAGE = 4096


@dataclass(frozen=True)
class Spread:
    """A median over rounds, and the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


Quantity = Callable[[Measured], float]


def rows_per_second(measured: Measured) -> float:
    return measured["rows"] / measured["seconds"]


def tokens_per_second(measured: Measured) -> float:
    """Real tokens, without padding."""
    return measured["tokens"] / measured["seconds"]


def bytes_over_model(measured: Measured) -> float:
    """The peak beyond what was held when the model had been loaded; a page at least."""
    return max(PAGE, measured["peak_bytes"] - measured["loaded_bytes"])


def share_of_product_rate(measured: Measured) -> float:
    """Operations that a plain run needs a second, over the faster of this processor's own products."""
    done = measured["operations_per_token"] * tokens_per_second(measured)
    return done / max(measured["product_rates"].values())


def of(measures: Sequence[Measured], case: str, contender: str, full: bool = False) -> dict[int, Measured]:
    """Round -> measurement."""
    wanted = (case, contender, full)
    return {m["round"]: m for m in measures if (m["case"], m["contender"], m["full"]) == wanted}


def spread(measures: Sequence[Measured], case: str, contender: str, quantity: Quantity) -> Spread | None:
    """Over rounds; None where there are none."""
    found = of(measures, case, contender)
    return Spread.of([quantity(measured) for measured in found.values()]) if found else None


def ratio(measures: Sequence[Measured], case: str, contender: str, other: str, quantity: Quantity) -> Spread | None:
    """The contender's over the other's, of each round that both have; None where there is none."""
    mine, theirs = of(measures, case, contender), of(measures, case, other)
    both = [quantity(mine[number]) / quantity(theirs[number]) for number in mine.keys() & theirs.keys()]
    return Spread.of(both) if both else None


def yardsticks(case: str) -> tuple[str, ...]:
    """The contenders that are not ours, the plain one first."""
    return tuple(name for name in CASES[case].contenders if not name.startswith("pefttools"))


def figures(measures: Sequence[Measured]) -> list[dict[str, Any]]:
    """A dict a contender of a case with a rate: what the tables show, for machines."""
    quantities: dict[str, Quantity] = {
        "rows_per_second": rows_per_second, "tokens_per_second": tokens_per_second,
        "wall_seconds": lambda measured: measured["wall_seconds"], "bytes_over_model": bytes_over_model,
        "peak_bytes": lambda measured: measured["peak_bytes"], "product_share": share_of_product_rate,
    }  # fmt: skip
    made = []
    for case, about in CASES.items():
        if about.kind not in ("train", "predict"):
            continue
        for contender in about.contenders:
            if not (found := of(measures, case, contender)):
                continue
            values = {name: vars(Spread.of([q(m) for m in found.values()])) for name, q in quantities.items()}
            ratios = {
                name: {
                    other: vars(there)
                    for other in yardsticks(case)
                    if other != contender and (there := ratio(measures, case, contender, other, quantity))
                }
                for name, quantity in (("speed_ratio", rows_per_second), ("memory_ratio", bytes_over_model))
            }
            scores = [m["score"] for m in found.values()]
            made.append(
                {
                    "case": case, "contender": contender, "rounds": len(found), **values, **ratios,
                    "score": statistics.mean(scores), "trainable": next(iter(found.values())).get("trainable"),
                }
            )  # fmt: skip
    return made
