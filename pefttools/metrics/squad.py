"""Exact match and F1 of answers as SQuAD's official script counts them (Rajpurkar et al. 2016, 2018).

Case, punctuation, the English articles and surplus spaces do not count. F1 is that of the words two answers share; of a
row's references the best counts. No answer, an empty text, is right where there is none and scores 0 elsewhere.

The official script is for English. In texts with characters of scripts without spaces (Chinese, Japanese, Thai …) each
of these characters is a word, and punctuation of every script goes, as in the scripts of CMRC 2018 and MLQA; F1 stays
SQuAD's, of words in any order, where CMRC's is of the longest common run.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import datasets
import regex
from evaluate import Metric, MetricInfo

from pefttools.metrics._text import UNSPACED

ARTICLES = re.compile(r"\b(a|an|the)\b")
ONE_CHARACTER_WORD = regex.compile(rf"[{UNSPACED}]")
PUNCTUATION = regex.compile(r"\p{P}")


class Squad(Metric):
    """`exact_match` and `f1`, fractions; where some rows have no answer, both for the rest and `no_answer_accuracy`."""

    def _info(self) -> MetricInfo:
        text = datasets.Value("string")
        return MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions: texts, empty for no answer; references: lists of texts, as well",
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
        )

    def _compute(  # type: ignore[override]
        self, predictions: list[str], references: list[list[str]]
    ) -> dict[str, float]:
        rows = [
            (_best(exact_match, said, right), _best(f1, said, right), any(map(words, right)))
            for said, right in zip(predictions, references, strict=True)
        ]
        values = {"exact_match": _mean([row[0] for row in rows]), "f1": _mean([row[1] for row in rows])}
        if all(answerable for *_, answerable in rows):
            return values
        if some := [row for row in rows if row[2]]:
            values |= {
                "exact_match_answerable": _mean([r[0] for r in some]),
                "f1_answerable": _mean([r[1] for r in some]),
            }
        return {**values, "no_answer_accuracy": _mean([row[0] for row in rows if not row[2]])}


def words(answer: str) -> list[str]:
    """What of an answer counts, in its order."""
    text = "".join(character for character in answer.lower() if character not in string.punctuation)
    text = ARTICLES.sub(" ", text)
    if ONE_CHARACTER_WORD.search(text):
        text = ONE_CHARACTER_WORD.sub(r" \g<0> ", PUNCTUATION.sub("", text))
    return text.split()


def exact_match(said: str, right: str) -> float:
    return float(words(said) == words(right))


def f1(said: str, right: str) -> float:
    ours, theirs = words(said), words(right)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def _best(measure: Callable[[str, str], float], said: str, references: Sequence[str]) -> float:
    """The best over the references that say something; against no answer where none does."""
    return max(measure(said, right) for right in [r for r in references if words(r)] or [""])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
