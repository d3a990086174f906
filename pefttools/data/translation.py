"""Sources and targets: documents of parts, texts by language, and tokenizers that mark languages with tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def sides(translation: Any, source_lang: str | None, target_lang: str | None) -> dict[str, Any]:
    """`source` and `target` of texts by language; the target may lack where nothing but the source is given.

    Raises:
        ValueError: it is no such mapping, or lacks one of the languages.
    """
    if not isinstance(translation, Mapping):
        raise ValueError(f"has a translation that is not a mapping of languages to texts: {translation!r}")
    if not source_lang or not target_lang:
        known = ", ".join(translation)
        raise ValueError(f"has a translation; set task.source_lang and task.target_lang to two of {known}")
    found = {}
    for side, lang in {"source": source_lang, "target": target_lang}.items():
        key = next((key for key in (lang, lang.partition("_")[0]) if key in translation), None)  # en of mBART's en_XX
        if key is not None:
            found[side] = translation[key]
        elif side == "source" or len(translation) > 1:
            raise ValueError(f"lacks task.{side}_lang: {unknown('language', lang, list(translation))}")
    return found


def languages(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Language code -> the token that marks it (mBART, M2M-100, NLLB); empty where the tokenizer marks none."""
    if not hasattr(tokenizer, "src_lang"):
        return {}
    if codes := getattr(tokenizer, "lang_code_to_id", None):
        return dict(codes)
    named: Any = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return {token: number for token, number in named if not token.startswith(("<", "["))}  # NLLB has no list of them


def set_languages(tokenizer: Any, source_lang: str | None, target_lang: str | None) -> int | None:
    """Tell a tokenizer which languages it reads and writes; the token every answer begins with, where there is one.

    Raises:
        UserError: it marks languages, and these are not among them.
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
    return codes.get(tokenizer.tgt_lang)  # a PLBart of one language has none


def joined(value: Any) -> Any:
    """A document of sentences or sections as one text; anything else as it is."""
    if isinstance(value, Mapping):
        return joined([*value.values()])
    if not isinstance(value, list):
        return value
    parts = [joined(part) for part in value]
    return " ".join(parts) if all(isinstance(part, str) for part in parts) else value


def shortened(
    tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, list[str]], limit: int
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of at most `limit`, the end token kept, and whether each text was cut."""
    call: Any = tokenizer
    whole = call(**texts, truncation=False, verbose=False)["input_ids"]
    cut = [len(ids) > limit for ids in whole]
    return call(**texts, truncation=True, max_length=limit)["input_ids"] if any(cut) else whole, cut
