"""Tiny checkpoints of many architectures on disk, each with a tokenizer of its kind.

`write(folder, "gpt2")` writes one. `changes` to its configuration and an `edit` of its tokenizer make unusual ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from conftest import KEYS, WORDS

from pefttools.bases.loading import Base
from pefttools.compatibility import tiny_models

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
"""The first five tokens of every tokenizer."""
_SIZES = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_PLAIN = {
    **_SIZES, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 48,
}  # fmt: skip
_LLAMA = {**_PLAIN, "num_key_value_heads": 2, "head_dim": 8}
_GPT2 = {**_SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}
_SIDES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 64}.items()
}
_BART = {
    **_SIZES, **_SIDES, "d_model": 32, "max_position_embeddings": 48, "decoder_start_token_id": 3,
    "forced_eos_token_id": None,
}  # fmt: skip
_T5 = {
    **_SIZES, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8, "decoder_start_token_id": 0,
}  # fmt: skip
_XLM = {**_SIZES, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 48, "pad_index": 0}

ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "bert": _PLAIN,
    "roberta": _PLAIN,
    "xlm-roberta": _PLAIN,
    "camembert": _PLAIN,
    "data2vec-text": _PLAIN,
    "ibert": _PLAIN,
    "mpnet": _PLAIN,
    "longformer": {**_PLAIN, "attention_window": 8, "sep_token_id": 3},
    "esm": {**_PLAIN, "mask_token_id": 4},
    "luke": {**_PLAIN, "entity_vocab_size": 5, "entity_emb_size": 8},
    "albert": {**_PLAIN, "embedding_size": 16},
    "distilbert": {
        **_SIZES, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 48,
    },
    "electra": {**_PLAIN, "embedding_size": 16},
    "deberta": {**_PLAIN, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {**_PLAIN, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "modernbert": {
        **_PLAIN, "global_attn_every_n_layers": 2, "local_attention": 16, "cls_token_id": 2, "sep_token_id": 3,
    },
    "funnel": {
        **_SIZES, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1],
        "num_decoder_layers": 1, "architectures": ["FunnelModel"],
    },
    "fnet": _PLAIN,
    "xlm": _XLM,
    "flaubert": _XLM,
    "xlnet": {**_SIZES, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
}  # fmt: skip
DECODERS: Mapping[str, Mapping[str, Any]] = {
    "llama": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
    "phi": _LLAMA,
    "gpt2": _GPT2,
    "openai-gpt": _GPT2,
    "gpt_neo": {
        **_SIZES, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 48, "window_size": 8,
    },
    "gpt_neox": _PLAIN,
    "opt": {**_PLAIN, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {**_SIZES, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**_SIZES, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mpt": {**_SIZES, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 48, "expansion_ratio": 2},
    "biogpt": _PLAIN,
    "ctrl": {**_SIZES, "n_embd": 32, "dff": 64, "n_layer": 2, "n_head": 4, "n_positions": 48},
}  # fmt: skip
ENCODER_DECODERS: Mapping[str, Mapping[str, Any]] = {
    "bart": _BART,
    "mbart": _BART,
    "t5": _T5,
    "mt5": _T5,
    "pegasus": _BART,
    "marian": _BART,
}
KINDS: Mapping[str, Mapping[str, Any]] = {**ENCODERS, **DECODERS, **ENCODER_DECODERS}
"""`model_type` -> its tiny configuration."""


def tokenizer(kind: str) -> Any:
    """One token a word, with the special tokens of the kind: `<s> … </s>`, `… </s>`, or none; no maximum length."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *WORDS, *(word for group in KEYS.values() for word in group)]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    marks = [("<s>", 2), ("</s>", 3)]
    frames = {"single": "<s> $A </s>", "pair": "<s> $A </s> </s> $B </s>"}
    if kind in ENCODER_DECODERS:
        frames = {name: frame.removeprefix("<s> ") for name, frame in frames.items()}
    if kind not in DECODERS:
        inner.post_processor = processors.TemplateProcessing(**frames, special_tokens=marks)  # type: ignore[assignment]
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if kind in ENCODERS:
        names |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=["input_ids", "attention_mask"], **names)


def write(folder: Path, kind: str, edit: Callable[[Any], Any] | None = None, /, **changes: Any) -> Path:
    """A headless checkpoint of that architecture whose every weight looks trained.

    Args:
        edit: changes the tokenizer before it is saved.
        changes: values of the configuration that differ from `KINDS`; None removes one.
    """
    model = _model(kind, tuple(sorted(changes.items())))
    model.save_pretrained(folder)
    made = tokenizer(kind)
    if edit:
        edit(made)
    made.save_pretrained(folder)
    return folder


@cache
def _model(kind: str, changes: tuple[tuple[str, Any], ...]) -> Any:
    import torch
    import transformers

    values = {**KINDS[kind], **dict(changes)}
    config = transformers.AutoConfig.for_model(kind, **{name: v for name, v in values.items() if v is not None})
    for name, value in changes:
        if value is None:
            setattr(config, name, None)
    torch.manual_seed(0)
    return tiny_models.jittered(transformers.AutoModel.from_config(config))


def load_classifier(folder: Path) -> Base:
    """A checkpoint with a new head for three classes, the same in every call."""
    import torch

    from pefttools.bases.loading import BaseSettings
    from pefttools.tasks.text_classification import TextClassification

    torch.manual_seed(0)
    return TextClassification(labels=("a", "b", "c")).load(BaseSettings(source=str(folder), dropout=0.0))


def tied_language_model(folder: Path) -> Path:
    """A tiny llama for text generation with tied embeddings."""
    import torch
    import transformers
    from conftest import make_tokenizer

    words = make_tokenizer()
    words.eos_token = "[SEP]"
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=80, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
