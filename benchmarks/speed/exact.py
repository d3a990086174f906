"""Rows whose texts have an exact number of tokens, made of words in the vocabulary."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from pefttools import atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELS = ("one", "two", "three")
SCORED = 16
"""Number of validation rows, and of test rows; the smallest allowed number."""


def write(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int, length: int) -> list[str]:
    """Write files of such rows; returns the overrides with which a recipe trains on them.

    Args:
        rows: number of training rows.
        length: number of tokens of each row, with special tokens.
    """
    words = _words(tokenizer)
    number = length - tokenizer.num_special_tokens_to_add()
    draw = random.Random(0)
    made = []
    for name, size in (("train", rows), ("validation", SCORED), ("test", SCORED)):
        file = folder / f"{name}.jsonl"
        lines = [
            {"text": " ".join(draw.choices(words, k=number)), "label": LABELS[i % len(LABELS)]} for i in range(size)
        ]
        atomic.write_text(file, "".join(json.dumps(line) + "\n" for line in lines))
        made.append(f"data.{name}={file.absolute()}")
    return [*made, "data.deduplicate=false", f"task.max_length={length}"]


def _words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The vocabulary's words that are one token each, in alphabetical order."""
    special = set(tokenizer.all_special_tokens)
    return sorted(w for w in tokenizer.get_vocab() if w.isascii() and w.isalnum() and len(w) > 2 and w not in special)
