"""Settings that moved from `train` into `train.optimizer`: their old keys are still understood, with a note.

Recipes of earlier runs contain all three, whichever optimizer was chosen. A setting that the optimizer does not have
had no effect then, and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pefttools.errors import UserError
from pefttools.optimizers import optimizers
from pefttools.recipe.overrides import short
from pefttools.recipe.train_settings import TrainSettings

DEFAULTS: Mapping[str, Any] = {"betas": [0.9, 0.999], "eps": 1e-8, "momentum": 0.0}
"""Old key under `train` -> its default there."""
DEFAULT_OPTIMIZER: str = TrainSettings.model_fields["optimizer"].default.name
"""The optimizer of a recipe that names none."""


def in_file(values: dict[str, Any], is_run: bool) -> tuple[dict[str, Any], list[str], list[str]]:
    """A recipe file's values with the settings in their new place, notes, and problems: settings under both keys.

    Args:
        is_run: whether a run wrote the file; then there are no notes, because nobody has to change it.
    """
    train = values.get("train")
    old = [key for key in DEFAULTS if isinstance(train, Mapping) and key in train]
    if not old:
        return values, [], []
    assert isinstance(train, Mapping)
    optimizer = train.get("optimizer") or {}
    chosen = dict(optimizer) if isinstance(optimizer, Mapping) else {"name": optimizer}
    name = chosen.get("name", DEFAULT_OPTIMIZER)
    known = _settings(name)
    notes, problems = [], []
    for key in old:
        if key in chosen:
            problems.append(_both(key))
        elif known is None or key in known:
            chosen[key] = train[key]
            notes.append(_moved(key))
        elif train[key] != DEFAULTS[key]:
            idle = f"train.{key}={short(train[key])}"
            notes.append(f"{idle} has no effect: train.optimizer={name} has no setting {key}")
    rest = {key: value for key, value in train.items() if key not in old}
    moved = {**rest, "optimizer": chosen} if chosen else rest
    return {**values, "train": moved}, [] if is_run else notes, problems


def in_overrides(texts: Mapping[str, str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Overrides under their new keys, notes, and problems: settings under both keys."""
    old = [key for key in DEFAULTS if f"train.{key}" in texts]
    problems = [_both(key) for key in old if f"train.optimizer.{key}" in texts]
    new_keys = {f"train.{key}": f"train.optimizer.{key}" for key in old}
    return {new_keys.get(key, key): text for key, text in texts.items()}, [_moved(key) for key in old], problems


def as_before(train: Mapping[str, Any]) -> dict[str, Any]:
    """The section as it was before the settings moved, so that digests do not change."""
    name, settings = train["optimizer"]["name"], {k: v for k, v in train["optimizer"].items() if k != "name"}
    if not settings.keys() <= DEFAULTS.keys():
        return dict(train)  # the optimizer is newer than the move
    return {**train, "optimizer": name, **DEFAULTS, **settings}


def _settings(name: Any) -> Mapping[str, Any] | None:
    """The settings of an optimizer; None for an unknown name, which is reported elsewhere."""
    try:
        return optimizers.get(name).model_fields if isinstance(name, str) else None
    except UserError:
        return None


def _moved(key: str) -> str:
    return f"train.{key} is now train.optimizer.{key}; the old key still works"


def _both(key: str) -> str:
    return f"train.{key}: is the old key of train.optimizer.{key}, and both are set; remove train.{key}"
