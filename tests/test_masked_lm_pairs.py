"""Masked language modelling with pairs: sentences, pairs, losses, a learned relation, a resumed run, and refusals."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from conftest import WORDS, power_cut, train_tiny, without_clock, write_recipe, write_rows
from conftest import losses as run_losses

from pefttools.bases.loading import BaseSettings
from pefttools.data.sentence_pairs import pair_frame, pairs, sentences
from pefttools.data.splitting import Splits
from pefttools.errors import UserError
from pefttools.settings import check
from pefttools.tasks.masked_lm_pairs import MaskedLMPairs


def model_of(kind: str = "bert") -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=54, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=80, pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.1, **({"embedding_size": 16} if kind == "albert" else {}),
    )  # fmt: skip
    return transformers.AutoModelForPreTraining.from_config(config).eval()


def documents(number: int, lines: int = 4, start: int = 0) -> list[dict[str, str]]:
    """Texts of some lines; a line is six words, and all words of a text are among eight of their own."""
    rows = []
    for i in range(start, start + number):
        own = [WORDS[(i % 5) * 8 + j] for j in range(8)]
        rows.append({"text": "\n".join(" ".join(own[(i + k + j) % 8] for j in range(6)) for k in range(lines))})
    return rows


def test_sentences_of_english_and_chinese():
    assert sentences('He left. "Why?" she asked!\nNo') == ["He left. ", '"Why?" ', "she asked!\n", "No"]
    assert sentences("他走了。“为什么？”没人知道！好") == ["他走了。", "“为什么？”", "没人知道！", "好"]
    assert sentences("v1.2 costs 3.50") == ["v1.2 costs 3.50"]
    assert sentences(" \n\n ") == []


def test_every_token_is_in_one_pair(tokenizer):
    texts = [row["text"] for row in documents(6, 9)] + ["word1", "word1 word2 word3", " ".join(WORDS[:40])]
    found = pairs(texts, tokenizer, 20)
    for row, text in enumerate(texts):
        ids = [i for pair in found if pair.row == row for part in (pair.first, pair.second) for i in part.ids]
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(0 < len(pair.first.ids) + len(pair.second.ids) <= 20 for pair in found)
    assert all(len(pair.first.ids) + len(pair.other.ids) <= 20 for pair in found)
    (alone,) = (pair for pair in found if pair.row == 6)
    assert (len(alone.first.ids), alone.second.ids, alone.other.ids) == (1, [], [])


def test_parts_end_with_sentences_and_others_are_of_other_texts(tokenizer):
    texts = [row["text"] for row in documents(10, 4)]
    found = pairs([*texts, texts[0]], tokenizer, 40)
    assert all(len(part.ids) == 12 for pair in found for part in (pair.first, pair.second, pair.other))
    for pair in found:
        own = {*tokenizer(texts[pair.row % 10], add_special_tokens=False)["input_ids"]}
        same_words = pair.row % 5 == 0 and not own.isdisjoint(pair.other.ids)
        assert own.isdisjoint(pair.other.ids) or [*pair.other.ids] != [*pair.second.ids] or same_words
    assert all(pair.other.ids == [] for pair in pairs([texts[0]] * 3, tokenizer, 40))


def test_the_frame_is_the_tokenizers(tokenizer):
    frame = pair_frame(tokenizer)
    first, second = (pairs(["word1 word2 word3 word4"], tokenizer, 40)[0])[1:3]
    piece, types = frame.framed(first, second)
    whole = tokenizer("word1 word2", "word3 word4", return_token_type_ids=True)
    assert (piece.ids, types) == (whole["input_ids"], whole["token_type_ids"])
    assert [word < 0 for word in piece.words] == [True, False, False, True, False, False, True]
    assert len({*piece.words}) == 5  # whole words are masked together, and the parts share none


@pytest.mark.parametrize("kind", ["bert", "albert"])
@pytest.mark.parametrize("which", ["next", "order"])
def test_loss_equals_that_of_the_model(tokenizer, kind, which):
    task, model = MaskedLMPairs(max_length=48, pairs=which), model_of(kind)
    encoded = task.encode(documents(8), tokenizer)
    batch = task.collate(encoded, tokenizer, 8)
    assert {*encoded["pair"]} == {0, 1}
    label = "sentence_order_label" if kind == "albert" else "next_sentence_label"
    with torch.inference_mode():
        outputs = model(**task.inputs_of(batch), labels=batch["labels"], **{label: batch["pair"]})
    assert {*encoded["num_targets"]} == {4}  # so every pair counts the same, as in transformers
    assert task.loss(outputs, batch).item() == pytest.approx(outputs.loss.item() * 32, rel=1e-5)
    predictions = task.predict(outputs, batch)
    logits = outputs.sop_logits if kind == "albert" else outputs.seq_relationship_logits
    right = (logits.argmax(-1) == batch["pair"]).float().mean().item()
    assert task.metrics(predictions, [])["pair_accuracy"] == pytest.approx(right)


def test_the_order_swaps_the_parts(tokenizer):
    task = MaskedLMPairs(max_length=48, pairs="order", mask_share=0.01)
    rows = documents(30)
    encoded = task.encode(rows, tokenizer)
    assert encoded == task.encode(rows, tokenizer)
    for row, ids, label, targets in zip(rows, encoded["input_ids"], encoded["pair"], encoded["labels"], strict=True):
        restored = [t if t != -100 else i for i, t in zip(ids, targets, strict=True)]
        halves = [" ".join(part.split()) for part in ("\n".join(row["text"].split("\n")[i : i + 2]) for i in (0, 2))]
        assert restored == tokenizer(*(reversed(halves) if label else halves))["input_ids"]
    assert 8 <= sum(encoded["pair"]) <= 22


def test_training_draws_pairs_and_exactly_the_counted_targets(tokenizer):
    task = MaskedLMPairs(max_length=48, whole_word=True)
    encoded = task.encode_training([*documents(12), *documents(3, 2), {"text": "word1"}], tokenizer)
    torch.manual_seed(0)
    drawn: Counter[int] = Counter()
    for _ in range(30):
        batch = task.collate_training(encoded, tokenizer, 8)
        assert (batch["labels"] != -100).sum(1).tolist() == encoded["num_targets"]
        assert batch["pair"][-1] == -100
        assert batch["input_ids"].shape[1] <= max(encoded["length"]) + 7
        drawn.update(batch["pair"][:-1].tolist())
    assert 0.4 < drawn[1] / (drawn[0] + drawn[1]) < 0.6


@pytest.mark.slow
def test_training_learns_which_part_comes_first(tokenizer):
    """The parts of a text have different words, so that their order shows."""
    first, second = ([(WORDS[k + i % 5], WORDS[k + i % 7]) for i in range(35)] for k in (0, 20))
    rows = [{"text": f"{' '.join(a)}\n{' '.join(b)}"} for a, b in zip(first, second, strict=True)]
    task, model = MaskedLMPairs(max_length=32, pairs="order"), model_of().train()
    encoded = task.encode_training(rows, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(120):
        batch = task.collate_training(encoded, tokenizer, 8)
        loss = task.loss(model(**task.inputs_of(batch)), batch) / sum(encoded["num_targets"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    batch = task.collate(task.encode(rows, tokenizer), tokenizer, 8)
    with torch.inference_mode():
        values = task.metrics(task.predict(model.eval()(**task.inputs_of(batch)), batch), [])
    assert values["pair_accuracy"] > 0.9
    assert values["accuracy"] > 0.8


@pytest.mark.slow
def test_resumed_run_draws_the_same_pairs(bases, tmp_path):
    sections: dict[str, Any] = {
        "data": {"deduplicate": False}, "strategy": "full", "task": {"name": "masked_lm_pairs", "max_length": 32},
        "train": {"epochs": 2, "log_every": 1},
    }  # fmt: skip
    rows = write_rows(tmp_path / "rows.jsonl", documents(60))
    recipe = write_recipe(tmp_path / "recipe.yaml", bases("bert"), rows, **sections)
    whole, expected = train_tiny(recipe, tmp_path / "whole")
    assert {*expected["test"]} == {"perplexity", "accuracy", "pair_accuracy", "loss"}
    with power_cut(3):
        train_tiny(recipe, tmp_path / "died", "train.checkpoint_seconds=0")
    died, resumed = train_tiny(recipe, tmp_path / "died", resume=True)
    assert run_losses(died) == run_losses(whole)
    assert without_clock(resumed)["test"] == without_clock(expected)["test"]


# bad input


def test_a_base_without_a_head_for_pairs_is_refused(bases):
    with pytest.raises(UserError, match="has no head for pairs of sentences, which BERT and ALBERT have") as caught:
        MaskedLMPairs().load(BaseSettings(source=str(bases("roberta"))))
    assert "use task=masked_lm, or another base" in str(caught.value)


def test_joined_lines_are_refused():
    _, problems = check(MaskedLMPairs, {"join_lines": True}, "task")
    assert len(problems) == 1
    assert "task.join_lines: unknown key 'join_lines'" in problems[0]


def test_texts_without_pairs_are_refused(tokenizer):
    def remarks(rows: list[dict[str, str]], **settings: Any) -> list[str]:
        return MaskedLMPairs(**settings).remarks(Splits(rows, rows, rows), tokenizer)

    with pytest.raises(UserError, match="its texts have one word each, so there are no pairs; use task=masked_lm"):
        remarks([{"text": "word1"}, {"text": "word2"}])
    with pytest.raises(UserError, match=r"data\.train has one text only; set task\.pairs=order"):
        remarks(documents(1))
    assert remarks(documents(1, 9), pairs="order") == remarks(documents(3, 9)) == []


def test_shown_rows_tell_whether_the_parts_belong_together(tokenizer):
    task = MaskedLMPairs(max_length=48)
    encoded = task.encode(documents(8), tokenizer)
    shown = [task.shown({name: column[i] for name, column in encoded.items()}, tokenizer) for i in range(8)]
    assert [text.endswith("the parts do not belong together") for text in shown] == [bool(i) for i in encoded["pair"]]
