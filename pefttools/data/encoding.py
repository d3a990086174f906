"""Tokenised once: rows to an Arrow folder in the cache, keyed by content, tokenizer and settings, then mapped."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from typing import TYPE_CHECKING

from pefttools import atomic
from pefttools.data.splitting import Row
from pefttools.reporter import SILENT, Reporter
from pefttools.sources.cache import cache_dir, only_one

if TYPE_CHECKING:
    from datasets import Dataset

    from pefttools.models import Base
    from pefttools.tasks.base import Task

CHUNK = 1000
LIBRARIES = ("transformers", "tokenizers", "pefttools")


def encode(rows: list[Row], task: Task, base: Base, title: str, reporter: Reporter = SILENT) -> Dataset:
    """The rows as the task encodes them, memory-mapped from the cache; at least `input_ids` and `cut` a row."""
    from datasets import Dataset, load_from_disk

    versions = {name: metadata.version(name) for name in LIBRARIES}
    limit = min(task.max_length, base.tokenizer.model_max_length)  # a strategy with virtual tokens lowers the second
    key = [rows, task.as_dict(), base.sha256, len(base.tokenizer), limit, versions]
    folder = cache_dir("tokenised", hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest())
    with only_one(folder):
        if not folder.exists():
            encoded = encode_once(rows, task, base, title, reporter)
            with atomic.new_folder(folder) as part:
                encoded.save_to_disk(part)
    encoded = load_from_disk(folder)
    assert isinstance(encoded, Dataset)
    if cut := sum(encoded["cut"]):
        reporter.warn(f"{cut} of {len(rows)} {title} rows are longer than {limit} tokens; they were cut")
    return encoded


def encode_once(rows: list[Row], task: Task, base: Base, title: str, reporter: Reporter = SILENT) -> Dataset:
    """The rows as the task encodes them, in memory."""
    from datasets import Dataset, concatenate_datasets

    chunks = []
    with reporter.bar(f"tokenising {title}", len(rows), "rows") as bar:
        for start in range(0, len(rows), CHUNK):
            chunks.append(Dataset.from_dict(task.encode(rows[start : start + CHUNK], base.tokenizer)))
            bar.advance(len(chunks[-1]))
    return concatenate_datasets(chunks)
