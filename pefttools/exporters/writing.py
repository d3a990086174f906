"""What an artifact that writes text carries for it, and the proof that plain transformers writes the same with it.

Besides weights and tokenizer that is the chat template that was trained with, as the tokenizer's own, and the settings
of generation (tokens that end an answer, beams, forbidden tokens), as `generation_config.json`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttools.bases import vocabulary
from pefttools.data.splitting import Row
from pefttools.exporters import exactness
from pefttools.tasks import _generation

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from pefttools.tasks.base import Task

ROWS = 4
"""Rows that are answered in text, at most: those that ask the shortest."""
NEW_TOKENS = 32
"""Tokens of each of these answers, at most."""

Answer = dict[str, Any]
"""The `text` of an answer, how it came to its `finish`, and its `num_tokens`."""


def tokenizer_of(task: Task, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer that is written beside a model of this task."""
    own: Any = copy.deepcopy(tokenizer)
    if (template := task.generation_settings(tokenizer).chat_template) is not None:
        own.chat_template = template
    decoding = task.decoding(own)  # sets the languages that it reads and writes
    if decoding is not None and task.auto_class == "AutoModelForCausalLM":
        vocabulary.keep(own, "padding_side", "left")  # an answer goes on where its prompt ends, in a batch too
    for name in ("src_lang", "tgt_lang"):
        if getattr(own, name, None):
            own.init_kwargs[name] = getattr(own, name)
    return own


def settings_of(task: Task, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig | None:
    """The generation settings that are written beside a model of this task; None where it writes no text."""
    decoding = task.decoding(tokenizer)
    return None if decoding is None else _generation.config(model, tokenizer, decoding)


def carried(tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig | None) -> dict[str, Any]:
    """What must come back from an artifact's files."""
    if settings is None:
        return {}
    values = {name: value for name, value in settings.to_dict().items() if value is not None}
    values.pop("transformers_version", None)
    return {"chat_template": tokenizer.chat_template, "generation_config": values}


def short(task: Task, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Row]:
    """The rows that are answered in text: the shortest that fit whole into the model, an answer with them."""
    if (decoding := task.decoding(tokenizer)) is None:
        return []
    own = tokenizer_of(task, tokenizer)
    room = min(getattr(task, "max_length", tokenizer.model_max_length), tokenizer.model_max_length)
    room = max(1, room - min(NEW_TOKENS, decoding.max_new_tokens))
    found = []
    for row in sorted(rows, key=lambda row: len(str(task.asked(row))))[:ROWS]:
        (ids,) = task.prompts([row], own)
        if 0 < len(ids) <= room:
            found.append(row)
    return found


def trained_answers(
    model: nn.Module, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> list[Answer]:
    """What `predict` makes of each row alone, by the likeliest tokens."""
    import dataclasses

    if not rows:
        return []
    decoding = task.decoding(tokenizer)
    assert decoding is not None
    tokens = min(NEW_TOKENS, decoding.max_new_tokens)
    more = {name: min(value, tokens) if name == "min_new_tokens" else value for name, value in decoding.more.items()}
    greedy = dataclasses.replace(decoding, max_new_tokens=tokens, temperature=0.0, more=more)
    found = []
    with exactness.in_float64(model):
        for ids in task.prompts(rows, tokenizer):
            ((_, answer),) = _generation.generate(model, [ids], tokenizer, greedy)
            found.append(answer._asdict())
    return found


def plain_answers(
    model: Any, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig
) -> list[Answer]:
    """What plain transformers makes of the same with an artifact's own template and settings."""
    found = []
    with exactness.in_float64(model):
        for row in rows:
            inputs = _inputs(task, row, tokenizer, bool(model.config.is_encoder_decoder))
            found.append(_plain_answer(model, inputs, tokenizer, settings))
    return found


def _inputs(task: Task, row: Row, tokenizer: Any, two_sided: bool) -> Mapping[str, Any]:
    import torch

    asked = task.asked(row)
    if "messages" in asked:
        return tokenizer.apply_chat_template(
            asked["messages"], tools=asked.get("tools") or None, add_generation_prompt=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
    if two_sided:
        return tokenizer(asked["text"], return_tensors="pt")
    (ids,) = task.prompts([row], tokenizer)  # a tokenizer may put an end behind every text
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


def _plain_answer(
    model: Any, inputs: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig
) -> Answer:
    import torch

    given = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
    greedy = copy.deepcopy(settings)
    greedy.max_new_tokens = min(NEW_TOKENS, settings.max_new_tokens)
    greedy.update(do_sample=False, temperature=1.0, top_k=50, min_p=None)
    if greedy.min_new_tokens:
        greedy.min_new_tokens = min(greedy.min_new_tokens, greedy.max_new_tokens)
    with torch.inference_mode():
        written = model.generate(**given, generation_config=greedy)
    start = 1 if model.config.is_encoder_decoder else given["input_ids"].shape[1]
    decoding = _generation.Decoding(greedy.max_new_tokens)
    return _generation.answer(written[0, start:].tolist(), tokenizer, greedy, decoding)._asdict()


def differences(expected: Sequence[Answer], found: Sequence[Answer]) -> list[str]:
    """A problem for each answer that plain transformers writes otherwise."""
    return [
        f"plain transformers answers {other['text'][:60]!r} and ends by {other['finish']} after {other['num_tokens']}"
        f" tokens; the trained model {one['text'][:60]!r}, by {one['finish']} after {one['num_tokens']}"
        for one, other in zip(expected, found, strict=True)
        if one != other
    ]
