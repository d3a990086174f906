"""Exports of encoder-decoders keep prefix, languages and beams; plain transformers generates the same text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, make_tokenizer, train_tiny, write_recipe, write_rows
from test_seq2seq import make_model

from pefttools.exporters.driver import export
from pefttools.inference.prediction import predict_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns to copy, with a prefix, on a base whose generation config sets `length_penalty`."""
    folder = tmp_path_factory.mktemp("seq2seq")
    make_model().save_pretrained(folder / "base")
    file = folder / "base" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "length_penalty": 3.0, "early_stopping": True}))
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder / "base")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS[:8], k=3)) for _ in range(160)]
    rows = write_rows(folder / "rows.jsonl", [{"source": text, "target": text} for text in texts])
    task = {"name": "seq2seq", "max_length": 16, "max_target_length": 8, "prefix": "word9 ", "num_beams": 2}
    recipe = write_recipe(
        folder / "r.yaml", folder / "base", rows, task=task, strategy="full",
        train={"epochs": 4, "learning_rate": 0.005},
    )  # fmt: skip
    return train_tiny(recipe, folder / "run")[0]


@pytest.mark.parametrize("to", ["merged", "adapter"])
def test_exported_encoder_decoder_generates_the_same_text_in_plain_transformers(
    to: str, run: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    manifest = export(run, to, tmp_path / "out")
    assert manifest["answers_in_text"] == 4
    assert manifest["task"]["prefix"] == "word9 "
    assert '"word9 "' in (tmp_path / "out" / "README.md").read_text("utf-8")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (written["num_beams"], written["length_penalty"], written["early_stopping"]) == (2, 1.0, False)
    assert written["decoder_start_token_id"] == 3
    if to == "adapter":
        return
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        inputs = tokenizer("word9 word1 word2 word3", return_tensors="pt")
        line = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    (expected,) = predict_rows(run, [{"source": "word1 word2 word3"}], precision="fp32")
    assert tokenizer.decode(line[0], skip_special_tokens=True).strip() == expected["prediction"].strip()
