"""Translation and summarisation: rows read, losses that are the model's own, answers generated, metrics."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
import torch
import yaml
from conftest import WORDS, make_tokenizer, train_tiny

from pefttools.data import translation
from pefttools.data.splitting import Splits
from pefttools.errors import UserError
from pefttools.models import BaseSettings, prepare_libraries
from pefttools.settings import check
from pefttools.tasks.seq2seq import Seq2Seq
from pefttools.use import predict_rows

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


def copies(number: int, words: int = 3) -> list[dict[str, str]]:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS[:8], k=words)) for _ in range(number)]
    return [{"source": text, "target": text} for text in texts]


def some_rows() -> list[dict[str, str]]:
    return [
        {"source": "word1 word2 word3 word4 word5", "target": "word1"},
        {"source": "word6", "target": "word7 word8 word9"},
        {"source": "word2 word3", "target": "apple pear"},
    ]


def splits_of(rows: list[dict[str, str]]) -> Splits:
    return Splits(rows, rows[:1], rows[:1])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def copier(tokenizer) -> Any:
    """A model that has learnt to copy three words, by the task's own batches and losses."""
    task, model, rows = Seq2Seq(max_length=16, max_target_length=8), make_model().train(), copies(300)
    encoded, draw = task.encode_training(rows, tokenizer), random.Random(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(50):
        picked = draw.sample(range(len(rows)), 32)
        batch = task.collate_training({n: [c[i] for i in picked] for n, c in encoded.items()}, tokenizer, 4)
        loss = task.loss(model(**task.inputs_of(batch)), batch) / sum(encoded["num_targets"][i] for i in picked)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 3.5
    assert losses[-1] < 0.1
    return model.eval()


# rows


@pytest.mark.parametrize(
    ("settings", "values", "row"),
    [
        ({}, {"source": " a dog ", "target": "Hund", "id": 7}, {"source": "a dog", "target": "Hund", "id": "7"}),
        ({}, {"text": "a dog"}, {"source": "a dog"}),
        ({}, {"source": {"a": ["a", "dog"], "b": "sits"}, "target": ["x"]}, {"source": "a dog sits", "target": "x"}),
        ({}, {"text": "a comment", "source": "a dog"}, {"source": "a dog"}),
        ({"source_lang": "de", "target_lang": "en"}, {"translation": PAIR}, {"source": "Hund", "target": "a dog"}),
        ({"source_lang": "de_DE", "target_lang": "en_X"}, {"translation": PAIR}, {"source": "Hund", "target": "a dog"}),
        ({"source_lang": "de", "target_lang": "en"}, {"translation": {"de": "Hund"}}, {"source": "Hund"}),
    ],
)  # fmt: skip
def test_rows(settings, values, row):
    assert Seq2Seq(**settings).read(values) == row


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        ({}, {"source": "  ", "target": "x"}, "has no source"),
        ({}, {"source": 7}, "has a source that is no text: 7"),
        ({}, {"source": ["a", 7]}, "has a source that is no text: ['a', 7]"),
        ({}, {"source": []}, "has no source"),
        ({}, {"target": "x"}, "has no source; data.columns.source names the column that holds it"),
        ({}, {"source": "x", "target": ""}, "has no target"),
        ({}, {"source": "x", "target": None}, "has no target"),
        ({}, {"source": "half \ud83d", "target": "x"}, "has half a character (a lone surrogate) in its source"),
        (
            {},
            {"translation": PAIR},
            "has a translation; task.source_lang and task.target_lang must say which way, of en, de",
        ),
        ({}, {"translation": "x"}, "has a translation that is no mapping of languages to texts: 'x'"),
        (
            {"source_lang": "en", "target_lang": "dee"},
            {"translation": PAIR},
            "lacks task.target_lang: unknown language 'dee'; did you mean 'de'? Known: en, de",
        ),
    ],
)  # fmt: skip
def test_rows_that_are_refused(settings, values, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Seq2Seq(**settings).read(values)
    assert str(caught.value) == message


def test_training_rows_need_targets_and_say_how_bleu_finds_words():
    rows = some_rows()
    with pytest.raises(UserError, match=r"^data.train: 1 of 3 rows have no target; data.columns.target names"):
        Seq2Seq().fit(Splits([*rows[:2], {"source": "x"}], rows[:1], []))
    with pytest.raises(UserError, match=r"^data.test: 1 of 1 rows have no target"):
        Seq2Seq().refuse_strange("data.test", [{"source": "x"}])
    assert Seq2Seq().fit(splits_of(rows)).bleu_tokenizer == "13a"
    chinese = [{"source": "a dog", "target": "一只狗"}]
    assert Seq2Seq().fit(splits_of(chinese)).bleu_tokenizer == "zh"
    assert Seq2Seq(bleu_tokenizer="char").fit(splits_of(chinese)).bleu_tokenizer == "char"


def test_settings_that_contradict():
    _, problems = check(Seq2Seq, {"min_new_tokens": 9, "max_target_length": 8}, "task")
    assert problems == ["task: min_new_tokens is 9, more than the 8 an answer may have, got " + repr({
        "min_new_tokens": 9, "max_target_length": 8})]  # fmt: skip
    _, problems = check(Seq2Seq, {"metric": "rogue"}, "task")
    assert problems == ["task.metric: 'rogue' is not allowed; did you mean 'rouge'? Allowed: bleu, rouge, both"]


# encoding


def test_encoded_rows(tokenizer):
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


def test_long_sources_and_long_targets_are_cut_and_counted_and_keep_their_end(tokenizer):
    encoded = Seq2Seq(max_length=5, max_target_length=4).encode(some_rows(), tokenizer)
    assert [len(ids) for ids in encoded["input_ids"]] == [5, 3, 4]
    assert [len(ids) for ids in encoded["labels"]] == [3, 4, 4]
    assert encoded["cut"] == [True, True, False]
    assert {ids[-1] for name in ("input_ids", "labels") for ids in encoded[name]} == {tokenizer.sep_token_id}


def test_rows_without_targets_have_none(tokenizer):
    encoded = Seq2Seq().encode([{"source": "word1"}], tokenizer)
    assert encoded == {"input_ids": [[2, 6, 3]], "num_targets": [0], "cut": [False]}


def test_batches_pad_sources_and_targets_apart(tokenizer):
    task = Seq2Seq()
    batch = task.collate(task.encode(some_rows(), tokenizer), tokenizer, 4)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 8)
    assert batch["labels"].shape == (3, 8)
    assert (batch["labels"] != -100).sum(1).tolist() == [3, 5, 4]
    assert batch["labels"][0].tolist() == [2, 6, 3, *[-100] * 5]
    alone = task.collate(task.encode(some_rows()[:1], tokenizer), tokenizer, 4)
    assert alone["labels"].shape == (1, 4)  # its source has 8
    assert {*task.inputs_of(batch)} == {"input_ids", "attention_mask", "labels"}


def test_sizes_for_planning(tokenizer):
    task = Seq2Seq(max_length=24, max_target_length=8)
    assert task.longest(10**9) == 32
    assert task.longest(16) == 16 + 8
    row = {name: column[0] for name, column in task.encode(some_rows(), tokenizer).items()}
    full = task.stretched(row, 32)
    assert (len(full["input_ids"]), len(full["labels"]), full["length"]) == (24, 8, 32)
    assert len(task.stretched(row, 8)["labels"]) == 2


# losses


def test_the_loss_is_the_models_own(tokenizer):
    task, model = Seq2Seq(), make_model()
    encoded = task.encode(some_rows(), tokenizer)
    batch = task.collate(encoded, tokenizer, 8)
    with torch.inference_mode():
        outputs = model(**task.inputs_of(batch))
    loss = task.loss(outputs, batch)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(outputs.loss.item() * 12, rel=1e-6)
    said = task.predict(outputs, batch)
    assert [p["num_targets"] for p in said] == encoded["num_targets"] == [3, 5, 4]
    assert sum(p["nll"] for p in said) == pytest.approx(loss.item(), rel=1e-6)
    assert task.metrics(said, ["x"] * 3) == pytest.approx({"perplexity": math.exp(outputs.loss.item())})


def test_a_row_has_the_same_loss_alone(tokenizer):
    task, model = Seq2Seq(), make_model()

    def losses(rows):
        batch = task.collate(task.encode(rows, tokenizer), tokenizer, 8)
        with torch.inference_mode():
            return [p["nll"] for p in task.predict(model(**task.inputs_of(batch)), batch)]

    assert losses(some_rows()) == pytest.approx([losses([row])[0] for row in some_rows()], abs=1e-5)


def test_virtual_tokens_before_the_target_are_no_targets(tokenizer):
    task = Seq2Seq()
    batch = task.collate(task.encode(some_rows(), tokenizer), tokenizer, 8)
    with torch.inference_mode():
        outputs = make_model()(**task.inputs_of(batch))
        loss = task.loss(outputs, batch)
        outputs.logits = torch.nn.functional.pad(outputs.logits, (0, 0, 5, 0), value=7.0)
        assert torch.equal(task.loss(outputs, batch), loss)


def test_peft_trains_it(tokenizer):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    prepare_libraries()  # peft reads a deprecated name
    task, rows = Seq2Seq(max_length=16, max_target_length=8), copies(32)
    for config in (
        LoraConfig(task_type=task.peft_type, target_modules=["q_proj", "v_proj"], r=4),
        PromptTuningConfig(task_type=task.peft_type, num_virtual_tokens=3),
    ):
        model = get_peft_model(make_model(), config)
        batch = task.collate(task.encode(rows, tokenizer), tokenizer, 4)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-2)
        losses = []
        for _ in range(12):
            loss = task.loss(model(**task.inputs_of(batch)), batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] * 0.99
        assert [index for index, _ in sorted(task.generate(model, rows[:2], tokenizer))] == [0, 1]


# generation


@pytest.mark.parametrize("beams", [1, 4])
def test_learns_to_copy_and_stops_by_itself(copier, tokenizer, beams):
    rows = copies(340)[300:]
    said = dict(Seq2Seq(max_length=16, max_target_length=8, num_beams=beams).generate(copier, rows, tokenizer))
    assert {*said} == {*range(40)}
    right = [said[i] == {"prediction": row["target"], "finish": "stop"} for i, row in enumerate(rows)]
    assert sum(right) >= 38
    wide = Seq2Seq(max_length=16, num_beams=beams, max_new_tokens=1000)  # no more than the model has positions for
    assert dict(wide.generate(copier, rows, tokenizer)) == said


def test_limits_of_answers(copier, tokenizer):
    rows = copies(304)[300:]

    def answers(**settings):
        return [p for _, p in sorted(Seq2Seq(**settings).generate(copier, rows, tokenizer))]

    short = answers(max_new_tokens=3)
    assert [p["prediction"] for p in short] == [
        " ".join(row["source"].split()[:2]) for row in rows
    ]  # [CLS] is the first
    assert {p["finish"] for p in short} == {"length"}
    assert answers(max_target_length=3) == short
    long = answers(max_new_tokens=9, min_new_tokens=8)
    assert all(len(p["prediction"].split()) > 3 for p in long)
    once = answers(max_new_tokens=20, min_new_tokens=12, no_repeat_ngram_size=1)
    assert all(len({*p["prediction"].split()}) == len(p["prediction"].split()) > 6 for p in once)
    lengths = [
        sum(len(p["prediction"].split()) for p in answers(max_new_tokens=12, num_beams=4, length_penalty=penalty))
        for penalty in (-20.0, 20.0)
    ]
    assert lengths[0] < lengths[1]


def test_the_prefix_goes_before_what_is_generated_from(copier, tokenizer):
    task = Seq2Seq(prefix="word7 ", max_new_tokens=8)
    prefixed = dict(task.generate(copier, [{"source": "word1 word2"}], tokenizer))
    assert prefixed == dict(Seq2Seq(max_new_tokens=8).generate(copier, [{"source": "word7 word1 word2"}], tokenizer))
    assert prefixed[0]["prediction"] == "word7 word1 word2"


# metrics


def test_metrics_of_generated_and_scored_rows():
    task = Seq2Seq()
    scored = [{"nll": 2.0, "num_targets": 3}, {"nll": 4.0, "num_targets": 3}, {"nll": 0.0, "num_targets": 2}]
    said = [{"prediction": "the cat sat on the mat", "finish": "stop"}, {"prediction": "hello", "finish": "length"}]
    predictions = [{**a, **b} for a, b in zip(scored, said, strict=False)] + scored[2:]
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
    assert task.is_better(2.0, 3.0)


def test_chinese_targets_are_scored_by_characters():
    task = Seq2Seq().fit(splits_of([{"source": "I like apples", "target": "我喜欢吃苹果"}]))
    values = task.metrics([{"prediction": "我喜欢吃苹果", "finish": "stop"}], ["我喜欢吃香蕉"])
    assert values["bleu"] == pytest.approx((4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert values["rouge1"] == pytest.approx(4 / 6)


# remarks and languages


def test_remarks(tokenizer):
    rows = some_rows()
    assert Seq2Seq().remarks(splits_of(rows), tokenizer) == []
    unknown = [{"source": "word1", "target": "never heard word1"}]
    assert Seq2Seq().remarks(splits_of(unknown), tokenizer) == [
        "40.0% of the targets' tokens are unknown to the tokenizer; the model cannot write them"
    ]
    endless = make_tokenizer()
    endless.backend_tokenizer.post_processor = None
    assert Seq2Seq().remarks(splits_of(rows), endless) == [
        "the tokenizer ends no target with an end token, so answers will not end by themselves"
    ]


def multilingual(kind: str) -> Any:
    import transformers

    tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a"]
    if kind == "nllb":
        return transformers.NllbTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    cls = {"mbart": transformers.MBartTokenizer, "mbart50": transformers.MBart50Tokenizer}[kind]
    return cls(vocab=[(token, -1.0) for token in tokens])


@pytest.mark.parametrize(
    ("kind", "langs", "source", "target"),
    [
        ("nllb", ("deu_Latn", "fra_Latn"), ["deu_Latn", "▁", "a", "</s>"], ["fra_Latn", "▁", "a", "</s>"]),
        ("mbart", ("de_DE", "ro_RO"), ["▁", "a", "</s>", "de_DE"], ["▁", "a", "</s>", "ro_RO"]),
        ("mbart50", ("de_DE", "ro_RO"), ["de_DE", "▁", "a", "</s>"], ["ro_RO", "▁", "a", "</s>"]),
    ],
)
def test_tokenizers_that_mark_languages(kind, langs, source, target):
    tokenizer, task = multilingual(kind), Seq2Seq(source_lang=langs[0], target_lang=langs[1])
    rows = [{"source": "a", "target": "a"}]
    encoded = task.encode(rows, tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"][0]) == source
    assert tokenizer.convert_ids_to_tokens(encoded["labels"][0]) == target
    assert translation.speak(tokenizer, *langs) == tokenizer.convert_tokens_to_ids(langs[1])
    assert task.remarks(splits_of(rows), tokenizer) == []
    (remark,) = Seq2Seq().remarks(splits_of(rows), multilingual(kind))
    assert remark.startswith(f"the base marks {len(translation.languages(tokenizer))} languages with tokens, and")
    with pytest.raises(
        UserError, match=rf"^task.target_lang: unknown language '.*x'; did you mean '{langs[1]}'"
    ) as caught:
        Seq2Seq(source_lang=langs[0], target_lang=f"{langs[1]}x").encode(rows, tokenizer)
    assert len(caught.value.problems) == 1


def test_an_answer_begins_with_its_language(monkeypatch):
    """What the decoder must begin with goes to generation."""
    from pefttools import generation

    asked = []
    monkeypatch.setattr(generation, "generate", lambda model, inputs, tokenizer, decoding: asked.append(decoding) or ())
    tokenizer = multilingual("nllb")
    task = Seq2Seq(source_lang="deu_Latn", target_lang="fra_Latn", num_beams=2, max_target_length=9)
    assert [*task.generate(make_model(), [{"source": "a"}], tokenizer)] == []
    (decoding,) = asked
    assert decoding.more["forced_bos_token_id"] == tokenizer.convert_tokens_to_ids("fra_Latn")
    assert (decoding.num_beams, decoding.max_new_tokens) == (2, 9)


# whole runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer) -> tuple[Any, dict[str, Any]]:
    """A run of a tiny BART that learns to copy, and its result."""
    folder = tmp_path_factory.mktemp("seq2seq")
    make_model().save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = {row["source"]: row for row in copies(400)}.values()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "base": str(folder / "base"),
        "data": {"train": str(folder / "rows.jsonl")},
        "task": {"name": "seq2seq", "max_length": 16, "max_target_length": 8, "generate_rows": 5, "num_beams": 2},
        "strategy": "full",
        "train": {"epochs": 5, "batch_size": 16, "learning_rate": 0.01, "precision": "fp32", "trackers": []},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return train_tiny(folder / "recipe.yaml", folder / "run")


def test_trains_from_a_recipe_and_answers(trained):
    run, result = trained
    before, test = result["before"], result["test"]
    assert {*test} == {"perplexity", "loss", "bleu", "chrf", "rouge1", "rouge2", "rouge_l", "stopped"}
    assert test["perplexity"] == pytest.approx(math.exp(test["loss"]), rel=1e-4)
    assert test["perplexity"] < 1.5 < 40 < before["perplexity"]
    assert before["rouge1"] < 0.5 < 0.8 < test["rouge1"]
    assert test["stopped"] == 1
    assert "rouge1" not in result["validation"]  # looks are by perplexity; only the test rows are answered
    rows = [{"source": "word1 word2 word3"}, {"text": "word3 word1 word2", "target": "not looked at"}]
    said = list(predict_rows(run, rows))
    assert [row["prediction"] for row in said] == ["word1 word2 word3", "word3 word1 word2"]
    assert all("target" not in row and row["finish"] == "stop" for row in said)


def test_an_encoder_is_refused(bases):
    with pytest.raises(UserError, match="is a bert model, and transformers has no AutoModelForSeq2SeqLM for it"):
        Seq2Seq().load(BaseSettings(source=str(bases("bert"))))


@pytest.mark.parametrize(
    ("architecture", "strategy"),
    [("t5", "full"), ("bart", "full"), ("t5", "lora"), ("marian", "lora"), ("bart", "prompt")],
)
def test_strategies_take_it(architecture, strategy):
    from pefttools import support
    from pefttools.strategies import strategies

    assert support.probe(Seq2Seq.example(), strategies.get(strategy)(), architecture).reason is None
