"""The section `start` of a recipe: the trained model that training goes on from, and what it implies for the recipe.

A start is a finished run, an adapter folder (peft's or ours), or a merged model. `completed` adds the sha256 of its
weights to a recipe that names one, and the strategy that its weights belong to. A recipe that already has the sha256
was completed before; it is not read again, so that a finished run does not need the folder that it started from.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from pefttools import hashes
from pefttools.errors import UserError, damage_of, shown
from pefttools.recipe.overrides import short
from pefttools.settings import Settings
from pefttools.sources import content_sha256, exists, expanded
from pefttools.strategies.base import CONFIG, WEIGHTS
from pefttools.strategies.peft import from_config

Kind = Literal["run", "adapter", "merged"]
RUN_FILES = ("recipe.yaml", "result.json")
FITTED = ("learning_rate", "warmup", "head_lr_scale")
"""Settings of `train` that belong to a strategy."""


class StartSettings(Settings):
    """The trained model that training goes on from; a plain string is its `source`."""

    source: str
    """A finished run, an adapter folder (peft's or ours), or a merged model. `--from` sets it."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """The sha256 of its weights, which is filled in; other weights are refused."""
    adapter: Literal["continue", "stack"] = "continue"
    """`continue` trains the source's own parameters further. `stack` merges them into the base in memory, frozen, and
    trains a new adapter of this recipe's strategy on top."""
    labels: tuple[str, ...] = ()
    """The classes of an adapter's head in the order of its outputs, where its folder does not name them."""

    @classmethod
    def shorthand(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Found:
    """What is in a start's folder."""

    path: Path
    kind: Kind

    @property
    def weights(self) -> Path:
        """The folder with the weights."""
        return self.path / "adapter" if self.kind == "run" else self.path

    @property
    def recipe_file(self) -> Path | None:
        """The recipe of the training, where the folder has it."""
        file = self.path / "recipe.yaml"
        return file if file.is_file() else None

    @property
    def _is_converted(self) -> bool:
        """Whether an export has written the weights in another form than they were trained in."""
        file = self.path / "manifest.json"
        if self.kind != "adapter" or not file.is_file():
            return False
        with damage_of(file):
            return json.loads(file.read_text("utf-8")).get("settings", {}).get("as_lora") is not None

    @property
    def sha256(self) -> str:
        """The sha256 of the weights: of a merged model's whole folder, of an adapter's two files."""
        return content_sha256(self.weights, () if self.kind == "merged" else (CONFIG, WEIGHTS))

    def strategy(self) -> dict[str, Any]:
        """The strategy of the weights as in a recipe. Raises UserError when a file is damaged."""
        if self.recipe_file and not self._is_converted:
            with damage_of(self.recipe_file):
                return _named(yaml.safe_load(self.recipe_file.read_text("utf-8"))["strategy"])
        with damage_of(self.path / CONFIG):
            config = json.loads((self.path / CONFIG).read_text("utf-8"))
            if "strategy" in config:
                return dict(config["strategy"])
            return from_config(config)


def find(source: str) -> Found:
    """The start in a folder.

    Raises:
        UserError: there is no trained model, it is damaged, or its run is not finished.
    """
    path = expanded(source)
    if not exists(source):
        raise UserError(f"start.source: {shown(source)}: there is no such folder; name a run, an adapter or a model")
    hashes.refuse_damaged(path)
    if (path / "result.json").is_file() and (path / "recipe.yaml").is_file():
        if missing := [name for name in (CONFIG, WEIGHTS) if not (path / "adapter" / name).is_file()]:
            raise UserError(f"start.source: the run in {path} is damaged: its adapter lacks {' and '.join(missing)}")
        return Found(path, "run")
    if (path / "recipe.yaml").is_file() and not (path / "manifest.json").is_file():
        raise UserError(
            f"start.source: the run in {path} is not finished; finish it with `pefttools train"
            f" {path / 'recipe.yaml'} --out {path} --resume`"
        )
    if (path / CONFIG).is_file():
        if not (path / WEIGHTS).is_file():
            raise UserError(f"start.source: {path} is not an adapter, because it lacks {WEIGHTS}; save it again")
        return Found(path, "adapter")
    if (path / "config.json").is_file():
        return Found(path, "merged")
    raise UserError(
        f"start.source: {path} is neither a run, nor an adapter ({CONFIG}), nor a model (config.json); name one"
    )


def completed(values: dict[str, Any], overridden: Collection[str]) -> tuple[dict[str, Any], list[str], set[str]]:
    """The values of a recipe with what its `start` and `data.replay` imply, notes, and the keys that they set.

    Args:
        overridden: dotted keys that overrides set.

    Raises:
        UserError: there is no trained model at a source.
    """
    start = StartSettings.shorthand(values.get("start"))
    if not isinstance(start, Mapping) or not isinstance(start.get("source"), str):
        return _with_replay(values, None), [], set()
    values = _with_replay(values, start["source"])
    if start.get("sha256"):
        return values, [], set()
    found = find(start["source"])
    values = {**values, "start": {**start, "source": str(found.path), "sha256": found.sha256}}
    if found.kind == "merged":
        return _on_merged(values, found)
    if start.get("adapter", "continue") != "continue" or any(k.split(".")[0] == "strategy" for k in overridden):
        return values, [], {"start.sha256"}
    return _with_strategy(values, found.strategy(), found.path, overridden)


def _with_replay(values: dict[str, Any], source: str | None) -> dict[str, Any]:
    """The values with the run whose rows are replayed, and the digest of its rows."""
    data = values.get("data")
    replay = data.get("replay") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(replay, Mapping) or replay.get("sha256"):
        return values
    run = replay.get("run") or source
    if not isinstance(run, str):
        raise UserError("data.replay.run: is required, because training goes on from no run; name one, or add --from")
    found = find(run)
    if found.kind != "run":
        raise UserError(
            f"data.replay.run: {found.path} is not a run, so its training rows are not known; name a run's folder"
        )
    file = found.path / "result.json"
    with damage_of(file):
        digest = json.loads(file.read_text("utf-8"))["data"]["digest"]
    return {**values, "data": {**data, "replay": {**replay, "run": str(found.path), "sha256": digest}}}


def _on_merged(values: dict[str, Any], found: Found) -> tuple[dict[str, Any], list[str], set[str]]:
    """The values with the merged model as the base."""
    values["start"]["adapter"] = "stack"
    given = values.get("base")
    old = given if isinstance(given, Mapping) else {"source": given}
    kept = {key: value for key, value in old.items() if key == "dropout"}
    base = {"source": str(found.path), "sha256": found.sha256, **kept}
    note = f"the base is now the merged model {found.path}, in place of {old.get('source')}"
    return {**values, "base": base}, [note], {"base.source", "base.sha256", "start.adapter", "start.sha256"}


def _with_strategy(
    values: dict[str, Any], strategy: dict[str, Any], path: Path, overridden: Collection[str]
) -> tuple[dict[str, Any], list[str], set[str]]:
    """The values with the strategy of the weights, since these are trained further."""
    old = _named(values.get("strategy"))
    values["strategy"] = strategy
    if old.get("name") == strategy["name"] and all(strategy.get(k, v) == v for k, v in old.items()):
        return values, [], {f"strategy.{key}" for key in strategy}
    train = values.get("train")
    if old.get("name") != strategy["name"] and isinstance(train, Mapping):
        values["train"] = {k: v for k, v in train.items() if k not in FITTED or f"train.{k}" in overridden}
    words = ", ".join(f"{k}={short(v)}" for k, v in strategy.items() if k != "name")
    note = (
        f"the strategy is that of {path}: {strategy['name']} ({words}); to train another one on top of it, set"
        " start.adapter=stack"
    )
    return values, [note], {f"strategy.{key}" for key in strategy}


def _named(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"name": value}
