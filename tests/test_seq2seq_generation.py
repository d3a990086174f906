"""Encoder-decoders: training, generation, languages, and a whole run."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from conftest import WORDS, train_tiny, write_recipe, write_rows
from test_seq2seq import make_model, splits_of

from pefttools.bases.loading import prepare_libraries
from pefttools.data import translation
from pefttools.errors import UserError
from pefttools.inference.prediction import predict_rows
from pefttools.tasks.seq2seq import Seq2Seq


def copies(number: int, words: int = 3) -> list[dict[str, str]]:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS[:8], k=words)) for _ in range(number)]
    return [{"source": text, "target": text} for text in texts]


@pytest.fixture(scope="module")
def copier(tokenizer) -> Any:
    """A model trained to copy three words, with the task's own batches and losses."""
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


# training and generation


@pytest.mark.slow
def test_peft_methods_train_seq2seq(tokenizer):
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


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 4])
def test_trained_model_copies_and_stops(copier, tokenizer, beams):
    rows = copies(340)[300:]
    predictions = dict(Seq2Seq(max_length=16, max_target_length=8, num_beams=beams).generate(copier, rows, tokenizer))
    assert {*predictions} == {*range(40)}
    correct = [predictions[i] == {"prediction": row["target"], "finish": "stop"} for i, row in enumerate(rows)]
    assert sum(correct) >= 38
    wide = Seq2Seq(max_length=16, num_beams=beams, max_new_tokens=1000)  # limited by the positions of the model
    assert dict(wide.generate(copier, rows, tokenizer)) == predictions


def test_length_settings_limit_generated_text(copier, tokenizer):
    rows = copies(304)[300:]

    def generated(**settings):
        return [p for _, p in sorted(Seq2Seq(**settings).generate(copier, rows, tokenizer))]

    short = generated(max_new_tokens=3)
    assert [p["prediction"] for p in short] == [
        " ".join(row["source"].split()[:2]) for row in rows
    ]  # [CLS] is the first new token
    assert {p["finish"] for p in short} == {"length"}
    assert generated(max_target_length=3) == short
    long = generated(max_new_tokens=9, min_new_tokens=8)
    assert all(len(p["prediction"].split()) > 3 for p in long)
    once = generated(max_new_tokens=20, min_new_tokens=12, no_repeat_ngram_size=1)
    assert all(len({*p["prediction"].split()}) == len(p["prediction"].split()) > 6 for p in once)
    lengths = [
        sum(len(p["prediction"].split()) for p in generated(max_new_tokens=12, num_beams=4, length_penalty=penalty))
        for penalty in (-20.0, 20.0)
    ]
    assert lengths[0] < lengths[1]


def test_prefix_is_added_before_generation(copier, tokenizer):
    task = Seq2Seq(prefix="word7 ", max_new_tokens=8)
    prefixed = dict(task.generate(copier, [{"source": "word1 word2"}], tokenizer))
    assert prefixed == dict(Seq2Seq(max_new_tokens=8).generate(copier, [{"source": "word7 word1 word2"}], tokenizer))
    assert prefixed[0]["prediction"] == "word7 word1 word2"


# languages


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
def test_language_tokens_of_multilingual_tokenizers(kind, langs, source, target):
    tokenizer, task = multilingual(kind), Seq2Seq(source_lang=langs[0], target_lang=langs[1])
    rows = [{"source": "a", "target": "a"}]
    encoded = task.encode(rows, tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"][0]) == source
    assert tokenizer.convert_ids_to_tokens(encoded["labels"][0]) == target
    assert translation.set_languages(tokenizer, *langs) == tokenizer.convert_tokens_to_ids(langs[1])
    assert task.remarks(splits_of(rows), tokenizer) == []
    (remark,) = Seq2Seq().remarks(splits_of(rows), multilingual(kind))
    assert remark.startswith(f"the base model marks {len(translation.languages(tokenizer))} languages with tokens;")
    with pytest.raises(
        UserError, match=rf"^task.target_lang: unknown language '.*x'; did you mean '{langs[1]}'"
    ) as caught:
        Seq2Seq(source_lang=langs[0], target_lang=f"{langs[1]}x").encode(rows, tokenizer)
    assert len(caught.value.problems) == 1


def test_generation_starts_with_the_token_of_the_target_language(monkeypatch):
    from pefttools.tasks import _generation

    calls = []
    monkeypatch.setattr(
        _generation, "generate", lambda model, inputs, tokenizer, decoding: calls.append(decoding) or ()
    )
    tokenizer = multilingual("nllb")
    task = Seq2Seq(source_lang="deu_Latn", target_lang="fra_Latn", num_beams=2, max_target_length=9)
    assert [*task.generate(make_model(), [{"source": "a"}], tokenizer)] == []
    (decoding,) = calls
    assert decoding.more["forced_bos_token_id"] == tokenizer.convert_tokens_to_ids("fra_Latn")
    assert (decoding.num_beams, decoding.max_new_tokens) == (2, 9)


# whole runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer) -> tuple[Any, dict[str, Any]]:
    """A run of a tiny BART that learns to copy, and its result."""
    folder = tmp_path_factory.mktemp("seq2seq")
    make_model().save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = write_rows(folder / "rows.jsonl", {row["source"]: row for row in copies(400)}.values())
    task = {"name": "seq2seq", "max_length": 16, "max_target_length": 8, "generate_rows": 5, "num_beams": 2}
    train = {"epochs": 5, "learning_rate": 0.01}
    recipe = write_recipe(folder / "recipe.yaml", folder / "base", rows, task=task, strategy="full", train=train)
    return train_tiny(recipe, folder / "run")


@pytest.mark.slow
def test_run_learns_and_predicts(trained):
    run, result = trained
    before, test = result["before"], result["test"]
    assert {*test} == {"perplexity", "loss", "bleu", "chrf", "rouge1", "rouge2", "rouge_l", "stopped"}
    assert test["perplexity"] == pytest.approx(math.exp(test["loss"]), rel=1e-4)
    assert test["perplexity"] < 1.5 < 40 < before["perplexity"]
    assert before["rouge1"] < 0.5 < 0.8 < test["rouge1"]
    assert test["stopped"] == 1
    assert "rouge1" not in result["validation"]  # evaluations use perplexity; text is generated for test rows only
    rows = [{"source": "word1 word2 word3"}, {"text": "word3 word1 word2", "target": "not read"}]
    predictions = list(predict_rows(run, rows))
    assert [row["prediction"] for row in predictions] == ["word1 word2 word3", "word3 word1 word2"]
    assert all("target" not in row and row["finish"] == "stop" for row in predictions)


@pytest.mark.parametrize(
    ("architecture", "strategy"),
    [("t5", "full"), ("bart", "full"), ("t5", "lora"), ("marian", "lora"), ("bart", "prompt")],
)
def test_strategies_support_seq2seq(architecture, strategy):
    from pefttools.compatibility import matrix
    from pefttools.strategies import strategies

    assert matrix.probe(Seq2Seq.example(), strategies.get(strategy)(), architecture).reason is None
