"""A check of every cell, on models without weights, before anything runs, so that errors appear at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttools.bases import loading
from pefttools.bases.parameters import count_parameters
from pefttools.data.splitting import Splits, load_splits
from pefttools.errors import UserError
from pefttools.recipe import needed_packages
from pefttools.reporter import SILENT, Reporter
from pefttools.training import class_order, earlier, wrapping
from pefttools.training.penalties import Penalties

if TYPE_CHECKING:
    from pefttools.bench.suite import Cell
    from pefttools.recipe.recipe import Recipe
    from pefttools.tasks.base import Task


def check(cells: Sequence[Cell], records: Mapping[str, Mapping[str, Any]], reporter: Reporter = SILENT) -> None:
    """Check that every cell works.

    Raises:
        UserError: cells do not work (each with its reason), or records in the folder were made with other rows.
    """
    loading.prepare_libraries()
    problems: list[str] = []
    loaded: dict[str, tuple[Splits, Task]] = {}
    for cell in cells:
        try:
            recipe = cell.recipe(cell.suite.tuning.seed)
            key = json.dumps([r.model_dump(mode="json") for r in (recipe.data, recipe.base)] + [recipe.task.as_dict()])
            start = earlier.opened(recipe)
            key += json.dumps(start and start.found.sha256)
            if key not in loaded:
                splits = load_splits(recipe.data, recipe.task, reporter)
                loaded[key] = (
                    splits,
                    class_order.fitted(recipe.task, recipe.base, splits, reporter, start.labels if start else ()),
                )
            splits, task = loaded[key]
            params_of(recipe, task)
        except UserError as error:
            problems += [p if p.startswith(cell.name) else f"{cell.name}: {p}" for p in error.problems]
            continue
        problems += of_other_rows(recipe, splits.digest, records)
    if problems:
        raise UserError(*dict.fromkeys(problems))


def params_of(recipe: Recipe, task: Task) -> dict[str, int] | None:
    """`count_parameters` of a recipe; None where counting needs weights. Raises UserError if the recipe cannot work."""
    recipe = recipe.model_copy(update={"task": task})
    needed_packages.refuse_missing(recipe)
    base = wrapping.load_base(recipe, empty=True)
    try:
        model = wrapping.wrap(recipe, base, empty=True, earlier=earlier.opened(recipe))
        params = count_parameters(model, base.head)
        Penalties.bind(recipe, base, model, earlier=earlier.run_before(recipe))
    except (RuntimeError, NotImplementedError):  # raised for reading values of a tensor without weights
        return None
    return params


def of_other_rows(recipe: Recipe, digest: str, records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A problem if a trial on this cell's data was made with other rows than its file contains now."""
    wanted = recipe.data.digest
    for record in records.values():
        if record["status"] == "done" and record["data_settings"] == wanted and record["data"]["digest"] != digest:
            return [f"--out: its trials used other rows than {recipe.data.train.source} has now; choose another folder"]
    return []
