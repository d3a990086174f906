"""result.json: the recipe, scores, duration and memory of a run that was trained or merged."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pefttools import atomic, hashes

if TYPE_CHECKING:
    from pefttools.data.rows import Splits
    from pefttools.recipe.recipe import Recipe
    from pefttools.training.checkpoint import Progress
    from pefttools.training.run import Run

LIBRARIES = ("pefttools", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "tokenizers")
"""Packages whose versions are recorded."""
ORDER = (
    "recipe", "digest", "base", "data", "task", "strategy", "regularizers", "objectives", "augmentations",
    "seed", "start", "params", "facts", "before", "validation", "test", "ledger", "train", "files",
    "versions", "hardware",
)  # fmt: skip
"""Order of the file's keys; any other key comes after them."""


def of_outcome(
    run: Run,
    recipe: Recipe,
    digest: str,
    params: Mapping[str, int],
    validation: Mapping[str, Any] | None,
    test: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Entries that every run has, trained or merged; its adapter must already be written."""
    return {
        "recipe": recipe.name,
        "digest": digest,
        "params": params,
        "validation": validation,
        "test": test,
        "files": {"adapter_bytes": sum(f.stat().st_size for f in run.adapter.rglob("*") if f.is_file())},
    }


def of_recipe(recipe: Recipe) -> dict[str, Any]:
    """Entries for the recipe's choices."""
    return {
        "task": recipe.task.name,
        "strategy": recipe.strategy.name,
        "regularizers": sorted(recipe.regularizers),
        "objectives": list(recipe.objectives),
        "augmentations": list(recipe.augmentations),
        "seed": recipe.seed,
        **({"start": recipe.start.model_dump(mode="json")} if recipe.start else {}),
    }


def of_rows(splits: Splits) -> dict[str, Any]:
    """Entries for the rows."""
    return {
        "digest": splits.digest,
        "rows": {name: len(rows) for name, rows in splits.named().items()},
        "left_out": splits.left_out,
        "invalid": splits.invalid,
    }


def of_progress(progress: Progress, epochs: float) -> dict[str, Any]:
    """Entries for the steps and speed of training."""
    return {
        "steps": progress.step,
        "epochs": epochs,
        "seconds": progress.seconds,
        "cpu_seconds": progress.cpu_seconds,
        "step_seconds": progress.step_seconds,
        "tokens": progress.tokens,
        "tokens_per_second": progress.tokens / progress.step_seconds if progress.step else 0.0,
        "best_step": progress.best_step,
        "stopped_early": progress.stopped_early,
    }


def versions() -> dict[str, str]:
    """Versions of Python and the libraries."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}


def write(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    """Write the hashes of the run's files, and result.json, which marks it as finished.

    Returns:
        the result in the file's order.
    """
    ordered = {name: result[name] for name in ORDER if name in result} | result
    text = atomic.json_text(ordered)
    hashes.write(run.path, run.written_files(), {run.result_file.name: text})
    atomic.write_text(run.result_file, text)
    return ordered
