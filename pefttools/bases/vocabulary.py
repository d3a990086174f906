"""What a tokenizer and a model must agree on: padding, the inputs that there are, and rows for every token.

Decoders that classify read the last token that is not `config.pad_token_id`. Where that is another token than the
tokenizer pads with, an answer depends on how long the other texts of its batch are. So the tokenizer's is put into the
configuration, which artifacts store, and a padding token is chosen that no text ends with.
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
"""The padding token of a tokenizer without any token of control."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")


def mend_padding_id(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a configuration without a usable padding token the tokenizer's, before a model is built of it."""
    pad, rows = tokenizer.pad_token_id, config.get_text_config().vocab_size
    if not isinstance(config.pad_token_id, int) or not 0 <= config.pad_token_id < rows:
        config.pad_token_id = pad if isinstance(pad, int) and pad < rows else None


def agree(model: Any, tokenizer: Any, source: str, classifies: bool) -> None:
    """Make a tokenizer and a model agree on padding and inputs.

    Args:
        classifies: whether the model's head reads texts, so that it matters which token is the last.

    Raises:
        UserError: the tokenizer has nothing to pad with.
    """
    rows = num_rows(model)
    if tokenizer.pad_token is None or (tokenizer.pad_token_id >= rows and _padding(tokenizer, rows, classifies)):
        tokenizer.pad_token = _padding(tokenizer, rows, classifies)
    if tokenizer.pad_token is None and classifies:
        tokenizer.add_special_tokens({"pad_token": ADDED_PADDING})
    if tokenizer.pad_token is None:
        raise UserError(
            f"base: the tokenizer of {source} has no special tokens, so there is no token to end or pad texts"
            ' with; add one: tokenizer.add_special_tokens({"eos_token": "</s>"})'
        )
    if not positions.count_from_padding(model):
        for config in _configs(model.config):
            config.pad_token_id = tokenizer.pad_token_id
    if classifies:
        keep(tokenizer, "padding_side", "left" if reads_last_place(model) else "right")
    keep(tokenizer, "model_input_names", _inputs(model, tokenizer))


def num_rows(model: Any) -> int:
    """Rows of the table of tokens; without end where characters are hashed into one (CANINE)."""
    weight = getattr(model.get_input_embeddings(), "weight", None)
    return positions.ENDLESS if weight is None else len(weight)


def keep(tokenizer: Any, name: str, value: Any) -> None:
    """Set a tokenizer's attribute so that it is saved, too."""
    setattr(tokenizer, name, value)
    tokenizer.init_kwargs[name] = value


def reads_last_place(model: Any) -> bool:
    """Whether a head takes what is at the last place, be it padding (XLNet): then padding must come first."""
    summaries = [m for m in model.modules() if hasattr(m, "summary_type")]
    return any(summary.summary_type == "last" for summary in summaries)


def _configs(config: Any) -> list[Any]:
    """A configuration and those inside it that have a padding token."""
    inner = [getattr(config, name, None) for name in ("encoder", "decoder")]
    found = [config, config.get_text_config(), *inner]
    return [one for one in found if hasattr(one, "pad_token_id")]


def _padding(tokenizer: Any, rows: int, classifies: bool) -> str | None:
    """A token to pad with that no text ends with."""
    ending = appended(tokenizer)
    named = [tokenizer.eos_token, tokenizer.bos_token, tokenizer.sep_token, tokenizer.cls_token]
    if ending is not None or not classifies:  # else a text may end with an unknown word
        named.append(tokenizer.unk_token)
    if not classifies and tokenizer.eos_token is not None:
        ending = None  # what is learnt is masked, and generation pads with the end of text by custom
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in named if token is not None}
    return next((token for token, number in ids.items() if number != ending and number < rows), None)


def appended(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts behind every text; None where it puts none."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    ends_alike = not whole or (bool(bare) and whole[-1] == bare[-1])
    return None if ends_alike else whole[-1]


def _inputs(model: Any, tokenizer: Any) -> list[str]:
    """What the tokenizer must make: the attention mask where the model takes one, and nothing that it does not take."""
    taken = inspect.signature(model.forward).parameters
    config = model.config
    names = [name for name in tokenizer.model_input_names if name not in INPUTS or name in taken]
    if "attention_mask" in taken and "attention_mask" not in names:
        names.append("attention_mask")
    if "token_type_ids" in names and getattr(config, "type_vocab_size", None) == 1:
        names.remove("token_type_ids")  # one kind of token, which models of this kind take when none is given
    return names


def beyond(model: nn.Module, tokenizer: Any, source: str, classifies: bool) -> list[int]:
    """Ids of tokens that texts may hold and the model's table has no row for, in order.

    Special tokens that no text and no frame can hold (an image's, in a model of text) need none.

    Raises:
        UserError: the tokenizer is another model's; or the model writes, and cannot write these.
    """
    rows = num_rows(model)
    tokens = _above(tokenizer, rows)
    if not tokens:
        return []
    if len(tokens) > rows // 2:
        raise UserError(
            f"base: the tokenizer of {source} has {rows + len(tokens)} tokens and the model's table {rows} rows:"
            " it is the tokenizer of another model"
        )
    if not classifies:
        named = {str(getattr(tokenizer, name)) for name in NAMES}
        used = _used(tokenizer, tokens, named, str(tokenizer.chat_template or ""))
        if used:
            raise UserError(
                f"base: the tokenizer of {source} has tokens beyond the {rows} rows of the model's table"
                f" ({', '.join(tokens[i] for i in used[:3])}), and a language model must have learnt to write them;"
                " add rows with model.resize_token_embeddings(len(tokenizer)) and save the model, or take the tokens"
                " out of the tokenizer"
            )
        return []
    return _used(tokenizer, tokens, {str(tokenizer.pad_token)}, "")


def _above(tokenizer: Any, rows: int) -> dict[int, str]:
    """Id -> token, of those from `rows` on."""
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if number >= rows}
    if tokenizer.vocab_size > rows:  # not only tokens that were added later
        added |= {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    return dict(sorted(added.items()))


def _used(tokenizer: Any, tokens: Mapping[int, str], named: Iterable[str], spelled: str) -> list[int]:
    """Those of the tokens that are words of texts, named, spelled in a template or put around every text."""
    around = {*tokenizer("a")["input_ids"], *tokenizer("a", "a")["input_ids"]}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [
        number
        for number, token in tokens.items()
        if number not in special or number in around or token in named or token in spelled
    ]
