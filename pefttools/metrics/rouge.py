"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), F-measures by rouge-score; with several references, the best counts.

The library's tokenizer drops every character that is not an ASCII letter or digit, so Chinese has no score and "café"
becomes "caf". Our tokenizer keeps words of every script, and splits scripts without spaces into characters. For ASCII
texts the numbers equal the library's.
"""

import unicodedata
from typing import ClassVar

import regex

from pefttools.metrics._text import UNSPACED, References, several
from pefttools.metrics.base import TextMetric

TOKEN = regex.compile(rf"[{UNSPACED}]\p{{M}}*|(?:(?![{UNSPACED}])[\p{{L}}\p{{N}}\p{{M}}])+")
NAMES = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rouge_l"}
"""The library's names and ours."""


class Tokenizer:
    """Splits a text into lower-case words, and into characters for scripts without spaces."""

    def tokenize(self, text: str) -> list[str]:
        return TOKEN.findall(unicodedata.normalize("NFKC", text.lower()))


class Rouge(TextMetric):
    """`rouge1`, `rouge2`, `rouge_l`: fractions, means over rows."""

    modules: ClassVar[tuple[str, ...]] = ("rouge_score",)

    def _compute(self, predictions: list[str], references: References) -> dict[str, float]:  # type: ignore[override]
        from rouge_score import rouge_scorer

        scorer = rouge_scorer.RougeScorer(list(NAMES), tokenizer=Tokenizer())
        rows = [scorer.score_multi(r, p) for p, r in zip(predictions, several(references), strict=True)]
        return {ours: float(sum(row[name].fmeasure for row in rows) / len(rows)) for name, ours in NAMES.items()}
