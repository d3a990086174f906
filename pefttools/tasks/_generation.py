"""Answers in text: batches through `model.generate`, for decoders and encoder-decoders alike.

The base's own start, end and forbidden tokens are kept; its habits (temperature, penalties, length limits, beams)
are not, so two bases are asked alike and a run says in its recipe how it was decoded. An exported model carries the
same settings (`config`) as its `generation_config.json`.
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
"""Answers, beams counted, that are written at once."""
KEPT = (
    "bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids",
)  # fmt: skip
"""What of the base's own generation settings is kept: tokens to start with, to end with and never to write."""
NEUTRAL: Mapping[str, Any] = {
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "early_stopping": False, "num_return_sequences": 1,
    "return_dict_in_generate": False,
}  # fmt: skip
"""The library's own values of what would otherwise be the base's habits."""


class Generated(NamedTuple):
    """One answer."""

    text: str
    """Without special tokens; its spaces as they were written."""
    finish: Literal["stop", "length"]
    """Whether it ended by itself or was cut at `max_new_tokens`."""
    num_tokens: int
    """Tokens that were written, the end counted."""


@dataclass(frozen=True)
class Decoding:
    """How answers are written."""

    max_new_tokens: int
    num_beams: int = 1
    temperature: float = 0.0
    """0 takes the likeliest token; above, tokens are drawn."""
    seed: int = 0
    """Of what is drawn."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer, beside the tokenizer's and the base's own end of text."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further values of transformers' GenerationConfig: length_penalty, no_repeat_ngram_size, forced_bos_token_id …"""


def generate(
    model: nn.Module, inputs: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, decoding: Decoding
) -> Iterator[tuple[int, Generated]]:
    """(index, answer) of every input, batch by batch, those of like length together.

    Args:
        model: a transformers model or peft's wrapper of one; left in the mode it was in.
        inputs: token ids, special tokens included: the whole prompt of a decoder, what an encoder reads of others.
            A decoder's prompt that leaves no room for the answer loses its beginning; an encoder's loses its end.

    Raises:
        UserError: `max_new_tokens` leaves a decoder no room for any prompt.
    """
    import torch

    device = next(model.parameters()).device
    about: Any = model.config
    limit = tokenizer.model_max_length
    two_sided = bool(about.is_encoder_decoder)
    if not two_sided and decoding.max_new_tokens >= limit:
        raise UserError(
            f"task.max_new_tokens: {decoding.max_new_tokens} leaves no room for a prompt:"
            f" the model takes {limit} tokens"
        )
    prompts = [list(ids[:limit] if two_sided else ids[-(limit - decoding.max_new_tokens) :]) for ids in inputs]
    settings = config(model, tokenizer, decoding)
    lengths = [len(ids) + decoding.max_new_tokens for ids in prompts]
    # the keys and values of what was read and written are kept: as many tokens as a quarter of the rows at 1024 each
    limits = (max(1, MAX_ROWS // decoding.num_beams), 8 * 1024 // decoding.num_beams, 1)
    was_training = model.training
    model.eval()
    try:
        for rows in _alike(model, two_sided, lengths, limits):
            ids, mask = _padded([prompts[row] for row in rows], settings.pad_token_id, left=not two_sided)  # type: ignore[arg-type]
            with torch.inference_mode(), _drawing(decoding, rows[0]), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Position ids are not supported", category=UserWarning)
                written: Any = model.generate(  # type: ignore[operator]
                    input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
                )
            for row, line in zip(rows, written[:, 1 if two_sided else ids.shape[1] :].tolist(), strict=True):
                yield row, answer(line, tokenizer, settings, decoding)
    finally:
        model.train(was_training)


def _alike(model: Any, two_sided: bool, lengths: Sequence[int], limits: tuple[int, int, int]) -> Iterator[list[int]]:
    """The rows of every batch.

    peft puts virtual tokens before a decoder's padding, not before its text: such a model gets no padding at all.
    """
    method = getattr(model, "active_peft_config", None)
    before_text = method is not None and method.is_prompt_learning and method.peft_type != "PREFIX_TUNING"
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(length if before_text and not two_sided else 0, []).append(row)
    for rows in groups.values():
        yield from batches(rows, lengths, *limits)


def config(model: Any, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> GenerationConfig:
    """What `generate` is given; every habit is named, since what is left out would be the base's."""
    from transformers import GenerationConfig

    base = model.generation_config
    named = base.eos_token_id if isinstance(base.eos_token_id, list) else [base.eos_token_id]
    ends = sorted({end for end in (tokenizer.eos_token_id, *named, *decoding.stop_ids) if isinstance(end, int)})
    pad = tokenizer.pad_token_id
    drawn = decoding.temperature > 0
    habits = {"temperature": decoding.temperature, "top_k": 0, "min_p": 0.0} if drawn else {}
    values = {
        **NEUTRAL,
        **habits,
        "max_new_tokens": decoding.max_new_tokens,
        "num_beams": decoding.num_beams,
        "do_sample": drawn,
        "use_cache": True,
        "eos_token_id": ends or None,
        "pad_token_id": pad if isinstance(pad, int) else min(ends, default=0),
        **{name: value for name in KEPT if (value := getattr(base, name, None)) is not None},
        **decoding.more,
    }
    if decoding.num_beams == 1:
        values["length_penalty"] = 1.0  # the library writes no file where it is another
    return GenerationConfig(**values)


def _padded(rows: Sequence[Sequence[int]], pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask; a decoder goes on from the right end, so it is padded on the left."""
    import torch

    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    for line, marks, row in zip(ids, mask, rows, strict=True):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        line[place], marks[place] = torch.tensor(row), 1
    return ids, mask


@contextmanager
def _drawing(decoding: Decoding, first: int) -> Iterator[None]:
    """Drawing that depends on the seed and the rows alone, and leaves the process's own random state as it was."""
    import torch

    with torch.random.fork_rng(enabled=decoding.temperature > 0):
        if decoding.temperature > 0:
            torch.manual_seed(decoding.seed + first)
        yield


def answer(
    line: list[int], tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig, decoding: Decoding
) -> Generated:
    """What was written, read up to the first token that ends it."""
    ends = settings.eos_token_id or []
    place = next((i for i, token in enumerate(line) if token in ends), None)
    # an end that is forced on the last token (BART) is no end the model found
    forced = settings.forced_eos_token_id is not None and place == decoding.max_new_tokens - 1
    text = tokenizer.decode(line[:place], skip_special_tokens=True)
    assert isinstance(text, str)
    finish = "stop" if place is not None and not forced else "length"
    return Generated(text, finish, len(line) if place is None else place + 1)
