"""The cache of features: in memory, or in a file that later runs read too.

A file's name is a hash of everything its features depend on (the frozen weights, the tokens, the precision), so runs
with another learning rate, seed or strategy find it. Rows are stored longest first, so their lengths give their places.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pefttools import atomic
from pefttools.errors import UserError
from pefttools.recipe.train_settings import TrainSettings
from pefttools.reporter import SILENT, Reporter
from pefttools.sources import checksums
from pefttools.sources.cache import cache_dir, only_one, stored
from pefttools.training.features import FOLDER, FeatureExtractor, Features

if TYPE_CHECKING:
    from datasets import Dataset

FREE_SHARE = 0.9
"""Share of the free disk space that may be filled."""


@dataclass(frozen=True)
class CachedFeatures:
    """The cached features of a run."""

    sets: Mapping[str, Features] = field(default_factory=dict)
    """Split -> features; empty where nothing is frozen, caching saves no time, or there is no space."""
    where: str = ""
    """`memory` or `disk`."""

    @property
    def facts(self) -> dict[str, Any]:
        """Number of `blocks` that steps skip, `bytes`, `where`, and the splits (`rows`); empty without features."""
        if not self.sets:
            return {}
        blocks = max(len(features.frozen.blocks) for features in self.sets.values())
        size = sum(features.values.nbytes for features in self.sets.values())
        return {"blocks": blocks, "bytes": size, "where": self.where, "rows": sorted(self.sets)}


def load_or_compute(
    settings: TrainSettings,
    extractor: FeatureExtractor,
    encoded: Mapping[str, Dataset],
    reporter: Reporter = SILENT,
    wanted: Sequence[str] | None = None,
) -> CachedFeatures:
    """The features of the training and validation rows, as far as the settings and the machine allow.

    Args:
        wanted: the splits to cache; a resumed run names those it cached before, so that it computes the same. None to
            cache a split where that saves time.

    Raises:
        UserError: the cache cannot be written to.
    """
    again = read_again(settings)
    rows = {name: encoded[name] for name in (("train", "validation") if wanted is None else wanted) if name in encoded}
    possible = extractor.frozen.forms and extractor.task.fixed_inputs and rows
    if settings.feature_cache == "off" or settings.compile or not possible:  # features cannot replace compiled blocks
        return CachedFeatures()
    by_gain = settings.feature_cache in ("auto", "memory") and wanted is None
    on_disk = settings.feature_cache == "auto" and any(cache_dir(FOLDER).glob("*.bin"))
    if by_gain and not again and not on_disk:
        return CachedFeatures()
    was_training = extractor.model.training
    extractor.model.eval()
    try:
        if (sample := extractor.sample(encoded["train"])) is None:
            return CachedFeatures()
        paths = {name: extractor.path(rows[name], sample.dtype) for name in rows if settings.feature_cache != "memory"}
        if by_gain:
            rows = {name: rows[name] for name in rows if name in again or (name in paths and paths[name].is_file())}
        return _load_or_compute(settings, extractor, rows, paths, sample, reporter)
    finally:
        extractor.model.train(was_training)


def read_again(settings: TrainSettings) -> set[str]:
    """The splits that a run reads more than once."""
    passes = {"train": settings.epochs, "validation": settings.epochs / settings.evaluate_every}
    return {name for name, number in passes.items() if number > 1}


def _load_or_compute(
    settings: TrainSettings,
    extractor: FeatureExtractor,
    rows: Mapping[str, Dataset],
    paths: Mapping[str, Path],
    sample: Tensor,
    reporter: Reporter,
) -> CachedFeatures:
    """The features of these splits, if there is space for all of them.

    Args:
        paths: split -> file; empty where features must not be written to disk.
        sample: some features, for their dtype and width.
    """
    sizes = {name: sample.shape[1] * sample.itemsize * sum(extractor.num_tokens(rows[name])) for name in rows}
    size, missing = sum(sizes.values()), [name for name in rows if name in paths and not paths[name].is_file()]
    in_memory = settings.feature_cache != "disk" and size <= settings.feature_cache_bytes
    free = _free_bytes()
    on_disk = bool(paths) and size <= settings.feature_disk_bytes
    on_disk = on_disk and sum(sizes[name] for name in missing) <= FREE_SHARE * free
    number = len(extractor.frozen.blocks)
    blocks = f"{number} frozen block{'s' if number > 1 else ''}"
    if not rows:
        return CachedFeatures()
    if not in_memory and not on_disk:
        reporter.warn(
            f"{blocks} will be computed in every epoch, because caching their output needs {_human(size)}:"
            f" train.feature_cache_bytes allows {_human(settings.feature_cache_bytes)} of memory,"
            f" train.feature_disk_bytes allows {_human(settings.feature_disk_bytes)} of disk, {_human(free)} of it are"
            f" free, and train.feature_cache is {settings.feature_cache}"
        )
        return CachedFeatures()
    sets = {}
    for name, encoded in rows.items():
        if on_disk:
            values = _from_disk(extractor, encoded, name, paths[name], sample, settings, reporter, mapped=not in_memory)
        else:
            values = _in_memory(extractor, encoded, name, sample, reporter)
        sets[name] = extractor.of(encoded, values)
    where = "memory" if in_memory else "disk"
    done = "computed once" if missing or not on_disk else "read from the cache"
    reporter.note(f"output of {blocks} {done}: {_human(size)} {'in' if in_memory else 'on'} {where}")
    return CachedFeatures(sets, where)


def _in_memory(extractor: FeatureExtractor, rows: Dataset, title: str, sample: Tensor, reporter: Reporter) -> Tensor:
    values, place = sample.new_empty((sum(extractor.num_tokens(rows)), sample.shape[1])), 0
    for part in extractor.compute(rows, title, reporter):
        values[place : place + len(part)] = part
        place += len(part)
    return values


def _from_disk(
    extractor: FeatureExtractor,
    rows: Dataset,
    title: str,
    path: Path,
    sample: Tensor,
    settings: TrainSettings,
    reporter: Reporter,
    mapped: bool,
) -> Tensor:
    """The features in this file. The first process that needs them writes the file, while others wait."""
    tokens, width = sum(extractor.num_tokens(rows)), sample.shape[1]

    def create() -> None:
        with only_one(path.with_name("room")):
            _make_room(path.parent, settings.feature_disk_bytes - tokens * width * sample.itemsize)
        try:
            with atomic.new_file(path) as part, part.open("wb") as stream:
                for values in extractor.compute(rows, title, reporter):
                    stream.write(values.view(torch.uint8).numpy().data)
        except OSError as error:
            raise UserError(
                f"train.feature_cache: {path} cannot be written ({error.strerror}); set train.feature_cache=memory"
            ) from error

    stored(path, create, "features", reporter)
    os.utime(path)  # `_make_room` removes the least recently used files first
    if mapped:
        return torch.from_file(str(path), False, tokens * width, dtype=sample.dtype).view(tokens, width)
    values = sample.new_empty((tokens, width))
    with path.open("rb") as stream:
        stream.readinto(values.view(torch.uint8).numpy().data)
    return values


def _make_room(folder: Path, limit: int) -> None:
    """Remove the least recently used files until the rest has at most `limit` bytes; open mappings stay valid."""
    files = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in folder.glob("[!.]*.bin"))
    total = sum(size for _, size, _ in files)
    for _, size, file in files:
        if total <= limit:
            break
        checksums.remove(file)
        total -= size


def _free_bytes() -> int:
    folder = cache_dir(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free


def _human(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
