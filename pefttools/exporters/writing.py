"""Artifacts that generate text: the files they need for it, and the check that plain transformers writes the same text.

Besides weights and tokenizer they contain the chat template of the training, as the tokenizer's template, and the
settings of generation (stop tokens, beams, forbidden tokens), as `generation_config.json`.
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
"""Upper limit of rows for which text is generated: those with the shortest prompts."""
NEW_TOKENS = 64
"""Upper limit of new tokens a row."""

Answer = dict[str, Any]
"""A generated `text`, the reason why it ended (`finish`) and its `num_tokens`."""


def tokenizer_of(task: Task, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer that is saved with a model of this task."""
    own: Any = copy.deepcopy(tokenizer)
    if (template := task.generation_settings(tokenizer).chat_template) is not None:
        own.chat_template = template
    decoding = task.decoding(own)  # sets the tokenizer's source and target language
    if decoding is not None and task.auto_class == "AutoModelForCausalLM":
        vocabulary.keep(own, "padding_side", "left")  # new tokens must follow the prompt directly, in a batch too
    for name in ("src_lang", "tgt_lang"):
        if getattr(own, name, None):
            own.init_kwargs[name] = getattr(own, name)
    return own


def settings_of(task: Task, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig | None:
    """The generation settings that are saved with a model of this task; None where it generates no text."""
    decoding = task.decoding(tokenizer)
    return None if decoding is None else _generation.config(model, tokenizer, decoding)


def text_settings(tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig | None) -> dict[str, Any]:
    """The chat template and generation settings that a loaded artifact must have."""
    if settings is None:
        return {}
    values = {name: value for name, value in settings.to_dict().items() if value is not None}
    values.pop("transformers_version", None)
    return {"chat_template": tokenizer.chat_template, "generation_config": values}


def shortest_rows(task: Task, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Row]:
    """The rows for which text is generated: the shortest ones whose prompt and new tokens fit into the model."""
    if (decoding := task.decoding(tokenizer)) is None:
        return []
    own = tokenizer_of(task, tokenizer)
    room = min(getattr(task, "max_length", tokenizer.model_max_length), tokenizer.model_max_length)
    room = max(1, room - min(NEW_TOKENS, decoding.max_new_tokens))
    found = []
    for row in sorted(rows, key=lambda row: len(str(task.generation_input(row))))[:ROWS]:
        (ids,) = task.prompts([row], own)
        if 0 < len(ids) <= room:
            found.append(row)
    return found


def trained_answers(
    model: nn.Module, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> list[Answer]:
    """The text that `predict` generates for each row, one at a time and greedily."""
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
    """The text that plain transformers generates for each row with the artifact's own template and settings."""
    found = []
    with exactness.in_float64(model):
        for row in rows:
            inputs = _inputs(task, row, tokenizer, bool(model.config.is_encoder_decoder))
            found.append(_plain_answer(model, inputs, tokenizer, settings))
    return found


def _inputs(task: Task, row: Row, tokenizer: Any, is_encoder_decoder: bool) -> Mapping[str, Any]:
    import torch

    source = task.generation_input(row)
    if "messages" in source:
        return tokenizer.apply_chat_template(
            source["messages"], tools=source.get("tools") or None, add_generation_prompt=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
    if is_encoder_decoder:
        return tokenizer(source["text"], return_tensors="pt")
    (ids,) = task.prompts([row], tokenizer)  # calling a tokenizer may append an end token to every text
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


def _plain_answer(
    model: Any, inputs: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig
) -> Answer:
    import torch

    model_inputs = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
    greedy = copy.deepcopy(settings)
    greedy.max_new_tokens = min(NEW_TOKENS, settings.max_new_tokens)
    greedy.update(do_sample=False, temperature=1.0, top_k=50, min_p=None)
    if greedy.min_new_tokens:
        greedy.min_new_tokens = min(greedy.min_new_tokens, greedy.max_new_tokens)
    with torch.inference_mode():
        written = model.generate(**model_inputs, generation_config=greedy)
    start = 1 if model.config.is_encoder_decoder else model_inputs["input_ids"].shape[1]
    decoding = _generation.Decoding(greedy.max_new_tokens)
    return _generation.answer(written[0, start:].tolist(), tokenizer, greedy, decoding)._asdict()


def differences(expected: Sequence[Answer], found: Sequence[Answer]) -> list[str]:
    """A problem for each text that plain transformers generates differently."""
    return [
        f"plain transformers generates {other['text'][:60]!r} ({other['num_tokens']} tokens, finish {other['finish']});"
        f" the trained model {one['text'][:60]!r} ({one['num_tokens']} tokens, finish {one['finish']})"
        for one, other in zip(expected, found, strict=True)
        if one != other
    ]
