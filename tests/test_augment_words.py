"""Edits of words: eda, typos, token_mask; tags, answers and marked entities follow; rows as `show` prints them."""

from __future__ import annotations

import json
import pickle
import random
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Listener, losses, make_rows, power_cut, train_in_two, train_tiny, write_recipe, write_rows
from hypothesis import example, given
from hypothesis import strategies as st
from test_train import assert_same_weights

from pefttools import cli
from pefttools.augmentations import _operations, augmentations
from pefttools.augmentations.base import WordAugmentation, copies
from pefttools.augmentations.eda import Eda
from pefttools.augmentations.random_deletion import RandomDeletion
from pefttools.augmentations.random_swap import RandomSwap
from pefttools.augmentations.token_mask import TokenMask
from pefttools.augmentations.typos import NEIGHBOURS, Typos, misspelt
from pefttools.data import marked, synonym_lists, tags
from pefttools.data.encoding import SPELLED, columns_of
from pefttools.data.units import Piece, SplitText, Units, split
from pefttools.errors import UserError
from pefttools.recipe import recipes
from pefttools.tasks import tasks
from pefttools.tasks.question_answering import QuestionAnswering
from pefttools.tasks.relation_extraction import RelationExtraction
from pefttools.tasks.token_classification import TokenClassification
from pefttools.training.preparation import prepare
from pefttools.training.run import Run

SYNONYMS = str(Path(__file__).parent / "synonym_groups.txt")
EDITS: dict[str, WordAugmentation] = {
    "eda": Eda(alpha=0.4, synonyms=SYNONYMS, copies=4),
    "random_deletion": RandomDeletion(probability=0.5, copies=4),
    "random_swap": RandomSwap(num_swaps=3, copies=4),
    "token_mask": TokenMask(probability=0.5, copies=4, mask="[MASK]"),
    "typos": Typos(probability=0.5, copies=4),
}
WORDS = ["apple", "Red", "word1", "saw,", "in", "U.S.", "北", "京", "公", "园", "。", "don't"]
CHINESE = "今天天气很好,我们高兴地去公园吧。"


def edited(one: WordAugmentation, row: dict[str, Any], task: Any, seed: int) -> dict[str, Any]:
    return one.rewritten(row, task, random.Random(seed))


def test_every_edit_of_words_is_tested() -> None:
    shipped = {name for name in augmentations.names() if issubclass(augmentations.get(name), WordAugmentation)}
    assert shipped == {*EDITS}


# eda


@pytest.fixture
def many() -> tuple[Units, list[synonym_lists.Replaceable]]:
    """10,000 words that all have synonyms."""
    units = Units.of([f"word{random.Random(i).randrange(1, 15)}" for i in range(10_000)])
    return units, synonym_lists.replaceable(units.texts, units.free, SYNONYMS)


def test_shares_of_eda_over_10000_words(many: tuple[Units, list[synonym_lists.Replaceable]]) -> None:
    units, words = many
    assert len(words) == 10_000
    replaced = _operations.replaced(units, words, 1000, random.Random(0))
    assert sum(piece.text != units.texts[piece.source] for piece in replaced) == 1000
    inserted = _operations.inserted(units, words, 1000, random.Random(0))
    assert len(inserted) == 11_000
    assert [piece for piece in inserted if not piece.inserted] == [Piece(t, i) for i, t in enumerate(units.texts)]
    deleted = _operations.deleted(units, 0.1, random.Random(0)) or []
    assert 1 - len(deleted) / 10_000 == pytest.approx(0.1, abs=0.01)
    swapped = _operations.swapped(units, 1000, random.Random(0)) or []
    moved = sum(piece.source != place for place, piece in enumerate(swapped))
    assert 0.17 < moved / 10_000 < 0.2  # 1000 swaps of two words; some words move twice
    assert Counter(piece.source for piece in swapped) == Counter(range(10_000))


def test_eda_makes_each_copy_by_one_of_four_operations_equally_often() -> None:
    text = "word1 word2 word3 word4 word5 word6 word7 word8 word9 word10"
    counts: Counter[str] = Counter()
    one = Eda(alpha=0.3, synonyms=SYNONYMS)
    for seed in range(2000):
        words: list[str] = (one.rewrite(text, random.Random(seed)) or text).split()
        same = sum(a == b for a, b in zip(words, text.split(), strict=False))
        kept = Counter[str](words) & Counter[str](text.split())
        if len(words) == 13:
            counts["inserted"] += 1
            assert [w for w in iter(words) if w in text.split()][:1]
        elif len(words) == 10 and sorted(words) != sorted(text.split()):
            counts["replaced"] += 1
            assert same == 7
        elif len(words) == 10:
            counts["swapped or nothing deleted"] += 1
        else:
            counts["deleted"] += 1
            assert sum(kept.values()) == len(words) < 10
    assert counts["inserted"] / 2000 == pytest.approx(0.25, abs=0.03)
    # a replaced word may become another word of the text, but not always
    assert 0.15 < counts["replaced"] / 2000 <= 0.28


def test_synonyms_keep_case_and_punctuation_and_chinese_words_are_found_in_the_text() -> None:
    units = split("(Red), HAMMER! the saw")[0]
    found = synonym_lists.replaceable(units, [True] * 4, SYNONYMS)
    assert [{one.in_place(other) for other in one.synonyms} for one in found] == [
        {"(Crimson),", "(Scarlet),"},
        {"MALLET!"},
        {"cutter"},
    ]
    chinese = split(CHINESE)[0]
    found = synonym_lists.replaceable(chinese, [True] * len(chinese), SYNONYMS)
    assert [("".join(chinese[one.start : one.end]), {*map(one.alone, one.synonyms)}) for one in found] == [
        ("天气", {"气候"}),
        ("高兴", {"开心", "愉快"}),
        ("公园", {"花园"}),
    ]
    replaced = _operations.replaced(Units.of(chinese), found, 3, random.Random(1))
    assert SplitText.of(CHINESE).edited(replaced)[0] in {
        f"今天气候很好,我们{glad}地去花园吧。" for glad in ("开心", "愉快")
    }
    for seed in range(30):  # an inserted word never splits one that is in the list
        text = SplitText.of(CHINESE).edited(_operations.inserted(Units.of(chinese), found, 1, random.Random(seed)))[0]
        assert all(word in text for word in ("天气", "高兴", "公园"))


def test_texts_without_synonyms_are_noted_once_and_still_edited() -> None:
    task = tasks.get("text_classification")(labels=("a", "b"), pair=False)  # type: ignore[call-arg]
    rows = [{"text": "один два три четыре пять", "label": "a"}, {"text": "red saw", "label": "b"}]
    listener = Listener()
    added = copies({"eda": EDITS["eda"]}, rows, task, 0, None, listener)["eda"]
    assert any(not row["text"].isascii() for row in added)
    assert [note for note in listener.notes if "eda" in note] == [
        "augmentations.eda: 1 of 2 texts have no word with a synonym in synonym_groups.txt; theirs are swapped and"
        " deleted"
    ]


def write_database(path: Path, records: dict[str, Any]) -> Path:
    """A Berkeley DB 1.85 hash file of one page behind its header, as synnamon's is."""
    items, end = [], synonym_lists.PAGE
    page = bytearray(synonym_lists.PAGE)
    for word, record in records.items():
        for value in (word.encode(), record if isinstance(record, bytes) else pickle.dumps(record, protocol=4)):
            end -= len(value)
            page[end : end + len(value)] = value
            items.append(end)
    struct.pack_into(f"<{len(items) + 1}H", page, 0, len(items), *items)
    path.write_bytes(bytes(synonym_lists.PAGE) + page)
    return path


def test_the_downloaded_list_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {"glad": {"adj": ["happy", "of good cheer", "Glad"], "noun": ["gladiola"]}, "odd": {"adj": ["x y"]}}
    files = {synonym_lists.ENGLISH[0]: write_database(tmp_path / "en.db", records)}
    monkeypatch.setattr(synonym_lists, "fetch", lambda source, sha256: files[source])
    synonym_lists._groups.cache_clear()
    try:
        units = ["Glad", "odd", "the", "高", "兴", "公", "园"]
        found = synonym_lists.replaceable(units, [True] * len(units), None)
        assert [(one.start, one.end, {*map(one.alone, one.synonyms)}) for one in found] == [
            (0, 1, {"Happy", "Gladiola"})
        ]
        synonym_lists._groups.cache_clear()
        write_database(files[synonym_lists.ENGLISH[0]], {"glad": pickle.dumps(Path("a"), protocol=4)})
        with pytest.raises(pickle.UnpicklingError, match="pathlib"):
            synonym_lists.replaceable(["glad"], [True], None)
    finally:
        synonym_lists._groups.cache_clear()


# typos


def test_typos_by_hand() -> None:
    assert set(NEIGHBOURS["g"]) == set("ftyhbv")
    assert set(NEIGHBOURS["a"]) == set("qwsz")
    found = {misspelt("The", random.Random(seed)) for seed in range(400)}
    slips = {f"{a}he" for a in "RYFG"} | {f"T{b}e" for b in NEIGHBOURS["h"]} | {f"Th{c}" for c in NEIGHBOURS["e"]}
    assert found == slips | {"Hte", "Teh", "He", "Te", "Th", "Tthe", "Thhe", "Thee"}
    assert {misspelt("42%", random.Random(seed)) for seed in range(20)} == {"42%"}
    assert {misspelt('"I"', random.Random(seed)) for seed in range(99)} == {'"II"', '"U"', '"O"', '"J"', '"K"'}
    assert {misspelt("天气", random.Random(seed)) for seed in range(99)} == {"天天气", "天气气", "天", "气", "气天"}
    assert {misspelt("éà", random.Random(seed)) for seed in range(99)} == {"ééà", "éàà", "é", "à", "àé"}


@given(st.text(st.sampled_from("aBcD,.'é1"), min_size=1, max_size=8), st.integers(0, 99))
def test_a_typo_is_one_slip(word: str, seed: int) -> None:
    found = misspelt(word, random.Random(seed))
    assert abs(len(found) - len(word)) <= 1
    assert [c for c in found if not c.isalpha()] == [c for c in word if not c.isalpha()]
    assert found[0].isupper() or not (word[0].isupper() and found[0].isalpha())


def test_share_of_typos() -> None:
    units = Units.of(["banana"] * 10_000)
    pieces = Typos(probability=0.1).edit(units, random.Random(0)) or []
    assert sum(piece.text != "banana" for piece in pieces) / 10_000 == pytest.approx(0.1, abs=0.01)
    for seed in range(50):
        found = Typos(probability=0.3).rewrite(CHINESE, random.Random(seed)) or CHINESE
        assert set(found) <= set(CHINESE)
        assert all(mark in found for mark in ",。")
        assert " " not in found


# token_mask


def test_masked_words_become_the_mask_token(tokenizer: Any) -> None:
    task = tasks.get("text_classification")(labels=("a", "b"), pair=False)  # type: ignore[call-arg]
    texts = ["word1 word2 word3 word4 word5 word6", "word1 [MASK] word2 word3 word4"]
    rows = [{"text": text, "label": "a"} for text in texts]
    added = copies({"token_mask": TokenMask(copies=3, probability=0.5)}, rows, task, 0, tokenizer)["token_mask"]
    assert added
    assert all(row[SPELLED] and "[MASK]" in row["text"] and "word6" in texts[0] for row in added)
    tokenizer.split_special_tokens = True
    ids = columns_of([*rows, *added, rows[0]], task, tokenizer, training=True)
    masks = [tokens.count(tokenizer.mask_token_id) for tokens in ids["input_ids"]]
    assert masks == [0, 0, *(row["text"].count("[MASK]") for row in added), 0]
    assert all(len(tokens) == 8 for tokens in ids["input_ids"][2:])
    assert ids["row"] == list(range(len(added) + 3))
    assert tokenizer.split_special_tokens is True
    split_ids = columns_of([rows[1]], task, tokenizer)["input_ids"][0]
    assert tokenizer.mask_token_id not in split_ids


# targets follow

tagged = st.lists(
    st.tuples(st.sampled_from(WORDS), st.sampled_from(["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"])),
    min_size=1,
    max_size=12,
)


def entities(row: dict[str, Any], task: TokenClassification) -> Counter[tuple[str, tuple[str, ...]]]:
    return Counter((one.type, tuple(row["tokens"][one.start : one.end])) for one in tags.spans(task.reference(row)))


@pytest.mark.parametrize("name", EDITS)
@given(words=tagged, seed=st.integers(0, 99), scheme=st.sampled_from(["bio", "iob1"]))
def test_entities_stay_whole(name: str, words: Any, seed: int, scheme: Any) -> None:
    task = TokenClassification(scheme=scheme, read_as=scheme, labels=("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))
    row = task.read({"tokens": [word for word, _ in words], "tags": [tag for _, tag in words]})
    found = edited(EDITS[name], row, task, seed)
    assert len(found["tokens"]) == len(found["tags"]) > 0
    assert all(found["tokens"])
    assert tags.to_bio(found["tags"], "bio")[1] == [] or found == row  # a row that changes has valid tags
    assert entities(found, task) == entities(row, task)
    order = [one.type for one in tags.spans(task.reference(found))]
    assert order == [one.type for one in tags.spans(task.reference(row))]


def test_tags_move_with_their_words_by_hand() -> None:
    task = TokenClassification(scheme="none", read_as="none", labels=("N", "V"))
    row = task.read({"tokens": "red saw cuts", "tags": "A N V"})
    pairs = dict(zip(row["tokens"], row["tags"], strict=True))
    for seed in range(20):
        found = edited(RandomSwap(), row, task, seed)
        assert found["tokens"] != row["tokens"]
        assert dict(zip(found["tokens"], found["tags"], strict=True)) == pairs
    units = tags.units(["a", "b", "c", "d"], ["O", "B-X", "I-X", "O"])
    assert units == (("a", "b c", "d"), (True, False, True))
    pieces = [Piece("e", 2, True), Piece("b c", 1), Piece("D", 2)]
    assert tags.edited(["a", "b", "c", "d"], ["O", "B-X", "I-X", "O"], pieces) == (
        ["e", "b", "c", "D"],
        ["O", "B-X", "I-X", "O"],
    )
    iob = TokenClassification(scheme="iob1", read_as="iob1", labels=("O", "B-X", "I-X"))
    row = iob.read({"tokens": "a b c", "tags": "I-X O I-X"})
    gone = iob.with_edits(row, [[Piece("a", 0), Piece("c", 2)]])  # without O between, the second must begin with B
    assert iob.reference(gone) == ["B-X", "B-X"]


def question_rows(draw: Any) -> dict[str, Any]:
    words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12))
    gaps = draw(st.lists(st.sampled_from([" ", "  ", "\n"]), min_size=len(words), max_size=len(words)))
    context = "".join(gap + word for gap, word in zip(gaps, words, strict=True)) + draw(st.sampled_from(["", " "]))
    answers = []
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(context) - 1))
        text = context[start : draw(st.integers(start + 1, len(context)))]
        if text.strip():
            answers.append({"text": text.strip(), "answer_start": start + len(text) - len(text.lstrip())})
    return {"context": context, "question": draw(st.sampled_from(["red word1 saw", "公园在哪里"])), "answers": answers}


@pytest.mark.parametrize("name", EDITS)
@given(row=st.composite(question_rows)(), seed=st.integers(0, 99))
@example(row={"context": " 北 京", "question": "red word1 saw", "answers": []}, seed=3)
def test_answers_stay_at_their_positions(name: str, row: dict[str, Any], seed: int) -> None:
    found = edited(EDITS[name], row, QuestionAnswering(), seed)
    assert [answer["text"] for answer in found["answers"]] == [answer["text"] for answer in row["answers"]]
    for answer in found["answers"]:
        assert found["context"][answer["answer_start"] :].startswith(answer["text"])
    assert found["context"].strip()
    assert found["question"].strip()


def relation_rows(draw: Any) -> str:
    words = draw(st.lists(st.sampled_from(WORDS), min_size=4, max_size=12))
    (a, b), (c, d) = (
        sorted(draw(st.permutations(range(len(words) + 1)))[:2]),
        sorted(draw(st.permutations(range(len(words) + 1)))[:2]),
    )
    text, places = " ".join(words), [sum(len(w) + 1 for w in words[:i]) for i in range(len(words) + 1)]
    try:
        return marked.from_offsets(text, [places[a], places[b] - 1, places[c], places[d] - 1])
    except ValueError:  # the entities cross
        return marked.from_offsets(text, [places[0], places[1] - 1, places[2], places[3] - 1])


@pytest.mark.parametrize("name", EDITS)
@given(text=st.composite(relation_rows)(), seed=st.integers(0, 99))
def test_marked_entities_stay_whole(name: str, text: str, seed: int) -> None:
    task = RelationExtraction(labels=("a", "b"))
    found = edited(EDITS[name], {"text": text, "label": "a"}, task, seed)["text"]
    assert marked.canonical(found) == found.strip()
    for i in (1, 2):
        of = [t[t.index(f"<e{i}>") : t.index(f"</e{i}>")] for t in (text, found)]
        assert of[0] == of[1]
    assert found.index("<e1>") < found.index("<e2>") or text.index("<e2>") < text.index("<e1>")


# through the command line


@pytest.mark.slow
@pytest.mark.parametrize("task_name", ["token_classification", "question_answering", "relation_extraction"])
def test_tasks_with_positions_train_with_every_edit_of_words(
    task_name: str, bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = tasks.get(task_name)
    rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in cls.samples] * 4)
    data = {"validation": str(rows), "test": str(rows), "deduplicate": "none"}
    chosen: dict[str, Any] = {name: {"copies": 4, "probability": 0.5} for name in EDITS}
    chosen |= {"eda": {"synonyms": SYNONYMS, "alpha": 0.3}, "random_swap": {"copies": 2}}
    task = {"name": task_name, "max_length": 32, **cls.sample_settings}
    file = write_recipe(
        tmp_path / "tiny.yaml", bases("bert"), rows, data=data, task=task, train={"epochs": 2}, augmentations=chosen
    )
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 0
    result = Run(tmp_path / "run").result()
    assert result["augmentations"] == [*chosen]
    assert result["data"]["augmented"] > 0
    assert result["validation"]["loss"] < result["before"]["loss"]
    ready = prepare(recipes.load(str(file)).recipe)
    assert all(ready.added.values())
    ids = ready.encoded["train"]["input_ids"]
    number = sum(len(rows) for name, rows in ready.added.items() if name != "token_mask")
    assert sum(ready.base.tokenizer.mask_token_id in tokens for tokens in ids) == len(ready.encoded["train"]) - (
        len(ready.splits.train) + number
    )


@pytest.mark.slow
def test_a_resumed_run_and_two_processes_see_the_same_copies(recipe_file: Path, tmp_path: Path) -> None:
    short = ["augmentations=[typos, token_mask]", "train.epochs=1", "data.train_rows=100", "base.dropout=0.1"]
    whole, _ = train_tiny(recipe_file, tmp_path / "whole", *short)
    with power_cut(5):
        train_tiny(recipe_file, tmp_path / "died", *short, "train.checkpoint_seconds=0")
    died, _ = train_tiny(recipe_file, tmp_path / "died", *short, resume=True)
    assert losses(died) == losses(whole)
    assert_same_weights(whole, died)
    one, _ = train_tiny(recipe_file, tmp_path / "one", *short, "base.dropout=0", "train.micro_batch_size=4")
    train_in_two(recipe_file, tmp_path / "two", *short, "base.dropout=0")
    assert losses(tmp_path / "two") == pytest.approx(losses(one), abs=2e-5)


@pytest.mark.slow
def test_show_prints_copies_below_their_row(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["show", str(recipe_file), "--sample", "2", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert list(plain) == ["sample"]
    chosen = ["augmentations=[random_swap, token_mask]", "augmentations.token_mask.probability=0.9"]
    assert cli.run(["show", str(recipe_file), *chosen, "--sample", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sample"] == plain["sample"]
    assert [[one["augmentation"] for one in some] for some in found["augmented"]] == [["random_swap", "token_mask"]] * 2
    for own, (swapped, masked) in zip(found["sample"], found["augmented"], strict=True):
        assert sorted(swapped["text"].split()) == sorted(own.split())
        assert "[MASK]" in masked["text"]
    assert cli.run(["show", str(recipe_file), *chosen, "--sample", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("---")]
    assert lines == [f"--- {n}{by}" for n in (1, 2) for by in ("", ", copied by random_swap", ", copied by token_mask")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["augmentations.eda.alpha=1"], "augmentations.eda.alpha: input should be less than 1"),
        (["augmentations.eda.synonyms=nowhere.txt"], "augmentations.eda.synonyms:"),
        (["augmentations.typos.probability=0"], "augmentations.typos.probability: input should be greater than 0"),
        (["augmentations=back_translation"], "augmentations.back_translation: needs a model for each direction"),
        (["augmentations.back_translation.copies=2"], "augmentations.back_translation.copies: input should be less"),
    ],
)
def test_invalid_settings_are_refused(
    overrides: list[str], message: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(recipe_file), *overrides, "--out", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_mask_is_refused(
    bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "base"
    folder.mkdir()
    for file in bases("llama").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(60))
    file = write_recipe(tmp_path / "r.yaml", folder, rows, task="text_classification", augmentations=["token_mask"])
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 2
    assert "token_mask: the base's tokenizer has no mask token; set" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
    ready = prepare(recipes.load(str(file), ["augmentations.token_mask.mask=_"]).recipe)
    assert all("_" in row["text"] for row in ready.added["token_mask"])


def test_an_empty_copy_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks.get("text_classification")(labels=("a", "b"), pair=False)  # type: ignore[call-arg]
    monkeypatch.setattr(RandomSwap, "edit", lambda self, units, draw: [])
    listener = Listener()
    assert copies({"random_swap": RandomSwap()}, [{"text": "a b", "label": "a"}], task, 0, None, listener) == {
        "random_swap": []
    }
    assert listener.notes == ["augmentations.random_swap: 1 copies would have an empty text, and were not added"]
    (tmp_path / "rows.jsonl").write_text('{"text": "red saw"}\n', "utf-8")
    with pytest.raises(UserError, match="is not a list of synonyms, since it has the line"):
        synonym_lists._groups(str(tmp_path / "rows.jsonl"))
    (tmp_path / "none.txt").write_text("red\n\nred\n", "utf-8")
    with pytest.raises(UserError, match="has no line with two synonyms"):
        synonym_lists._groups(str(tmp_path / "none.txt"))
