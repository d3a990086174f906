"""Shared code of metrics of generated texts: forms of references, and scripts without spaces."""

from collections.abc import Iterable, Sequence
from typing import Any

import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー々〆\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""For the brackets of a regular expression: characters of scripts without spaces between words."""

References = Sequence[str] | Sequence[Sequence[str]]


def several(references: References) -> list[list[str]]:
    """Every row's references as a list."""
    return [[row] if isinstance(row, str) else list(row) for row in references]


def streams(references: References) -> Any:
    """References in sacrebleu's form: all first references, all second ones, and so on; None for rows with fewer."""
    rows = several(references)
    return [[row[i] if i < len(row) else None for row in rows] for i in range(max(map(len, rows), default=1))]


def bleu_tokenizer(texts: Iterable[str]) -> str:
    """sacrebleu's tokenizer for the texts: `13a` for scripts with spaces, `zh` for Chinese, `char` for other scripts
    without.

    sacrebleu's tokenizers for Japanese and Korean need further packages; Korean has spaces, so `13a` is used.
    """
    joined = "".join(texts)
    letters, unspaced, han = (
        len(regex.findall(pattern, joined)) for pattern in (r"\p{L}", rf"[{UNSPACED}]", r"\p{Han}")
    )
    if not unspaced or 3 * unspaced < letters:  # ignores foreign names in texts with spaces
        return "13a"
    return "zh" if 10 * han > 9 * unspaced else "char"
