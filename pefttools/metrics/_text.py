"""What the metrics over generated texts share: references, and which scripts are written without spaces."""

from collections.abc import Iterable, Sequence
from typing import Any

import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー々〆\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Inside a regular expression's brackets: characters of scripts that put no space between words."""

References = Sequence[str] | Sequence[Sequence[str]]


def several(references: References) -> list[list[str]]:
    """Every row's references as a list."""
    return [[row] if isinstance(row, str) else list(row) for row in references]


def streams(references: References) -> Any:
    """References as sacrebleu takes them: first ones, second ones and so on, None where a row has fewer."""
    rows = several(references)
    return [[row[i] if i < len(row) else None for row in rows] for i in range(max(map(len, rows), default=1))]


def bleu_tokenizer(texts: Iterable[str]) -> str:
    """sacrebleu's tokenizer for such texts: `13a` where spaces part words, `zh` for Chinese, `char` for the others.

    Its tokenizers of Japanese and Korean need packages of their own; Korean has spaces.
    """
    joined = "".join(texts)
    letters, unspaced, han = (
        len(regex.findall(pattern, joined)) for pattern in (r"\p{L}", rf"[{UNSPACED}]", r"\p{Han}")
    )
    if not unspaced or 3 * unspaced < letters:  # a foreign name in a text with spaces does not count
        return "13a"
    return "zh" if 10 * han > 9 * unspaced else "char"
