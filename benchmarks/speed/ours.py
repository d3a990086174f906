"""pefttools as a contender: `training.driver.train` from beginning to end, timed by a reporter."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from clock import Clock

from pefttools.recipe.recipe import Recipe
from pefttools.training.driver import train


def run(recipe: Recipe, warm_up: Recipe | None = None, clock: Clock | None = None) -> dict[str, Any]:
    """Train once; returns times in seconds, memory in bytes, and the test score.

    Args:
        warm_up: the recipe on a few rows, trained first; its measurements are dropped.
        clock: measures time and memory; a new one when None.
    """
    if warm_up is not None:
        run(warm_up)
    clock = clock or Clock()
    with tempfile.TemporaryDirectory() as folder:
        result = train(recipe, Path(folder, "run"), reporter=clock)
    return {
        "seconds": clock.seconds, "wall_seconds": clock.wall_seconds, "loaded_bytes": clock.loaded_bytes,
        "peak_bytes": clock.peak_bytes, "trainable": result["params"]["trainable"],
        "rows": round(recipe.train.epochs * result["data"]["rows"]["train"]), "tokens": result["train"]["tokens"],
        "precision": result["train"]["precision"],
        **({"score": result["test"][recipe.task.primary]} if result["test"] else {}),
    }  # fmt: skip
