"""Sources and targets of seq2seq: documents in parts, mappings of languages to texts, and tokenizers with language
tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def sides(translation: Any, source_lang: str | None, target_lang: str | None) -> dict[str, Any]:
    """`source` and `target` from a mapping of languages to texts; without `target` if the source is its only text.

    Raises:
        ValueError: the value is not a mapping, or lacks one of the languages.
    """
    if not isinstance(translation, Mapping):
        raise ValueError(f"has a translation that is not a mapping of languages to texts: {translation!r}")
    if not source_lang or not target_lang:
        known = ", ".join(translation)
        raise ValueError(f"has a translation; set task.source_lang and task.target_lang to two of {known}")
    found = {}
    for side, lang in {"source": source_lang, "target": target_lang}.items():
        key = next((key for key in (lang, lang.partition("_")[0]) if key in translation), None)  # en for mBART's en_XX
        if key is not None:
            found[side] = translation[key]
        elif side == "source" or len(translation) > 1:
            raise ValueError(f"lacks task.{side}_lang: {unknown('language', lang, list(translation))}")
    return found


def languages(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Language code -> id of its token (mBART, M2M-100, NLLB); empty for tokenizers without language tokens."""
    if not hasattr(tokenizer, "src_lang"):
        return {}
    if codes := getattr(tokenizer, "lang_code_to_id", None):
        return dict(codes)
    named: Any = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return {
        token: number for token, number in named if not token.startswith(("<", "["))
    }  # NLLB has no mapping of codes


def set_languages(tokenizer: Any, source_lang: str | None, target_lang: str | None) -> int | None:
    """Set a tokenizer's languages; returns the token that every answer starts with, or None.

    Raises:
        UserError: the tokenizer has language tokens, but not for these languages.
    """
    codes = languages(tokenizer)
    if not codes:
        return None
    wanted = {"source": source_lang, "target": target_lang}
    problems = [
        f"task.{side}_lang: {unknown('language', lang, sorted(codes))}"
        for side, lang in wanted.items()
        if lang and lang not in codes
    ]
    if problems:
        raise UserError(*problems)
    if source_lang:
        tokenizer.src_lang = source_lang
    tokenizer.tgt_lang = target_lang or tokenizer.src_lang
    return codes.get(tokenizer.tgt_lang)  # a PLBart model of one language has none


def joined(value: Any) -> Any:
    """A document of sentences or sections joined to one text; any other value unchanged."""
    if isinstance(value, Mapping):
        return joined([*value.values()])
    if not isinstance(value, list):
        return value
    parts = [joined(part) for part in value]
    return " ".join(parts) if all(isinstance(part, str) for part in parts) else value


def shortened(
    tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, list[str]], limit: int
) -> tuple[list[list[int]], list[bool]]:
    """Token ids truncated to `limit` with the end token kept, and whether each text was truncated."""
    call: Any = tokenizer
    whole = call(**texts, truncation=False, verbose=False)["input_ids"]
    cut = [len(ids) > limit for ids in whole]
    return call(**texts, truncation=True, max_length=limit)["input_ids"] if any(cut) else whole, cut
