"""Bases and rows so small that every case runs in seconds, to check that the benchmark works."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from pefttools import atomic

KEYS = {"fruit": ("apple", "pear", "plum"), "tool": ("hammer", "saw", "drill"), "colour": ("red", "green", "blue")}
WORDS = tuple(f"word{i}" for i in range(40))
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[END]"}
ROWS = 600


def overrides(language_model: bool, folder: Path) -> list[str]:
    """Overrides that replace a recipe's base and rows by tiny ones."""
    name = "chats" if language_model else "rows"
    file = folder / "smoke" / f"{name}.jsonl"
    if not file.exists():
        made = _chat if language_model else _row
        draw = random.Random(0)
        atomic.write_text(file, "".join(json.dumps(made(draw)) + "\n" for _ in range(ROWS)))
    return [
        f"data.train={file.absolute()}", f"base={base('llama' if language_model else 'bert', folder)}",
        "task.max_length=32",
    ]  # fmt: skip


def base(family: str, folder: Path) -> Path:
    """The folder of a random `bert` or `llama` model with two layers, and its tokenizer."""
    import torch
    import transformers

    place = (folder / "smoke" / family).absolute()
    if place.exists():
        return place
    tokenizer = _tokenizer(family)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 80, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **sizes)
    auto = transformers.AutoModelForCausalLM if family == "llama" else transformers.AutoModel
    with atomic.new_folder(place) as part:
        auto.from_config(config).save_pretrained(part)
        tokenizer.save_pretrained(part)
    return place


def _tokenizer(family: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL.values(), *WORDS, *(word for group in KEYS.values() for word in group)]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    inputs = ["input_ids", "attention_mask"]
    if family == "bert":
        inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        inputs.append("token_type_ids")
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, model_input_names=inputs, **SPECIAL)


def _row(draw: random.Random) -> dict[str, str]:
    """A row of filler words and one keyword, which determines the label."""
    label = draw.choice(list(KEYS))
    words = draw.choices(WORDS, k=draw.randint(3, 9))
    words.insert(draw.randrange(len(words)), draw.choice(KEYS[label]))
    return {"text": " ".join(words), "label": label}


def _chat(draw: random.Random) -> dict[str, str]:
    words = draw.choices(WORDS, k=draw.randint(3, 9))
    return {"prompt": " ".join(words), "completion": words[-1]}
