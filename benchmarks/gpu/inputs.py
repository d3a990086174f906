"""Models with random weights, invented rows, and a tokenizer trained on them; all are made once and shared by parts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml
from sizes import Case

from pefttools import atomic
from pefttools.recipe import recipes
from pefttools.recipe.recipe import Recipe

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[END]"}
VOCABULARY = {"bert": 30_522, "llama": 32_000}
"""Rows of the embedding tables; the tokenizer has fewer tokens."""
SYLLABLES = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
LABELS = ("one", "two", "three")
SCORED = 32
"""Number of validation rows, and of test rows."""


def recipe_of(case: Case, folder: Path, *overrides: str) -> Recipe:
    """The recipe of a case in fp32, bf16 or fp16 as the device allows, one epoch."""
    values = {
        "base": {"source": str(base(case, folder)), "dropout": 0.0}, "strategy": dict(case.strategy),
        "data": {**rows(case, folder), "deduplicate": "none"},
        "task": {"name": "causal_lm" if case.family == "llama" else "text_classification", "max_length": case.tokens},
        "train": {"epochs": 1, "batch_size": case.batch_size, "trackers": [], "feature_cache": "off"},
    }  # fmt: skip
    file = folder / f"{key(case)}.yaml"
    atomic.write_text(file, yaml.safe_dump(values))
    return recipes.load(str(file), list(overrides)).recipe


def key(case: Case) -> str:
    """A name for the files of a case."""
    return f"{case.family}-{case.model['hidden_size']}-{case.strategy['name']}-{case.tokens}"


def words(number: int, draw: random.Random) -> str:
    return " ".join("".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(number))


def rows(case: Case, folder: Path) -> dict[str, str]:
    """Split -> the file of its rows; a text classification's keyword decides the label."""
    found, tokenizer = {}, load_tokenizer(case.family, folder)
    for split, number in (("train", case.rows), ("validation", SCORED), ("test", SCORED)):
        found[split] = str((file := folder / f"{key(case)}-{split}.jsonl").absolute())
        if not file.exists():
            draw = random.Random(split)
            lines = [json.dumps(_row(case, draw, tokenizer)) + "\n" for _ in range(number)]
            atomic.write_text(file, "".join(lines))
    return found


def _row(case: Case, draw: random.Random, tokenizer: Any) -> dict[str, str]:
    wanted = case.tokens if case.family == "bert" else round(case.tokens * draw.uniform(0.1, 0.9)) + 8
    ids = tokenizer(words(wanted, draw), add_special_tokens=False)["input_ids"][: max(8, wanted - 8)]
    text = tokenizer.decode(ids)
    if case.family == "bert":
        label = draw.choice(LABELS)
        return {"text": f"{label} {text}", "label": label}
    parts = text.split()
    half = len(parts) // 2
    return {"prompt": " ".join(parts[:half]), "completion": " ".join(parts[half:])}


def load_tokenizer(family: str, folder: Path) -> Any:
    """A byte-pair tokenizer trained on invented words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = folder / f"{family}-tokenizer"
    if place.exists():
        return AutoTokenizer.from_pretrained(place)
    inner = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    draw = random.Random(0)
    texts = [*(words(200, draw) for _ in range(200)), " ".join(LABELS)]
    inner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2000, special_tokens=[*SPECIAL.values()]))
    if family == "bert":
        inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=8192, model_input_names=["input_ids", "attention_mask"], **SPECIAL
    )
    with atomic.new_folder(place) as part:
        made.save_pretrained(part)
    return made


def base(case: Case, folder: Path) -> Path:
    """The folder of a model with random weights, in bf16 to save time, and its tokenizer."""
    import torch
    import transformers

    place = (folder / f"{case.family}-{case.model['hidden_size']}").absolute()
    if place.exists():
        return place
    config = transformers.AutoConfig.for_model(
        case.family, vocab_size=VOCABULARY[case.family], max_position_embeddings=8192, pad_token_id=0, bos_token_id=2,
        eos_token_id=4, **case.model,
    )  # fmt: skip
    auto = transformers.AutoModelForCausalLM if case.family == "llama" else transformers.AutoModel
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = auto.from_config(config, dtype=torch.bfloat16)
    with atomic.new_folder(place) as part:
        model.save_pretrained(part)
        load_tokenizer(case.family, folder).save_pretrained(part)
    return place
