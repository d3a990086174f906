"""The run with which forgetting is measured: a language-model head on the frozen base, one run for each base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pefttools.bench import trial
from pefttools.bench.suite import words
from pefttools.bench.trial import Order
from pefttools.errors import UserError
from pefttools.recipe import recipes
from pefttools.sources.cache import only_one

if TYPE_CHECKING:
    from pefttools.bench.suite import Cell, Retention


def prepared(settings: Retention, cell: Cell, folder: Path, threads: int) -> Path:
    """The finished run for this cell's base, in the folder; trains it if it does not exist.

    Raises:
        UserError: the settings are wrong, or no head can be trained on this base.
    """
    base = cell.recipe(cell.suite.tuning.seed).base
    overrides = words({"base": base.model_dump(mode="json", exclude={"dropout"}), **settings.set, "seed": 0})
    try:
        resolved = recipes.load(settings.recipe, overrides).recipe
    except UserError as error:
        raise UserError(*(f"retention: {problem}" for problem in error.problems)) from error
    order = Order(
        settings.recipe, tuple(overrides), resolved.digest, folder, folder / "trials", False, threads=threads
    )  # fmt: skip
    with only_one(order.folder):
        if not (order.folder / "result.json").is_file():
            record = trial.perform(order, lambda: None, 1.0)
            if record["status"] == "failed":
                raise UserError(f"retention: {record['reason']}")
    return order.folder
