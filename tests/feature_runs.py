"""Shared by tests of the feature cache: a recipe on an untrained base, overrides, and comparison of losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from conftest import losses, make_rows, make_tokenizer, write_rows
from transformers import AutoConfig, AutoModelForSequenceClassification

from pefttools.compatibility import tiny_models
from pefttools.training.run import Run

HEAD = ["strategy=top_layers"]
LAST = ["strategy=top_layers", "strategy.layers=1"]
LORA = ["strategy=lora", "strategy.targets=['*.1.*']"]


def validation_losses(run: Path) -> list[float]:
    return [line["validation"]["loss"] for line in Run(run).lines() if "validation" in line]


def assert_same_losses(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    for values in (losses, validation_losses):
        assert max(abs(a - b) for a, b in zip(values(one), values(other), strict=True)) <= tolerance


def write_feature_recipe(folder: Path, architecture: str, **sections: Any) -> Path:
    """A recipe with 80 rows on an untrained tiny base with dropout."""
    tokenizer = make_tokenizer()
    values = {**tiny_models.ARCHITECTURES[architecture].sizes, "vocab_size": len(tokenizer), "num_labels": 3}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(architecture, **values))
    model.base_model.save_pretrained(folder / architecture)
    tokenizer.save_pretrained(folder / architecture)
    recipe = {
        "base": str(folder / architecture),
        "data": {"train": str(write_rows(folder / "rows.jsonl", make_rows(80)))},
        "task": {"name": "text_classification", "max_length": 32},
        "strategy": "top_layers",
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.003, "precision": "fp32", "log_every": 1,
                  "trackers": []},
        **sections,
    }  # fmt: skip
    path = folder / f"{architecture}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
