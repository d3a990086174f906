"""Alignment of words with sub-word tokens: labels, spans in tokens and in texts, and the loss over words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_tokenizer
from test_token_classification import TASK, make_row, word_pieces

from pefttools.data.alignment import encode_words, spaces_matter
from pefttools.errors import UserError
from pefttools.tasks.token_classification import TokenClassification


def test_word_is_labeled_at_its_first_sub_word() -> None:
    task = TokenClassification(labels=("O", "B-LOC", "I-LOC", "B-PER", "I-PER"), read_as="bio")
    rows = [
        make_row("Angela Merkel in Rome", "B-PER I-PER O B-LOC"),
        TASK.read({"tokens": ["\x00", "in", "\u200b", "北"], "tags": ["B-PER", "O", "O", "B-LOC"]}),
    ]
    encoded = task.encode(rows, word_pieces())
    assert encoded["input_ids"] == [[2, 5, 6, 8, 9, 7, 10, 11, 3], [2, 10, 12, 3]]
    assert encoded["places"][0] == [1, 3, 6, 7]
    assert encoded["places"][1] == [-1, 1, -1, 2]
    first = {name: values[0] for name, values in encoded.items()}
    shown = "[CLS] ang/B-PER ##ela mer/I-PER ##k ##el in/O rome/B-LOC [SEP]"
    assert task.shown(first, word_pieces()) == shown
    assert encoded["labels"][1] == [-100, 0, 1, -100]
    assert encoded["num_targets"] == [4, 2]
    assert encoded["cut"] == [False, False]


def test_truncated_words_have_no_position() -> None:
    task = TokenClassification(labels=("O", "B-PER", "I-PER"), read_as="bio", max_length=5)
    encoded = task.encode([make_row("angela angela in", "B-PER I-PER O"), make_row("in", "O")], word_pieces())
    assert encoded["input_ids"] == [[2, 5, 6, 5, 3], [2, 10, 3]]
    assert encoded["places"] == [[1, 3, -1], [1]]
    assert encoded["labels"] == [[-100, 1, -100, 2, -100], [-100, 0, -100]]
    assert (encoded["num_targets"], encoded["cut"]) == ([2, 1], [True, False])
    predictions = [{"labels": [0, 1, 1, 2, 0], "probabilities": [0.9, 0.8, 0.5, 0.6, 0.9]}]
    aggregated = task.aggregate({"tokens": ["angela", "angela", "in"]}, [{"places": [1, 3, -1]}], predictions)
    assert aggregated["prediction"] == ["B-PER", "I-PER", "O"]
    assert aggregated["spans"] == [
        {"type": "PER", "start": 0, "end": 13, "text": "angela angela", "score": pytest.approx(0.7)}
    ]
    last = TokenClassification(labels=("O", "B-PER", "I-PER"), read_as="bio", sub_word="last")
    assert last.encode([make_row("angela in", "B-PER O")], word_pieces())["labels"] == [[-100, -100, 1, 0, -100]]


def byte_level() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("ca", "t"), ("Ġ", "cat")]
    vocabulary = {piece: i for i, piece in enumerate(["<pad>", *alphabet, *map("".join, merges)])}
    inner = Tokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", model_max_length=64)


def test_words_are_tokenized_as_in_a_running_text() -> None:
    gpt = byte_level()
    assert spaces_matter(gpt)
    assert not spaces_matter(word_pieces())
    assert not spaces_matter(make_tokenizer())
    encoded = encode_words([["the", "cat", "the"], ["北", "京", "2", "cat"]], gpt, 64)
    assert encoded["input_ids"][0] == gpt("the cat the")["input_ids"]
    assert encoded["places"] == [[0, 1, 2], [0, 3, 6, 7]]
    assert gpt.convert_ids_to_tokens(encoded["input_ids"][1])[6:] == ["2", "Ġcat"]
    assert encode_words([["北", "京"]], gpt, 64, last=True)["places"] == [[2, 5]]


def test_a_tokenizer_without_word_ids_is_refused() -> None:
    with pytest.raises(UserError, match="SimpleNamespace does not report the word of each sub-word"):
        encode_words([["a"]], SimpleNamespace(is_fast=False), 64)  # type: ignore[arg-type]


def outputs_for(labels: list[list[int]], num_labels: int, virtual: int = 0) -> Any:
    """Logits whose argmax are these labels, with probability e³ / (e³ + num_labels - 1), after some virtual tokens."""
    logits = torch.zeros(len(labels), virtual + len(labels[0]), num_labels)
    for row, row_labels in enumerate(labels):
        for position, label in enumerate(row_labels):
            logits[row, virtual + position, label] = 3.0
    return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("virtual", [0, 3])
def test_spans_have_character_offsets_in_tokens_and_texts(virtual: int) -> None:
    task = TokenClassification(labels=("O", "B-LOC", "I-LOC"), read_as="bio")
    probability = float(torch.tensor([3.0, 0.0, 0.0]).softmax(0)[0])
    rows = [
        task.read({"text": " In Rome's  New York (北京)."}),
        task.read({"tokens": ["in", "New", "York"]}),
        task.read({"tokens": list("我在北京住")}),
        task.read({"tokens": ["in"]}),
    ]
    columns = task.encode(rows, word_pieces())
    wanted = [[0, 1, 0, 1, 2, 0, 1, 2, 0], [0, 1, 2], [0, 0, 1, 2, 0], [0]]
    width = max(map(len, columns["input_ids"]))
    padded = [[0] * width for _ in rows]
    for labels, places, tags in zip(padded, columns["places"], wanted, strict=True):
        for position, tag in zip(places, tags, strict=True):
            labels[position] = tag
    batch = task.collate(columns, word_pieces(), 1)
    assert "labels" not in batch
    predictions = task.predict(outputs_for(padded, 3, virtual), batch)
    joined = [
        task.aggregate(row, [{"places": places}], [prediction])
        for row, places, prediction in zip(rows, columns["places"], predictions, strict=True)
    ]
    found = [[(s["start"], s["end"], s["text"]) for s in aggregated["spans"]] for aggregated in joined]
    assert found == [
        [(4, 8, "Rome"), (12, 20, "New York"), (22, 24, "北京")],
        [(3, 11, "New York")],
        [(2, 4, "北京")],
        [],
    ]
    assert [rows[0]["text"][start:end] for start, end, _ in found[0]] == [text for *_, text in found[0]]
    assert joined[2]["prediction"] == ["O", "O", "B-LOC", "I-LOC", "O"]
    assert joined[0]["spans"][0] == {"type": "LOC", "start": 4, "end": 8, "text": "Rome",
                                     "score": pytest.approx(probability)}  # fmt: skip


def test_aggregated_bio_tags_are_well_formed() -> None:
    task = TokenClassification(labels=("O", "B-LOC", "I-LOC", "B-PER", "I-PER"), read_as="bio")
    predictions = [{"labels": [2, 4, 0, 2, 3], "probabilities": [1.0] * 5}]
    aggregated = task.aggregate({"tokens": list("abcde")}, [{"places": [0, 1, 2, 3, 4]}], predictions)
    assert aggregated["prediction"] == ["B-LOC", "B-PER", "O", "B-LOC", "B-PER"]
    plain = TokenClassification(labels=("NN", "VB"), read_as="none")
    assert plain.aggregate(
        {"tokens": ["a", "b"]}, [{"places": [1, -1]}], [{"labels": [0, 1], "probabilities": [1.0] * 2}]
    ) == {
        "prediction": ["VB", "NN"]  # a truncated word gets the most frequent label
    }


@pytest.mark.parametrize("virtual", [0, 2])
def test_loss_is_the_sum_over_words(virtual: int) -> None:
    task = TokenClassification(labels=("O", "B-PER", "I-PER"), read_as="bio")
    rows = [make_row("angela merkel in", "B-PER I-PER O"), make_row("in", "O")]
    columns = task.encode(rows, word_pieces())
    batch = task.collate(columns, word_pieces(), 8)
    assert batch["labels"].shape == batch["input_ids"].shape == (2, 8)
    assert int((batch["labels"] != -100).sum()) == sum(columns["num_targets"]) == 4
    torch.manual_seed(0)
    logits = torch.randn(2, 8 + virtual, 3)
    parts = [
        torch.nn.functional.cross_entropy(logits[row, virtual + position][None], torch.tensor([label]))
        for row, label_row in enumerate(batch["labels"].tolist())
        for position, label in enumerate(label_row)
        if label != -100
    ]
    assert task.loss(SimpleNamespace(logits=logits), batch).item() == pytest.approx(sum(parts).item(), rel=1e-6)  # type: ignore[union-attr]
