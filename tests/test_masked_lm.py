"""Masked language modeling: losses, filled masks, remarks and errors, and a resumed run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import WORDS, make_tokenizer, power_cut, train_tiny, without_clock, write_recipe, write_rows
from conftest import losses as run_losses

from pefttools.bases.loading import BaseSettings
from pefttools.data.splitting import LeftOut, Splits
from pefttools.errors import UserError
from pefttools.inference.prediction import predict_rows
from pefttools.settings import check
from pefttools.tasks.masked_lm import MaskedLM


def make_model() -> Any:
    import transformers

    torch.manual_seed(0)
    return transformers.AutoModelForMaskedLM.from_config(
        transformers.AutoConfig.for_model(
            "bert", vocab_size=54, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=80, pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            initializer_range=0.1,
        )
    ).eval()  # fmt: skip


def counting(number: int, words: int = 12, known: int = 40) -> list[dict[str, str]]:
    """Texts in which each word determines the next one."""
    return [{"text": " ".join(WORDS[(i * 7 + j) % known] for j in range(words))} for i in range(number)]


@pytest.fixture(scope="module")
def counter(tokenizer) -> tuple[Any, list[float]]:
    """A model trained on texts of `counting`, and its losses."""
    task, model = MaskedLM(max_length=32), make_model().train()
    encoded = task.encode_training(counting(40, 14, known=6), tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    losses = []
    for _ in range(150):
        batch = task.collate_training(encoded, tokenizer, 8)
        loss = task.loss(model(**task.inputs_of(batch)), batch) / sum(encoded["num_targets"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model.eval(), losses


# losses


def test_loss_equals_that_of_the_model(tokenizer):
    task, model = MaskedLM(max_length=32), make_model()
    encoded = task.encode(counting(5) + counting(2, 3), tokenizer)
    batch = task.collate(encoded, tokenizer, 8)
    with torch.inference_mode():
        outputs = model(**task.inputs_of(batch), labels=batch["labels"])
    loss = task.loss(outputs, batch)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(outputs.loss.item() * sum(encoded["num_targets"]), rel=1e-5)
    predictions = task.predict(outputs, batch)
    assert [p["num_targets"] for p in predictions] == encoded["num_targets"] == [2] * 5 + [1] * 2
    assert sum(p["nll"] for p in predictions) == pytest.approx(loss.item(), rel=1e-5)
    num_correct = (outputs.logits.argmax(-1) == batch["labels"]).sum(1).tolist()
    assert [p["num_correct"] for p in predictions] == num_correct


def test_windows_of_a_row_are_aggregated():
    task = MaskedLM()
    parts = [{"nll": 1.0, "num_correct": 1, "num_targets": 2}, {"nll": 3.0, "num_correct": 0, "num_targets": 1}]
    row = task.aggregate({"text": "x"}, [{}, {}], parts)
    assert row == {"nll": 4.0, "num_correct": 1, "num_targets": 3}
    values = task.metrics([row, {"nll": 0.0, "num_correct": 1, "num_targets": 1}], ["x", "y"])
    assert values == pytest.approx({"perplexity": math.e, "accuracy": 0.5})
    assert task.metrics([{"nll": 0.0, "num_correct": 0, "num_targets": 0}], ["x"]) == {"perplexity": 1, "accuracy": 0}
    assert task.lower_is_better


@pytest.mark.slow
def test_training_learns_masked_tokens(counter, tokenizer):
    model, losses = counter
    assert losses[0] > 3.5
    assert sum(losses[-5:]) / 5 < 0.3
    task = MaskedLM(max_length=32)
    encoded = task.encode(counting(12, known=6), tokenizer)
    batch = task.collate(encoded, tokenizer, 8)
    with torch.inference_mode():
        values = task.metrics(task.predict(model(**task.inputs_of(batch)), batch), [])
    assert values["accuracy"] > 0.8
    assert values["perplexity"] < 2


def test_longest_batch_for_planning(tokenizer):
    task = MaskedLM(max_length=32, whole_word=True)
    assert (task.longest(10**9), task.longest(20)) == (32, 20)
    encoded = task.encode_training(counting(1), tokenizer)
    full = task.repeat_to_length({name: column[0] for name, column in encoded.items()}, 32)
    batch = task.collate({name: [value] * 3 for name, value in full.items()}, tokenizer, 8)
    assert batch["input_ids"].shape == batch["labels"].shape == (3, 32)
    assert (batch["labels"] != -100).sum(1).tolist() == [5] * 3
    assert task.loss(make_model()(**task.inputs_of(batch)), batch).item() > 0


# masks filled


def test_generate_fills_masks(counter, tokenizer):
    model, _ = counter
    task = MaskedLM(max_length=32)
    texts = [
        "word1 word2 word3 [MASK] word5 word0 word1",
        "word5 word0 word1 word2 [MASK] word4 word5 word0 [MASK] word2",
    ]
    predictions = dict(task.generate(model, [{"text": text} for text in texts], tokenizer))
    assert predictions[0]["prediction"] == "word1 word2 word3 word4 word5 word0 word1"
    assert predictions[1]["prediction"] == "word5 word0 word1 word2 word3 word4 word5 word0 word1 word2"
    assert [len(fill) for fill in predictions[1]["fills"]] == [5, 5]
    (fill,) = predictions[0]["fills"]
    assert fill[0]["token"] == "word4"
    assert [guess["probability"] for guess in fill] == sorted((g["probability"] for g in fill), reverse=True)
    ids = torch.tensor([tokenizer(texts[0])["input_ids"]])
    with torch.inference_mode():
        probabilities = model(input_ids=ids).logits[0, 4].softmax(-1)
    assert fill[0]["probability"] == pytest.approx(probabilities.max().item(), rel=1e-4)
    assert sum(guess["probability"] for guess in fill) <= 1


def test_masks_in_long_texts_are_filled_in_order(counter, tokenizer):
    model, _ = counter
    words = [WORDS[i % 6] for i in range(60)]
    masked = [3, 20, 29, 31, 47, 58]
    text = " ".join("[MASK]" if i in masked else word for i, word in enumerate(words))
    rows = [{"text": "word1 [MASK] word3"}, {"text": text}]
    predictions = dict(MaskedLM(max_length=16).generate(model, rows, tokenizer))
    assert {*predictions} == {0, 1}
    assert len(predictions[1]["fills"]) == 6
    filled = predictions[1]["prediction"].split()
    assert [word for i, word in enumerate(filled) if i not in masked] == [
        w for i, w in enumerate(words) if i not in masked
    ]
    assert [filled[i] for i in masked] == [fill[0]["token"] for fill in predictions[1]["fills"]]
    assert sum(filled[i] == words[i] for i in masked) >= 4


def test_continuation_token_is_joined_to_the_word_before_it():
    from pefttools.tasks._masked_tokens import _filled

    fills = [[{"token": "##ing"}], [{"token": "fish"}]]
    assert _filled("I go [MASK] for [MASK].", "[MASK]", fills) == "I going for fish."


def test_a_text_without_a_mask_is_refused(tokenizer):
    rows = [{"text": "word1 [MASK]"}, {"text": "word1 word2"}]
    with pytest.raises(UserError) as caught:
        list(MaskedLM().generate(make_model(), rows, tokenizer))
    assert str(caught.value) == "predict: row 2 has no [MASK] to fill: 'word1 word2'"


# bad input


def test_rows_are_read_or_refused():
    assert MaskedLM().read({"text": " a line ", "id": 3}) == {"text": " a line ", "id": "3"}
    with pytest.raises(LeftOut, match="empty text"):
        MaskedLM().read({"text": "  "})
    for value, message in (
        (None, "has no text"),
        (["x"], "has a text that is not text: "),
        ("\ud83d", "half a character"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            MaskedLM().read({"text": value})
        assert not isinstance(caught.value, LeftOut)


def test_contradictory_settings_are_refused():
    _, problems = check(MaskedLM, {"replaced_share": 0.9, "random_share": 0.2}, "task")
    assert len(problems) == 1
    assert problems[0].startswith("task: replaced_share and random_share add up to")
    _, problems = check(MaskedLM, {"mask_share": 0, "join_line": True}, "task")
    assert problems == [
        "task.mask_share: input should be greater than 0, got 0",
        "task.join_line: unknown key 'join_line'; did you mean 'join_lines'? Known: "
        + ", ".join(MaskedLM.model_fields),
    ]


def test_short_texts_are_remarked(tokenizer):
    def remarks(rows, **settings):
        return MaskedLM(**settings).remarks(Splits(rows, rows, rows), tokenizer)

    assert remarks(counting(5, 30)) == []
    assert remarks(counting(5, 3)) == [
        "texts have 3 tokens on average, but a window takes 62;"
        " task.join_lines=true fills the windows and trains faster"
    ]
    assert remarks(counting(5, 3), join_lines=True) == remarks(counting(5, 3), max_length=16) == []


def test_a_tokenizer_without_a_mask_token_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(
        UserError, match=r"^base: its tokenizer has no mask token; masked language modelling needs one$"
    ):
        MaskedLM().remarks(Splits(counting(2), counting(1), []), tokenizer)


# whole runs


@pytest.mark.slow
def test_resumed_run_draws_the_same_masks(bases, tmp_path):
    texts = [{"text": f"{row['text']} {i}"} for i, row in enumerate(counting(60))]
    sections = {
        "base": {"dropout": None},  # the base's own dropout, whose random state must be restored too
        "data": {"deduplicate": False},
        "task": {"name": "masked_lm", "max_length": 12, "whole_word": True},
        "strategy": "full",
        "train": {"epochs": 2, "log_every": 1},
    }
    rows = write_rows(tmp_path / "rows.jsonl", texts)
    recipe = write_recipe(tmp_path / "recipe.yaml", bases("bert"), rows, **sections)
    whole, expected = train_tiny(recipe, tmp_path / "whole")
    with power_cut(3):
        train_tiny(recipe, tmp_path / "died", "train.checkpoint_seconds=0")
    died, resumed = train_tiny(recipe, tmp_path / "died", resume=True)
    assert run_losses(died) == run_losses(whole)
    assert without_clock(resumed)["test"] == without_clock(expected)["test"]
    assert {*expected["test"]} == {"perplexity", "accuracy", "loss"}
    assert expected["test"]["perplexity"] == pytest.approx(math.exp(expected["test"]["loss"]))
    assert expected["test"]["perplexity"] < expected["before"]["perplexity"]
    (prediction,) = predict_rows(whole, [{"text": "word1 [MASK] word3"}])
    assert len(prediction["fills"][0]) == 5


def test_a_decoder_is_refused(bases):
    with pytest.raises(UserError, match="transformers has no AutoModelForMaskedLM for models of the type 'llama'"):
        MaskedLM().load(BaseSettings(source=str(bases("llama"))))
