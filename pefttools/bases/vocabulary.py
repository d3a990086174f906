"""Consistency of a tokenizer and a model: padding token, model inputs, and an embedding for every token.

Decoders that classify read the last token that is not `config.pad_token_id`. If the tokenizer pads with another token,
predictions depend on the length of the other texts in the batch. Therefore the tokenizer's padding token is written
into the configuration, which artifacts save, and a padding token is chosen with which no text ends.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError
from pefttools.nn import positions

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

ADDED_PADDING = "[PAD]"
"""The padding token that is added to a tokenizer without special tokens."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")


def mend_padding_id(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set an unusable padding token in the configuration to the tokenizer's, before the model is built."""
    pad, rows = tokenizer.pad_token_id, config.get_text_config().vocab_size
    if not isinstance(config.pad_token_id, int) or not 0 <= config.pad_token_id < rows:
        config.pad_token_id = pad if isinstance(pad, int) and pad < rows else None


def agree(model: Any, tokenizer: Any, source: str, classifies: bool) -> None:
    """Make a tokenizer and a model agree on padding and inputs.

    Args:
        classifies: whether the model classifies texts, perhaps by their last token.

    Raises:
        UserError: the tokenizer has no token that can be used for padding.
    """
    rows = num_rows(model)
    if tokenizer.pad_token is None or (tokenizer.pad_token_id >= rows and _padding(tokenizer, rows, classifies)):
        tokenizer.pad_token = _padding(tokenizer, rows, classifies)
    if tokenizer.pad_token is None and classifies:
        tokenizer.add_special_tokens({"pad_token": ADDED_PADDING})
    if tokenizer.pad_token is None:
        raise UserError(
            f"base: the tokenizer of {source} has no special tokens, so texts can be neither ended nor padded; add an"
            ' end token with tokenizer.add_special_tokens({"eos_token": "</s>"}) and save the tokenizer'
        )
    if not positions.count_from_padding(model):
        for config in _configs(model.config):
            config.pad_token_id = tokenizer.pad_token_id
    if classifies:
        keep(tokenizer, "padding_side", "left" if reads_last_place(model) else "right")
    keep(tokenizer, "model_input_names", _inputs(model, tokenizer))


def num_rows(model: Any) -> int:
    """Number of input embeddings; unlimited where characters are hashed (CANINE)."""
    weight = getattr(model.get_input_embeddings(), "weight", None)
    return positions.ENDLESS if weight is None else len(weight)


def keep(tokenizer: Any, name: str, value: Any) -> None:
    """Set an attribute of a tokenizer so that it is saved with it."""
    setattr(tokenizer, name, value)
    tokenizer.init_kwargs[name] = value


def reads_last_place(model: Any) -> bool:
    """Whether the head reads the last position even if it is padding (XLNet), so that padding must come first."""
    summaries = [m for m in model.modules() if hasattr(m, "summary_type")]
    return any(summary.summary_type == "last" for summary in summaries)


def _configs(config: Any) -> list[Any]:
    """A configuration and its inner ones, as far as they have a padding token."""
    inner = [getattr(config, name, None) for name in ("encoder", "decoder")]
    found = [config, config.get_text_config(), *inner]
    return [one for one in found if hasattr(one, "pad_token_id")]


def _padding(tokenizer: Any, rows: int, classifies: bool) -> str | None:
    """A token for padding with which no text ends; None where there is none."""
    ending = appended(tokenizer)
    named = [tokenizer.eos_token, tokenizer.bos_token, tokenizer.sep_token, tokenizer.cls_token]
    if ending is not None or not classifies:  # otherwise a text may end with an unknown word
        named.append(tokenizer.unk_token)
    if not classifies and tokenizer.eos_token is not None:
        ending = None  # padding is masked in the loss, and generation usually pads with the end token
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in named if token is not None}
    return next((token for token, number in ids.items() if number != ending and number < rows), None)


def appended(tokenizer: Any) -> int | None:
    """The id of the token that the tokenizer appends to every text; None where it appends none."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    ends_alike = not whole or (bool(bare) and whole[-1] == bare[-1])
    return None if ends_alike else whole[-1]


def _inputs(model: Any, tokenizer: Any) -> list[str]:
    """The tokenizer's outputs: those that the model accepts, and the attention mask wherever it accepts one."""
    taken = inspect.signature(model.forward).parameters
    config = model.config
    names = [name for name in tokenizer.model_input_names if name not in INPUTS or name in taken]
    if "attention_mask" in taken and "attention_mask" not in names:
        names.append("attention_mask")
    if "token_type_ids" in names and getattr(config, "type_vocab_size", None) == 1:
        names.remove("token_type_ids")  # there is only one type, which the model uses by default
    return names


def beyond(model: nn.Module, tokenizer: Any, source: str, classifies: bool) -> list[int]:
    """Ids of tokens that occur in texts but have no embedding in the model, in order.

    Special tokens that never occur (an image token in a text model) need no embedding.

    Raises:
        UserError: the tokenizer belongs to another model; or the model generates text, and needs trained embeddings.
    """
    rows = num_rows(model)
    tokens = _above(tokenizer, rows)
    if not tokens:
        return []
    if len(tokens) > rows // 2:
        raise UserError(
            f"base: the tokenizer of {source} has {rows + len(tokens)} tokens, but the model has {rows} embeddings; the"
            " tokenizer seems to belong to another model. Put the model's own tokenizer into its folder"
        )
    if not classifies:
        named = {str(getattr(tokenizer, name)) for name in NAMES}
        used = _used(tokenizer, tokens, named, str(tokenizer.chat_template or ""))
        if used:
            raise UserError(
                f"base: the tokenizer of {source} has the token ids up to {max(tokens)}, but the model has {rows}"
                f" embeddings; tokens without one: {', '.join(tokens[i] for i in used[:3])}"
                f"{f' and {len(used) - 3} more' if len(used) > 3 else ''}. Call"
                f" model.resize_token_embeddings({max(tokens) + 1}), save the model with its tokenizer, and use that"
                " folder as the base; the new embeddings are untrained"
            )
        return []
    return _used(tokenizer, tokens, {str(tokenizer.pad_token)}, "")


def _above(tokenizer: Any, rows: int) -> dict[int, str]:
    """Id -> token, for the tokenizer's ids from `rows` on."""
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if number >= rows}
    if tokenizer.vocab_size > rows:  # tokens of the original vocabulary are affected too
        added |= {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    return dict(sorted(added.items()))


def _used(tokenizer: Any, tokens: Mapping[int, str], named: Iterable[str], spelled: str) -> list[int]:
    """The ids of tokens that occur: words, `named` ones, those in the template `spelled`, those around every text."""
    around = {*tokenizer("a")["input_ids"], *tokenizer("a", "a")["input_ids"]}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [
        number
        for number, token in tokens.items()
        if number not in special or number in around or token in named or token in spelled
    ]
