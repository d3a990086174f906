"""result.json: what a run is, what it scores and what it took; of a training or of a merge."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pefttools import atomic

if TYPE_CHECKING:
    from pefttools.data.rows import Splits
    from pefttools.recipe.recipe import Recipe
    from pefttools.training.checkpoint import Progress
    from pefttools.training.run import Run

LIBRARIES = ("pefttools", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "tokenizers")
"""Those whose versions are written down."""
ORDER = (
    "recipe", "digest", "base", "data", "task", "strategy", "regularizers", "objectives", "augmentations",
    "seed", "params", "facts", "before", "validation", "test", "train", "files", "versions", "hardware",
)  # fmt: skip
"""Of the file's keys; any other comes after them."""


def of_outcome(
    run: Run,
    recipe: Recipe,
    digest: str,
    params: Mapping[str, int],
    validation: Mapping[str, Any] | None,
    test: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What every run has of its own, however it came to its weights; its adapter is written."""
    return {
        "recipe": recipe.name,
        "digest": digest,
        "params": params,
        "validation": validation,
        "test": test,
        "files": {"adapter_bytes": sum(f.stat().st_size for f in run.adapter.rglob("*") if f.is_file())},
    }


def of_recipe(recipe: Recipe) -> dict[str, Any]:
    """What is done, by the recipe."""
    return {
        "task": recipe.task.name,
        "strategy": recipe.strategy.name,
        "regularizers": sorted(recipe.regularizers),
        "objectives": list(recipe.objectives),
        "augmentations": list(recipe.augmentations),
        "seed": recipe.seed,
    }


def of_rows(splits: Splits) -> dict[str, Any]:
    """Which rows it is done with."""
    return {
        "digest": splits.digest,
        "rows": {name: len(rows) for name, rows in splits.named().items()},
        "left_out": splits.left_out,
        "invalid": splits.invalid,
    }


def of_progress(progress: Progress, epochs: float) -> dict[str, Any]:
    """How far training went, and how fast."""
    return {
        "steps": progress.step,
        "epochs": epochs,
        "seconds": progress.seconds,
        "step_seconds": progress.step_seconds,
        "tokens": progress.tokens,
        "tokens_per_second": progress.tokens / progress.step_seconds if progress.step else 0.0,
        "best_step": progress.best_step,
        "stopped_early": progress.stopped_early,
    }


def versions() -> dict[str, str]:
    """Of Python and the libraries."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}


def write(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    """Write result.json, which makes the run a finished one; the result is returned in the file's order."""
    ordered = {name: result[name] for name in ORDER if name in result} | result
    atomic.write_json(run.result_file, ordered)
    return ordered
