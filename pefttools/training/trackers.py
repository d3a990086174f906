"""Accelerate's trackers by name. TensorBoard shows a run as one entry with the recipe's values as hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker, get_available_trackers, on_main_process

from pefttools import extras
from pefttools.errors import UserError, unknown
from pefttools.recipe.recipe import Recipe
from pefttools.training.run import Run

DEFAULT = ("tensorboard",)
"""What `train.trackers=null` means, if it is installed."""


class TensorBoard(TensorBoardTracker):
    """Writes hyperparameters into the folder of the scalars; Accelerate's tracker makes further runs of them."""

    def __init__(self, run: Run, metric: str, first_step: int) -> None:
        super().__init__("tensorboard", str(run.path), purge_step=first_step)
        self.metric = metric

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(values, {self.metric: None}):
            self.writer._get_file_writer().add_summary(summary)
        self.writer.flush()


def trackers(recipe: Recipe, run: Run, first_step: int) -> list[Any]:
    """The trackers of a recipe, for Accelerate's `log_with`.

    Args:
        first_step: TensorBoard drops the values that it has from this step on.

    Raises:
        UserError: a tracker is unknown or not installed.
    """
    usable = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    wanted = recipe.train.trackers
    names = wanted if wanted is not None else [name for name in DEFAULT if name in usable]
    problems = []
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            problems.append(f"train.trackers: {unknown('tracker', name, sorted(LOGGER_TYPE_TO_CLASS))}")
        elif name not in usable:
            problems.append(f"train.trackers: {name} is not installed; run `{extras.command([name])}`")
    if problems:
        raise UserError(*problems)
    board = TensorBoard(run, f"validation/{recipe.task.primary}", first_step)
    return [board if name == "tensorboard" else name for name in names]


def hyperparameters(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values by dotted keys, as numbers, flags and texts, which trackers accept; nulls are left out."""
    return {key: value for key, value in _leaves(recipe.as_dict()) if value is not None}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
