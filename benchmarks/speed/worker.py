"""The process of a measurement: measures one contender of one case once.

    python benchmarks/speed/worker.py --order JSON --answer FILE [--first-step]

Its standard output comes from libraries and is ignored.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cases import Order, recipe_of, to_warm_up


def measure(order: Order) -> dict[str, Any]:
    """The measurements: times in seconds, memory in bytes, rates in operations a second."""
    match order.about.kind:
        case "train":
            return _trained(order)
        case "predict":
            import predicting

            return {**predicting.measure(order), **_machine_rates(order, training=False)}
        case "fixed":
            import fixed

            return fixed.measure(order)
        case "cold":
            import starting

            return starting.measure(order)


def _trained(order: Order) -> dict[str, Any]:
    recipe, warm_up = recipe_of(order), None if order.full else to_warm_up(order)
    if order.contender.startswith("pefttools"):
        import ours

        measured = ours.run(recipe, warm_up)
    else:
        import trainer

        measured = trainer.run(recipe, order.contender == "trainer_tuned", warm_up)
    return {**measured, **_machine_rates(order, training=True)}


def _machine_rates(order: Order, training: bool) -> dict[str, Any]:
    """The number of operations, and the rate at which this process multiplies matrices."""
    import work

    from pefttools.data.splitting import load_splits

    recipe = recipe_of(order)
    task = recipe.task.fit(load_splits(recipe.data, recipe.task))
    return {
        "operations_per_token": work.operations_per_token(recipe, task, training),
        "product_rates": work.product_rates(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--order", required=True)
    parser.add_argument("--answer", type=Path, required=True)
    parser.add_argument("--first-step", action="store_true")
    arguments = parser.parse_args()
    order = Order(**json.loads(arguments.order))
    if arguments.first_step:
        import starting

        measured = starting.first_step(order)
    else:
        from pefttools.bases.loading import prepare_libraries

        prepare_libraries()
        measured = measure(order)
    arguments.answer.write_text(json.dumps(measured), "utf-8")


if __name__ == "__main__":
    main()
