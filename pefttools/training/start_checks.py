"""Checks that a trained model, which training is to go on from, fits the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pefttools.bases import loading
from pefttools.data.fields import listed
from pefttools.errors import UserError
from pefttools.reporter import Reporter
from pefttools.sources import content_sha256, exists, expanded

if TYPE_CHECKING:
    from pefttools.bases.loading import Base
    from pefttools.recipe.recipe import Recipe
    from pefttools.strategies.base import Strategy

SAME_BASE = ("init", "layers", "head", "quantize")
"""Settings of the base in which a run and the run that it goes on from must agree."""


def refuse_other_base_settings(recipe: Recipe, former: Recipe) -> None:
    """Raises UserError when a run's base was loaded in another form than the recipe's."""
    assert recipe.start is not None
    ours, theirs = recipe.base.model_dump(), former.base.model_dump()
    if unlike := [key for key in SAME_BASE if ours[key] != theirs[key]]:
        differences = ", ".join(f"base.{key} is {ours[key]}, not {theirs[key]}" for key in unlike)
        raise UserError(f"start.source: {recipe.start.source} was trained on another base: {differences}")


def refuse_other_task(recipe: Recipe, former: Recipe) -> None:
    assert recipe.start is not None
    if former.task.name != recipe.task.name:
        raise UserError(
            f"start.source: {recipe.start.source} was trained for task={former.task.name}, but the recipe's task is"
            f" {recipe.task.name}; start from a run of the same task"
        )


def refuse_other_base(path: Path, name: str | None, recipe: Recipe, reporter: Reporter) -> None:
    """Raises UserError when a foreign adapter names a base whose content or name on the hub is not the recipe's; warns
    where that cannot be compared."""
    folder, source = expanded(name or ""), recipe.base.source
    on_hub = source.removeprefix("hf:").partition("@")[0] if source.startswith("hf:") else None
    if name and exists(name) and folder.is_dir():
        ours = loading.locate(recipe.base)[0]
        weights = ("*.safetensors",)
        if content_sha256(folder, weights) != content_sha256(ours, weights):
            raise UserError(
                f"start.source: the adapter in {path} was trained on {name}, whose weights are not those of {source};"
                f" set base.source={name}"
            )
    elif not name or on_hub is None:
        was = f"was trained on {name}" if name else "does not name the base that it was trained on"
        reporter.warn(f"the adapter in {path} {was}; only its shapes are compared with {source}")
    elif on_hub != name:
        raise UserError(
            f"start.source: the adapter in {path} was trained on {name}, but the recipe's base is {source}; set"
            f" base.source=hf:{name}"
        )


def refuse_other_tokenizer(path: Path, base: Base) -> None:
    """Raises UserError when an adapter's folder has a tokenizer with another vocabulary than the base's."""
    if not (path / "tokenizer.json").is_file():
        return
    theirs, ours = loading.load_tokenizer(path, str(path)).get_vocab(), base.tokenizer.get_vocab()
    if unlike := sorted(token for token in {**theirs, **ours} if theirs.get(token) != ours.get(token)):
        raise UserError(
            f"start.source: the adapter in {path} has another tokenizer than {base.source}: {len(unlike)} tokens differ"
            f" ({', '.join(unlike[:3])}); set base.source to the base that it was trained on"
        )


def refuse_other_strategy(ours: Strategy, theirs: Strategy, path: Path) -> None:
    now, was = ours.as_dict(), theirs.as_dict()
    if unlike := [key for key in {**was, **now} if now.get(key) != was.get(key)]:
        differences = ", ".join(f"strategy.{key} is {now.get(key)}, not {was.get(key)}" for key in unlike)
        raise UserError(
            f"start.source: the weights of {path} belong to another strategy: {differences}; leave out these settings"
            " to train them further, or set start.adapter=stack to train this strategy on top of them"
        )


def refuse_other_number(names: Sequence[str], number: int, path: Path, where: str = "start.source") -> None:
    if len(names) != number:
        raise UserError(
            f"{where}: there are {len(names)} names ({listed(names)}), but the head of {path} has {number} outputs;"
            " name each output once with start.labels, or set base.trained_head=new to train a new head"
        )
