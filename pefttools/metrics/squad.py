"""Exact match and F1 of answers as in SQuAD's official script (Rajpurkar et al. 2016, 2018).

Case, punctuation, English articles and extra spaces are ignored. F1 compares the words of two answers; of several
references the best counts. The empty text, which means no answer, is correct if the reference has no answer, and scores
0 otherwise.

The official script is for English. In texts with characters of scripts without spaces (Chinese, Japanese, Thai …) each
of these characters is a word, and punctuation of every script is removed, as in the scripts of CMRC 2018 and MLQA. F1
is still SQuAD's, over words in any order; CMRC's is over the longest common substring.
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
    """`exact_match` and `f1`, fractions; if some rows have no answer, also both for the others, and
    `no_answer_accuracy`."""

    def _info(self) -> MetricInfo:
        text = datasets.Value("string")
        return MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions: texts; references: lists of texts; an empty text is no answer",
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
        )

    def _compute(  # type: ignore[override]
        self, predictions: list[str], references: list[list[str]]
    ) -> dict[str, float]:
        rows = [
            (_best(exact_match, prediction, reference), _best(f1, prediction, reference), any(map(words, reference)))
            for prediction, reference in zip(predictions, references, strict=True)
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
    """The normalised words of an answer, in order."""
    text = "".join(character for character in answer.lower() if character not in string.punctuation)
    text = ARTICLES.sub(" ", text)
    if ONE_CHARACTER_WORD.search(text):
        text = ONE_CHARACTER_WORD.sub(r" \g<0> ", PUNCTUATION.sub("", text))
    return text.split()


def exact_match(prediction: str, reference: str) -> float:
    return float(words(prediction) == words(reference))


def f1(prediction: str, reference: str) -> float:
    predicted, true = words(prediction), words(reference)
    if not predicted or not true:
        return float(predicted == true)
    shared = sum((Counter(predicted) & Counter(true)).values())
    return 2 * shared / (len(predicted) + len(true))


def _best(measure: Callable[[str, str], float], prediction: str, references: Sequence[str]) -> float:
    """The best score over the references that are not empty; compared with the empty text if all are."""
    return max(measure(prediction, reference) for reference in [r for r in references if words(r)] or [""])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
