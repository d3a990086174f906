"""Translation and summarisation: reading rows, encoding, loss, metrics and remarks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import make_tokenizer

from pefttools.bases.loading import BaseSettings
from pefttools.data.splitting import Splits
from pefttools.errors import UserError
from pefttools.settings import check
from pefttools.tasks.seq2seq import Seq2Seq

PAIR = {"en": "a dog", "de": "Hund"}


def make_model(seed: int = 0) -> Any:
    """A BART of one layer a side, with a language-modelling head."""
    import transformers

    halves = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}
    values = {f"{half}_{n}": size for half in ("encoder", "decoder") for n, size in halves.items()}
    torch.manual_seed(seed)
    return transformers.AutoModelForSeq2SeqLM.from_config(
        transformers.AutoConfig.for_model(
            "bart", **values, d_model=32, max_position_embeddings=80, pad_token_id=0, vocab_size=54, bos_token_id=2,
            eos_token_id=3, decoder_start_token_id=3, forced_eos_token_id=None, dropout=0.0, init_std=0.1,
        )
    ).eval()  # fmt: skip


def some_rows() -> list[dict[str, str]]:
    return [
        {"source": "word1 word2 word3 word4 word5", "target": "word1"},
        {"source": "word6", "target": "word7 word8 word9"},
        {"source": "word2 word3", "target": "apple pear"},
    ]


def splits_of(rows: list[dict[str, str]]) -> Splits:
    return Splits(rows, rows[:1], rows[:1])


# rows


@pytest.mark.parametrize(
    ("settings", "values", "row"),
    [
        ({}, {"source": " a dog ", "target": "Hund", "id": 7}, {"source": " a dog ", "target": "Hund", "id": "7"}),
        ({}, {"text": "a dog"}, {"source": "a dog"}),
        ({}, {"source": {"a": ["a", "dog"], "b": "sits"}, "target": ["x"]}, {"source": "a dog sits", "target": "x"}),
        ({}, {"text": "a comment", "source": "a dog"}, {"source": "a dog"}),
        ({"source_lang": "de", "target_lang": "en"}, {"translation": PAIR}, {"source": "Hund", "target": "a dog"}),
        ({"source_lang": "de_DE", "target_lang": "en_X"}, {"translation": PAIR}, {"source": "Hund", "target": "a dog"}),
        ({"source_lang": "de", "target_lang": "en"}, {"translation": {"de": "Hund"}}, {"source": "Hund"}),
    ],
)  # fmt: skip
def test_rows_are_read_from_every_notation(settings, values, row):
    assert Seq2Seq(**settings).read(values) == row


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        ({}, {"source": "  ", "target": "x"}, "has no source"),
        ({}, {"source": True}, "has a source that is not text: True"),
        ({}, {"source": ["a", 7]}, "has a source that is not text: ['a', 7]"),
        ({}, {"source": []}, "has no source"),
        ({}, {"target": "x"}, "has no source; name its column in data.columns.source"),
        ({}, {"source": "x", "target": ""}, "has no target"),
        ({}, {"source": "x", "target": None}, "has no target"),
        ({}, {"source": "half \ud83d", "target": "x"}, "has half a character (a lone surrogate) in its source"),
        (
            {},
            {"translation": PAIR},
            "has a translation; set task.source_lang and task.target_lang to two of en, de",
        ),
        ({}, {"translation": "x"}, "has a translation that is not a mapping of languages to texts: 'x'"),
        (
            {"source_lang": "en", "target_lang": "dee"},
            {"translation": PAIR},
            "lacks task.target_lang: unknown language 'dee'; did you mean 'de'? Known: en, de",
        ),
    ],
)  # fmt: skip
def test_invalid_rows_are_refused(settings, values, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Seq2Seq(**settings).read(values)
    assert str(caught.value) == message


def test_fit_requires_targets_and_chooses_the_bleu_tokenizer():
    rows = some_rows()
    with pytest.raises(UserError, match=r"^data.train: 1 of 3 rows have no target; name its column in data"):
        Seq2Seq().fit(Splits([*rows[:2], {"source": "x"}], rows[:1], []))
    with pytest.raises(UserError, match=r"^data.test: 1 of 1 rows have no target"):
        Seq2Seq().check_scorable("data.test", [{"source": "x"}])
    assert Seq2Seq().fit(splits_of(rows)).bleu_tokenizer == "13a"
    chinese = [{"source": "a dog", "target": "一只狗"}]
    assert Seq2Seq().fit(splits_of(chinese)).bleu_tokenizer == "zh"
    assert Seq2Seq(bleu_tokenizer="char").fit(splits_of(chinese)).bleu_tokenizer == "char"


def test_contradictory_settings_are_refused():
    _, problems = check(Seq2Seq, {"min_new_tokens": 9, "max_target_length": 8}, "task")
    assert problems == ["task: min_new_tokens is 9, above the maximum of 8 tokens, got " + repr({
        "min_new_tokens": 9, "max_target_length": 8})]  # fmt: skip
    _, problems = check(Seq2Seq, {"metric": "rogue"}, "task")
    assert problems == ["task.metric: 'rogue' is not allowed; did you mean 'rouge'? Allowed: bleu, rouge, both"]


# encoding


def test_encoding_adds_prefix_and_end_tokens(tokenizer):
    encoded = Seq2Seq(prefix="word9 ").encode(some_rows(), tokenizer)
    assert [tokenizer.decode(ids) for ids in encoded["input_ids"][1:]] == [
        "[CLS] word9 word6 [SEP]",
        "[CLS] word9 word2 word3 [SEP]",
    ]
    assert [tokenizer.decode(ids) for ids in encoded["labels"][1:]] == [
        "[CLS] word7 word8 word9 [SEP]",
        "[CLS] apple pear [SEP]",
    ]
    assert encoded["num_targets"] == [3, 5, 4]
    assert encoded["length"] == [8 + 3, 4 + 5, 5 + 4]
    assert encoded["cut"] == [False] * 3


def test_truncated_sources_and_targets_are_marked_and_keep_their_end(tokenizer):
    encoded = Seq2Seq(max_length=5, max_target_length=4).encode(some_rows(), tokenizer)
    assert [len(ids) for ids in encoded["input_ids"]] == [5, 3, 4]
    assert [len(ids) for ids in encoded["labels"]] == [3, 4, 4]
    assert encoded["cut"] == [True, True, False]
    assert {ids[-1] for name in ("input_ids", "labels") for ids in encoded[name]} == {tokenizer.sep_token_id}


def test_rows_without_targets_have_no_labels(tokenizer):
    encoded = Seq2Seq().encode([{"source": "word1"}], tokenizer)
    assert encoded == {"input_ids": [[2, 6, 3]], "num_targets": [0], "cut": [False]}


def test_sources_and_targets_are_padded_separately(tokenizer):
    task = Seq2Seq()
    batch = task.collate(task.encode(some_rows(), tokenizer), tokenizer, 4)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 8)
    assert batch["labels"].shape == (3, 8)
    assert (batch["labels"] != -100).sum(1).tolist() == [3, 5, 4]
    assert batch["labels"][0].tolist() == [2, 6, 3, *[-100] * 5]
    alone = task.collate(task.encode(some_rows()[:1], tokenizer), tokenizer, 4)
    assert alone["labels"].shape == (1, 4)  # its source is padded to 8
    assert {*task.inputs_of(batch)} == {"input_ids", "attention_mask", "labels"}


def test_longest_rows_for_planning(tokenizer):
    task = Seq2Seq(max_length=24, max_target_length=8)
    assert task.longest(10**9) == 32
    assert task.longest(16) == 16 + 8
    row = {name: column[0] for name, column in task.encode(some_rows(), tokenizer).items()}
    full = task.repeat_to_length(row, 32)
    assert (len(full["input_ids"]), len(full["labels"]), full["length"]) == (24, 8, 32)
    assert len(task.repeat_to_length(row, 8)["labels"]) == 2


# losses


def test_loss_equals_that_of_the_model(tokenizer):
    task, model = Seq2Seq(), make_model()
    encoded = task.encode(some_rows(), tokenizer)
    batch = task.collate(encoded, tokenizer, 8)
    with torch.inference_mode():
        outputs = model(**task.inputs_of(batch))
    loss = task.loss(outputs, batch)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(outputs.loss.item() * 12, rel=1e-6)
    predictions = task.predict(outputs, batch)
    assert [p["num_targets"] for p in predictions] == encoded["num_targets"] == [3, 5, 4]
    assert sum(p["nll"] for p in predictions) == pytest.approx(loss.item(), rel=1e-6)
    assert task.metrics(predictions, ["x"] * 3) == pytest.approx({"perplexity": math.exp(outputs.loss.item())})


def test_loss_independent_of_batch(tokenizer):
    task, model = Seq2Seq(), make_model()

    def losses(rows):
        batch = task.collate(task.encode(rows, tokenizer), tokenizer, 8)
        with torch.inference_mode():
            return [p["nll"] for p in task.predict(model(**task.inputs_of(batch)), batch)]

    assert losses(some_rows()) == pytest.approx([losses([row])[0] for row in some_rows()], abs=1e-5)


def test_virtual_tokens_are_not_targets(tokenizer):
    task = Seq2Seq()
    batch = task.collate(task.encode(some_rows(), tokenizer), tokenizer, 8)
    with torch.inference_mode():
        outputs = make_model()(**task.inputs_of(batch))
        loss = task.loss(outputs, batch)
        outputs.logits = torch.nn.functional.pad(outputs.logits, (0, 0, 5, 0), value=7.0)
        assert torch.equal(task.loss(outputs, batch), loss)


# metrics, remarks and refusals


def test_metrics_of_generated_and_scored_rows():
    task = Seq2Seq()
    scored = [{"nll": 2.0, "num_targets": 3}, {"nll": 4.0, "num_targets": 3}, {"nll": 0.0, "num_targets": 2}]
    generated = [
        {"prediction": "the cat sat on the mat", "finish": "stop"},
        {"prediction": "hello", "finish": "length"},
    ]
    predictions = [{**a, **b} for a, b in zip(scored, generated, strict=False)] + scored[2:]
    references = ["the cat is on the mat", "hello there", "not generated"]
    values = task.metrics(predictions, references)
    assert {*values} == {"perplexity", "bleu", "chrf", "rouge1", "rouge2", "rouge_l", "stopped"}
    assert values["perplexity"] == pytest.approx(math.exp(6 / 8))
    assert values["rouge1"] == pytest.approx((5 / 6 + 2 / 3) / 2)
    assert values["stopped"] == 0.5
    assert {*Seq2Seq(metric="bleu").metrics(predictions, references)} == {"perplexity", "bleu", "chrf", "stopped"}
    assert {*Seq2Seq(metric="rouge").metrics(predictions, references)} & {"bleu", "chrf"} == set()
    assert {*task.metrics(scored, references)} == {"perplexity"}
    assert task.metrics([{"nll": 1e9, "num_targets": 1}], [""])["perplexity"] > 1e300
    assert (task.num_generated(1000), task.num_generated(3), Seq2Seq(generate_rows=0).num_generated(9)) == (64, 3, 0)
    assert task.lower_is_better


def test_chinese_targets_are_scored_by_characters():
    task = Seq2Seq().fit(splits_of([{"source": "I like apples", "target": "我喜欢吃苹果"}]))
    values = task.metrics([{"prediction": "我喜欢吃苹果", "finish": "stop"}], ["我喜欢吃香蕉"])
    assert values["bleu"] == pytest.approx((4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert values["rouge1"] == pytest.approx(4 / 6)


def test_unknown_tokens_and_missing_end_tokens_are_remarked(tokenizer):
    rows = some_rows()
    assert Seq2Seq().remarks(splits_of(rows), tokenizer) == []
    unknown = [{"source": "word1", "target": "never heard word1"}]
    assert Seq2Seq().remarks(splits_of(unknown), tokenizer) == [
        "40.0% of the targets' tokens are unknown to the tokenizer; no answer can contain them"
    ]
    endless = make_tokenizer()
    endless.backend_tokenizer.post_processor = None
    assert Seq2Seq().remarks(splits_of(rows), endless) == [
        "the tokenizer adds no end token to targets, so answers run to task.max_new_tokens"
    ]


def test_an_encoder_is_refused(bases):
    with pytest.raises(UserError, match="transformers has no AutoModelForSeq2SeqLM for models of the type 'bert'"):
        Seq2Seq().load(BaseSettings(source=str(bases("bert"))))
