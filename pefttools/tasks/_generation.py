"""Text generation: batches through `model.generate`, for decoders and encoder-decoders alike.

The base model's start, end and forbidden tokens are used. Its other generation defaults (temperature, penalties, length
limits, beams) are overridden, so that two base models are compared under the same settings and the recipe alone
determines the decoding. An exported model carries the same settings (`config`) in its `generation_config.json`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pefttools.data.batching import batches
from pefttools.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import GenerationConfig, PreTrainedTokenizerBase

MAX_ROWS = 32
"""Sequences that are generated at once; each beam counts as one."""
BASE_TOKENS = (
    "bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids",
)  # fmt: skip
"""Generation settings that are taken from the base model: tokens to start with, to end with and never to generate."""
NEUTRAL: Mapping[str, Any] = {
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "early_stopping": False, "num_return_sequences": 1,
    "return_dict_in_generate": False,
}  # fmt: skip
"""transformers' own defaults for the settings that a base model could otherwise override."""


class Generated(NamedTuple):
    """One generated text."""

    text: str
    """The text without special tokens; its spaces are unchanged."""
    finish: Literal["stop", "length"]
    """`stop` when the model generated an end token, `length` when the text was cut at `max_new_tokens`."""
    num_tokens: int
    """Generated tokens, the end token included."""


@dataclass(frozen=True)
class Decoding:
    """How texts are generated."""

    max_new_tokens: int
    num_beams: int = 1
    temperature: float = 0.0
    """0 takes the likeliest token; above 0, tokens are sampled."""
    seed: int = 0
    """Seed of the sampling."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a text, besides the end tokens of the tokenizer and of the base model."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further values of transformers' GenerationConfig: length_penalty, no_repeat_ngram_size, forced_bos_token_id …"""


def generate(
    model: nn.Module, inputs: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, decoding: Decoding
) -> Iterator[tuple[int, Generated]]:
    """Yield (index, generated text) for every input; inputs of similar length share a batch.

    Args:
        model: a transformers model or peft's wrapper of one; its training mode is restored afterwards.
        inputs: token ids with special tokens: the whole prompt for a decoder, the source for an encoder-decoder. A
            decoder's prompt that is too long loses its beginning, an encoder's input loses its end.

    Raises:
        UserError: `max_new_tokens` leaves no room for a prompt in a decoder's context.
    """
    from pefttools.nn.sharding import without_gradients

    device = next(model.parameters()).device
    model_config: Any = model.config
    limit = tokenizer.model_max_length
    encoder_decoder = bool(model_config.is_encoder_decoder)
    if not encoder_decoder and decoding.max_new_tokens >= limit:
        raise UserError(
            f"task.max_new_tokens: {decoding.max_new_tokens} leaves no room for a prompt:"
            f" the model takes {limit} tokens in all; set a smaller number"
        )
    prompts = [list(ids[:limit] if encoder_decoder else ids[-(limit - decoding.max_new_tokens) :]) for ids in inputs]
    settings = config(model, tokenizer, decoding)
    lengths = [len(ids) + decoding.max_new_tokens for ids in prompts]
    # the cache holds keys and values of all tokens: the limit equals a quarter of the rows at 1024 tokens each
    limits = (max(1, MAX_ROWS // decoding.num_beams), 8 * 1024 // decoding.num_beams, 1)
    was_training = model.training
    model.eval()
    try:
        for rows in _batches(model, encoder_decoder, lengths, limits):
            ids, mask = _padded([prompts[row] for row in rows], settings.pad_token_id, left=not encoder_decoder)  # type: ignore[arg-type]
            with without_gradients(model), _seeded_sampling(decoding, rows[0]), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Position ids are not supported", category=UserWarning)
                generated: Any = model.generate(  # type: ignore[operator]
                    input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
                )
            for row, line in zip(rows, generated[:, 1 if encoder_decoder else ids.shape[1] :].tolist(), strict=True):
                yield row, answer(line, tokenizer, settings, decoding)
    finally:
        model.train(was_training)


def _batches(
    model: Any, encoder_decoder: bool, lengths: Sequence[int], limits: tuple[int, int, int]
) -> Iterator[list[int]]:
    """Yield the row numbers of every batch.

    peft puts virtual tokens before a decoder's padding, not before its text. Such a model gets batches of one length,
    which need no padding.
    """
    method = getattr(model, "active_peft_config", None)
    before_text = method is not None and method.is_prompt_learning and method.peft_type != "PREFIX_TUNING"
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(length if before_text and not encoder_decoder else 0, []).append(row)
    for rows in groups.values():
        yield from batches(rows, lengths, *limits)


def config(model: Any, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> GenerationConfig:
    """The settings for `model.generate`; every setting is given, because the base model's default would replace a
    missing one."""
    from transformers import GenerationConfig

    base = model.generation_config
    base_ends = base.eos_token_id if isinstance(base.eos_token_id, list) else [base.eos_token_id]
    ends = sorted({end for end in (tokenizer.eos_token_id, *base_ends, *decoding.stop_ids) if isinstance(end, int)})
    pad = tokenizer.pad_token_id
    samples = decoding.temperature > 0
    sampling = {"temperature": decoding.temperature, "top_k": 0, "min_p": 0.0} if samples else {}
    values = {
        **NEUTRAL,
        **sampling,
        "max_new_tokens": decoding.max_new_tokens,
        "num_beams": decoding.num_beams,
        "do_sample": samples,
        "use_cache": True,
        "eos_token_id": ends or None,
        "pad_token_id": pad if isinstance(pad, int) else min(ends, default=0),
        **{name: value for name in BASE_TOKENS if (value := getattr(base, name, None)) is not None},
        **decoding.more,
    }
    if decoding.num_beams == 1:
        values["length_penalty"] = 1.0  # with another value transformers refuses to write the file
    return GenerationConfig(**values)


def _padded(rows: Sequence[Sequence[int]], pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask; decoders are padded on the left, because generation continues at the right end."""
    import torch

    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    for line, marks, row in zip(ids, mask, rows, strict=True):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        line[place], marks[place] = torch.tensor(row), 1
    return ids, mask


@contextmanager
def _seeded_sampling(decoding: Decoding, first: int) -> Iterator[None]:
    """Make sampling depend only on the seed and the rows, and restore the global random state afterwards."""
    import torch

    with torch.random.fork_rng(enabled=decoding.temperature > 0):
        if decoding.temperature > 0:
            torch.manual_seed(decoding.seed + first)
        yield


def answer(
    line: list[int], tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig, decoding: Decoding
) -> Generated:
    """The generated text up to its first end token."""
    ends = settings.eos_token_id or []
    place = next((i for i, token in enumerate(line) if token in ends), None)
    # BART forces an end token at the last position: that is a cut, not an end that the model chose
    forced = settings.forced_eos_token_id is not None and place == decoding.max_new_tokens - 1
    text = tokenizer.decode(line[:place], skip_special_tokens=True)
    assert isinstance(text, str)
    finish = "stop" if place is not None and not forced else "length"
    return Generated(text, finish, len(line) if place is None else place + 1)
