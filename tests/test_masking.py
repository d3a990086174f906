"""Masking: which tokens are masked and how, windows of long texts, joined short texts, and batches."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from conftest import SPECIAL
from test_masked_lm import counting

from pefttools.data import masking, windows
from pefttools.data.masking import Shares, Vocabulary
from pefttools.tasks.masked_lm import MaskedLM

MASK, KNOWN = 4, Vocabulary(54, 4, frozenset(range(5)))
SHARES = Shares(0.15, 0.8, 0.1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# targets


def test_masked_tokens_have_the_set_shares():
    """Exactly 15% are targets: 80% become the mask, 10% another token, 10% stay, within four standard deviations."""
    draw, kinds, positions = seeded(0), Counter(), Counter()
    ids = [2, *range(10, 50), 1, 3]  # 40 tokens and three special ones
    rounds = 3000
    for _ in range(rounds):
        inputs, labels = masking.masked(ids, KNOWN, SHARES, None, draw)
        targets = [i for i, label in enumerate(labels) if label != -100]
        assert len(targets) == masking.num_targets(ids, KNOWN, SHARES) == 6
        assert all(labels[i] == ids[i] for i in targets)
        assert all(inputs[i] == ids[i] for i in range(len(ids)) if i not in targets)
        assert not {0, 41, 42} & {*targets}
        kinds.update("mask" if inputs[i] == MASK else "same" if inputs[i] == ids[i] else "other" for i in targets)
        positions.update(targets)
    total = 6 * rounds
    for kind, share in {"mask": 0.8, "other": 0.1 * 48 / 49, "same": 0.1 + 0.1 / 49}.items():
        assert abs(kinds[kind] / total - share) < 4 * math.sqrt(share * (1 - share) / total), kind
    assert len(positions) == 40
    assert max(positions.values()) / min(positions.values()) < 1.4


def test_random_tokens_are_never_special():
    known = Vocabulary(10, 4, frozenset({0, 4, 9}))
    found = Counter()
    for seed in range(200):
        found.update(masking.masked([5, 6, 7], known, Shares(0.9, 0.0, 1.0), None, seeded(seed))[0])
    assert {*found} == {1, 2, 3, 5, 6, 7, 8}


@pytest.mark.parametrize(("number", "targets"), [(0, 0), (1, 1), (3, 1), (9, 1), (10, 2), (17, 3), (100, 15)])
def test_number_of_targets(number, targets):
    ids = [2, *[7] * number, 3]
    assert masking.num_targets(ids, KNOWN, SHARES) == targets
    labels = masking.masked(ids, KNOWN, SHARES, None)[1]
    assert sum(label != -100 for label in labels) == targets


def test_whole_words_are_masked():
    """Words of one to three tokens: at most one word of a window is masked in part, only if no word fits."""
    words = [-1, 0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6, 6, 6, 7, 8, 8, 9, 10, 11, 11, -1]
    ids = [2, *range(10, 10 + len(words) - 2), 3]
    shares = Shares(0.3, 1.0, 0.0)
    partial = 0
    for seed in range(200):
        labels = masking.masked(ids, KNOWN, shares, words, seeded(seed))[1]
        taken = Counter(word for word, label in zip(words, labels, strict=True) if label != -100)
        assert taken.total() == masking.num_targets(ids, KNOWN, shares) == 6
        partly_masked = [word for word, number in taken.items() if number < words.count(word)]
        assert len(partly_masked) <= 1
        partial += len(partly_masked)
    assert partial < 20
    both = masking.masked([2, 10, 11, 12, 3], KNOWN, Shares(0.3, 1.0, 0.0), [-1, 0, 0, 0, -1], seeded(0))[1]
    assert sum(label != -100 for label in both) == 1  # no word is short enough, and the number of targets must be right


# windows


def test_frame_is_the_special_tokens_around_a_text(tokenizer):
    assert windows.frame(tokenizer) == windows.Frame([2], [3])


@pytest.mark.parametrize(
    ("tokens", "room", "sizes"), [(5, 8, [5]), (8, 8, [8]), (9, 8, [4, 5]), (17, 8, [6, 5, 6]), (0, 8, [0])]
)
def test_long_texts_are_split_into_windows_of_similar_length(tokens, room, sizes):
    piece = windows.Piece(list(range(tokens)), list(range(tokens)))
    made = windows.cut(piece, room)
    assert [len(part.ids) for part in made] == sizes
    assert [i for part in made for i in part.ids] == piece.ids


def test_short_texts_are_joined():
    texts = [windows.Piece([i] * n, list(range(n))) for i, n in enumerate([3, 2, 9, 1], 10)]
    made = list(windows.join(texts, 6, [3]))
    assert [part.ids for part in made] == [[10, 10, 10, 3, 11, 11], [12] * 6, [12, 12, 12, 3, 13]]
    words = [word for part in made for word in part.words]
    assert [word for word in words if word == -1] == [-1] * 2
    known = [word for word in words if word >= 0]
    assert all(a < b for a, b in pairwise(known[:5]))  # words of two texts have different numbers


def test_windows_cover_every_token_of_a_long_text(tokenizer):
    task = MaskedLM(max_length=16)
    rows = counting(1, 100) + counting(1, 5)
    encoded = task.encode(rows, tokenizer)
    assert encoded["row"] == [0] * 8 + [1]
    assert max(len(ids) for ids in encoded["input_ids"]) <= 16
    assert not any(encoded["cut"])
    plain = [
        [token if label == -100 else label for token, label in zip(ids, labels, strict=True)]
        for ids, labels in zip(encoded["input_ids"], encoded["labels"], strict=True)
    ]
    assert {(ids[0], ids[-1]) for ids in plain} == {(2, 3)}
    assert tokenizer.decode([i for ids in plain[:8] for i in ids], skip_special_tokens=True) == rows[0]["text"]
    training = task.encode_training(rows, tokenizer)
    assert training["input_ids"] == plain
    assert training["num_targets"] == encoded["num_targets"]


def test_lines_are_joined_only_for_training(tokenizer):
    task, rows = MaskedLM(max_length=16, join_lines=True), counting(20, 3)
    encoded = task.encode_training(rows, tokenizer)
    assert len(encoded["input_ids"]) == 6  # 20 lines of 3 and a separator between them, 14 to a window
    assert [len(ids) for ids in encoded["input_ids"]] == [16] * 5 + [11]
    text = tokenizer.decode([i for ids in encoded["input_ids"] for i in ids], skip_special_tokens=True)
    assert text == " ".join(row["text"] for row in rows)
    assert encoded["input_ids"][0] == [2, 5, 6, 7, 3, 12, 13, 14, 3, 19, 20, 21, 3, 26, 27, 3]
    assert encoded["num_targets"][0] == round(0.15 * 11)
    assert len(task.encode(rows, tokenizer)["input_ids"]) == 20


# batches


@pytest.mark.parametrize("settings", [{}, {"whole_word": True}, {"join_lines": True, "whole_word": True}])
def test_batches_have_the_announced_number_of_targets(tokenizer, settings):
    task = MaskedLM(max_length=20, **settings)
    rows = [*counting(12, 30), *counting(3, 2), {"text": "never heard of it"}]
    encoded = task.encode_training(rows, tokenizer)
    assert settings.get("join_lines") or encoded["num_targets"][-1] == 0  # unknown tokens only
    for _ in range(5):
        batch = task.collate_training(encoded, tokenizer, 8)
        assert (batch["labels"] != -100).sum(1).tolist() == encoded["num_targets"]
        assert len(batch["places"]) == sum(encoded["num_targets"])
        special = torch.isin(batch["labels"], torch.arange(len(SPECIAL)))
        assert not special.any()
        width = batch["input_ids"].shape[1]
        plain = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in encoded["input_ids"]])
        assert torch.equal(torch.where(batch["labels"] == -100, plain, batch["labels"]), plain)
        assert torch.equal(torch.where(batch["labels"] == -100, batch["input_ids"], plain), plain)
        assert batch["labels"].flatten()[batch["places"]].ne(-100).all()


def test_training_masks_differ_between_epochs_and_follow_the_torch_random_state(tokenizer):
    task = MaskedLM(max_length=32)
    encoded = task.encode_training(counting(8), tokenizer)
    torch.manual_seed(1)
    first = task.collate_training(encoded, tokenizer, 8)["labels"]
    state = torch.get_rng_state()
    second, third = (task.collate_training(encoded, tokenizer, 8)["labels"] for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(99)
    torch.set_rng_state(state)
    assert torch.equal(task.collate_training(encoded, tokenizer, 8)["labels"], second)
    assert torch.equal(task.collate_training(encoded, tokenizer, 8)["labels"], third)


def test_masks_independent_of_micro_batch_size(tokenizer):
    task = MaskedLM(max_length=32)
    encoded = task.encode_training(counting(8), tokenizer)
    torch.manual_seed(1)
    whole = task.collate_training(encoded, tokenizer, 8)
    torch.manual_seed(1)
    halves = [
        task.collate_training({n: c[part] for n, c in encoded.items()}, tokenizer, 8)
        for part in (slice(0, 3), slice(3, 8))
    ]
    for name in ("input_ids", "labels"):
        assert torch.equal(whole[name], torch.cat([half[name] for half in halves]))


def test_evaluation_masks_are_fixed(tokenizer):
    task, rows = MaskedLM(max_length=16), counting(6, 30)
    encoded = task.encode(rows, tokenizer)
    torch.manual_seed(5)
    again = task.encode(rows[3:], tokenizer)
    assert again["labels"] == encoded["labels"][-len(again["labels"]) :]
    assert again["input_ids"] == encoded["input_ids"][-len(again["labels"]) :]
    positions = {tuple(i for i, label in enumerate(labels) if label != -100) for labels in encoded["labels"]}
    assert len(positions) > 6  # not the same places in every text
    assert encoded["num_targets"] == [2] * 18
    state = torch.get_rng_state()
    task.encode(rows, tokenizer)
    assert torch.equal(torch.get_rng_state(), state)
