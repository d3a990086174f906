"""Trainable tokens with tied embeddings: trained, merged and exported for plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_bases
import torch
import transformers
from conftest import train_tiny, write_recipe, write_rows

from pefttools.exporters.driver import export

pytestmark = pytest.mark.slow

TOKENS = [5, 6, 7]
SPELLINGS = {
    "a list": "strategy={name: peft, type: LORA, settings: {r: 4, trainable_token_indices: [5, 6, 7]}}",
    "by the table": (
        "strategy={name: peft, type: LORA, settings: {r: 4, trainable_token_indices: {embed_tokens: [5, 6, 7]}}}"
    ),
    "TRAINABLE_TOKENS": "strategy={name: peft, type: TRAINABLE_TOKENS, settings: {token_indices: [5, 6, 7]}}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_trainable_tokens_of_tied_embeddings_are_trained_and_exported(spelling: str, tmp_path: Path) -> None:
    base = tiny_bases.tied_language_model(tmp_path / "base")
    pairs = [("word1 apple", "red"), ("word2 pear", "green"), ("word3 saw", "word7 blue"), ("word4 drill", "hammer")]
    made = [{"prompt": f"{prompt} word{i}", "completion": answer} for i in range(4) for prompt, answer in pairs]
    rows = write_rows(tmp_path / "rows.jsonl", made)
    recipe = write_recipe(
        tmp_path / "recipe.yaml", base, rows, data={"train": str(rows), "validation_share": 0.2, "test_share": 0.2},
        task={"name": "causal_lm", "max_length": 48, "max_new_tokens": 4},
        train={"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "precision": "fp32"},
    )  # fmt: skip
    run, _ = train_tiny(recipe, tmp_path / "run", SPELLINGS[spelling])
    assert export(run, "merged")["max_logit_error"] < 1e-5
    assert export(run, "adapter")["max_logit_error"] < 1e-5
    folder = run / "export" / "merged"
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    table = model.get_input_embeddings().weight
    start: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert model.get_output_embeddings().weight is table
    changed = (table - start.get_input_embeddings().weight).abs().amax(1) > 0
    assert set(torch.nonzero(changed).flatten().tolist()) == set(TOKENS)
