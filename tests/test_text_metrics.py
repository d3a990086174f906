"""ROUGE, BLEU and chrF: equal to rouge-score and sacrebleu, and usable for scripts that those ignore."""

from __future__ import annotations

from typing import Any

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer, tokenizers

from pefttools.metrics import combined, metrics, rouge
from pefttools.metrics._text import bleu_tokenizer

PREDICTIONS = ["the cat sat on the mat", "hello there general", "", "It's 10% of GDP, isn't it?"]
REFERENCES = ["the cat is on the mat", "hello there", "nothing was said", "It is 10 % of the GDP."]


def scored(name: str, predictions: Any, references: Any, **settings: Any) -> Any:
    return metrics.get(name)(keep_in_memory=True).compute(predictions=predictions, references=references, **settings)


def test_metrics_by_hand():
    values = combined("rouge", "bleu", "chrf").compute(predictions=PREDICTIONS[:2], references=REFERENCES[:2])
    # 5 of 6 and 2 of 3 or 2 words shared; 3 of 5 and 1 of 2 or 1 pairs
    assert (
        values
        == pytest.approx(
            {
                "rouge1": (5 / 6 + 4 / 5) / 2,
                "rouge2": (3 / 5 + 2 / 3) / 2,
                "rouge_l": (5 / 6 + 4 / 5) / 2,
                "bleu": (7 / 9 * 4 / 7 * 1 / 5 * 1 / (2 * 3)) ** 0.25,  # the last one smoothed: nothing shared
                "chrf": sacrebleu.corpus_chrf(PREDICTIONS[:2], [REFERENCES[:2]]).score / 100,
            }
        )
    )


def test_metrics_equal_the_libraries():
    values: Any = combined("rouge", "bleu", "chrf").compute(predictions=PREDICTIONS, references=REFERENCES)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    rows = [scorer.score(r, p) for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    for theirs, ours in rouge.NAMES.items():
        assert values[ours] == pytest.approx(sum(row[theirs].fmeasure for row in rows) / 4, abs=1e-12)
    assert values["bleu"] == sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score / 100
    assert values["chrf"] == sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES]).score / 100


def test_rows_may_have_different_numbers_of_references():
    references = [["a dog", "the cat is on the mat"], ["hello there"], ["nothing"], ["It is", "it", "It's 10% of GDP"]]
    scorer = rouge_scorer.RougeScorer(["rouge2"])
    best = [scorer.score_multi(r, p)["rouge2"].fmeasure for p, r in zip(PREDICTIONS, references, strict=True)]
    assert scored("rouge", PREDICTIONS, references)["rouge2"] == pytest.approx(sum(best) / 4)
    streams = [[r[0] for r in references], [r[1] if len(r) > 1 else None for r in references]]
    streams.append([r[2] if len(r) > 2 else None for r in references])
    assert scored("bleu", PREDICTIONS, references) == {"bleu": sacrebleu.corpus_bleu(PREDICTIONS, streams).score / 100}
    assert scored("chrf", PREDICTIONS, references) == {"chrf": sacrebleu.corpus_chrf(PREDICTIONS, streams).score / 100}
    assert scored("bleu", ["hello there"] * 2, [["hello there"]] * 2) == scored(
        "bleu", ["hello there"] * 2, ["hello there"] * 2
    )


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_words_equal_those_of_rouge_score(text):
    assert rouge.Tokenizer().tokenize(text) == tokenizers.DefaultTokenizer().tokenize(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我们有3个ABC", ["我", "们", "有", "3", "个", "abc"]),
        ("Le Café d’été", ["le", "café", "d", "été"]),
        ("cafe\u0301", ["café"]),  # a letter and its accent apart
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs are marks, not letters
        ("ストーブ", ["ス", "ト", "ー", "ブ"]),
        ("안녕 하세요", ["안녕", "하세요"]),
        ("Straße_ПЯТЬ", ["straße", "пять"]),
    ],
)
def test_words_of_other_scripts(text, words):
    assert rouge.Tokenizer().tokenize(text) == words


def test_chinese_is_compared_by_characters():
    predictions, references = ["我喜欢吃苹果"], ["我喜欢吃香蕉"]
    assert scored("rouge", predictions, references) == pytest.approx(
        {"rouge1": 4 / 6, "rouge2": 3 / 5, "rouge_l": 4 / 6}
    )
    assert scored("bleu", predictions, references) == {
        "bleu": sacrebleu.corpus_bleu(predictions, [references], tokenize="zh").score / 100
    }
    assert scored("bleu", predictions, references)["bleu"] == pytest.approx((4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert scored("bleu", predictions, references, tokenizer="13a") == {"bleu": 0.0}


@pytest.mark.parametrize(
    ("text", "tokenizer"),
    [
        ("He met 王小明 in the city of Beijing.", "13a"),
        ("他在北京见到了 Mary。", "zh"),
        ("彼は東京でメアリーに会いました。", "char"),
        ("เขาพบกับแมรี่ที่กรุงเทพ", "char"),
        ("그는 서울에서 메리를 만났다.", "13a"),
        ("1 + 1 = 2", "13a"),
        ("", "13a"),
    ],
)
def test_bleu_tokenizer_by_script(text, tokenizer):
    assert bleu_tokenizer([text]) == tokenizer


def test_tokenized_texts_cause_no_warning(caplog):
    texts = ["a cat sat on the mat ."] * 120
    assert scored("bleu", texts, texts) == {"bleu": pytest.approx(1)}
    assert not caplog.records
