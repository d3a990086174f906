"""Summary numbers of measurements: medians over rounds, and ratios computed for each round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cases import CASES
from store import Measured

PAGE = 4096


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum over rounds."""

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
    """Tokens a second, without padding."""
    return measured["tokens"] / measured["seconds"]


def bytes_over_model(measured: Measured) -> float:
    """Peak memory minus memory after loading the model, at least one page."""
    return max(PAGE, measured["peak_bytes"] - measured["loaded_bytes"])


def share_of_product_rate(measured: Measured) -> float:
    """Operations a second (as counted by `work`), divided by the faster of this processor's product rates."""
    done = measured["operations_per_token"] * tokens_per_second(measured)
    return done / max(measured["product_rates"].values())


def of(measures: Sequence[Measured], case: str, contender: str, full: bool = False) -> dict[int, Measured]:
    """Round -> measurement."""
    wanted = (case, contender, full)
    return {m["round"]: m for m in measures if (m["case"], m["contender"], m["full"]) == wanted}


def spread(measures: Sequence[Measured], case: str, contender: str, quantity: Quantity) -> Spread | None:
    """The spread of a quantity over rounds; None where there are none."""
    found = of(measures, case, contender)
    return Spread.of([quantity(measured) for measured in found.values()]) if found else None


def ratio(measures: Sequence[Measured], case: str, contender: str, other: str, quantity: Quantity) -> Spread | None:
    """The ratio of a quantity of two contenders in each round that both have; None where there is none."""
    mine, theirs = of(measures, case, contender), of(measures, case, other)
    both = [quantity(mine[number]) / quantity(theirs[number]) for number in mine.keys() & theirs.keys()]
    return Spread.of(both) if both else None


def yardsticks(case: str) -> tuple[str, ...]:
    """The contenders other than pefttools, the untuned one first."""
    return tuple(name for name in CASES[case].contenders if not name.startswith("pefttools"))


def figures(measures: Sequence[Measured]) -> list[dict[str, Any]]:
    """The numbers of the tables, as a dict for each contender of a case that trains or predicts."""
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
