"""Which rows go where, and which stay: given files whole, repeats, small files, rows that cannot be used."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Listener, make_rows, write_csv, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from pefttools.data.hash_split import hash_split, place
from pefttools.data.rows import NAMES, Splits
from pefttools.data.settings import DataSettings, FileSettings
from pefttools.data.splitting import load_splits
from pefttools.errors import UserError
from pefttools.tasks.causal_lm import CausalLM
from pefttools.tasks.regression import Regression
from pefttools.tasks.text_classification import TextClassification
from pefttools.tasks.token_classification import TokenClassification

TASK = TextClassification()
SHARES = {"test": 0.15, "validation": 0.1}


def splits_of(rows: list[dict[str, str]], folder: Path, listener: Listener | None = None, **values: Any) -> Splits:
    folder.mkdir(exist_ok=True)
    data = DataSettings.model_validate({"train": str(write_csv(folder / "rows.csv", rows)), **values})
    return load_splits(data, TASK, listener or Listener())


def texts(rows: list[dict[str, Any]]) -> set[str]:
    return {row["text"] for row in rows}


def test_a_row_never_moves_when_others_are_added(tmp_path: Path) -> None:
    rows = make_rows(400, seed=1)
    some, more = splits_of(rows[:150], tmp_path / "a"), splits_of(list(reversed(rows)), tmp_path / "b")
    for name, part in some.named().items():
        assert part
        assert texts(part) <= texts(more.named()[name])
    assert abs(len(more.test) / 400 - 0.15) < 0.05


@pytest.mark.parametrize(
    ("mode", "repeats"),
    [("overlap", (2, 2, 2)), ("none", (2, 2, 2)), ("train", (1, 2, 2)), ("all", (1, 1, 1)), (True, (1, 1, 1))],
)
def test_repeated_rows_of_one_file(tmp_path: Path, mode: Any, repeats: tuple[int, ...]) -> None:
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(100)]
    once, twice = splits_of(rows, tmp_path / "a"), splits_of([*rows, *rows], tmp_path / "b", deduplicate=mode)
    for (name, part), number in zip(twice.named().items(), repeats, strict=True):
        assert Counter(row["text"] for row in part) == dict.fromkeys(texts(once.named()[name]), number)
    assert twice.left_out.get("repeated", 0) == 200 - sum(map(len, twice.named().values()))


@pytest.mark.parametrize("mode", ["overlap", "train", "all", "none"])
def test_given_files_are_scored_whole(tmp_path: Path, mode: str) -> None:
    """Repeats within a test file, and what validation shares with it, stay; training loses what they hold."""
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(60)]
    test = write_csv(tmp_path / "test.csv", [*rows[:10], *rows[:5]])
    validation = write_csv(tmp_path / "validation.csv", rows[8:20])
    told = Listener()
    splits = splits_of(
        [*rows, rows[40], rows[41]], tmp_path / "a", told, test=str(test), validation=str(validation), deduplicate=mode
    )
    assert (len(splits.test), len(splits.validation)) == (15, 12)
    train = {"overlap": 42, "train": 40, "all": 40, "none": 62}[mode]
    assert len(splits.train) == train
    assert "data.validation: 2 of 12 rows are in data.test too" in told.warnings[0]
    if mode == "none":
        assert (
            "data.train: 10 of 62 rows are in data.test too, so the evaluation includes rows that were trained on"
            in told.warnings
        )
    else:
        assert splits.left_out["also in test"] == 10
        assert splits.left_out["also in validation"] == 10
        assert not texts(splits.train) & (texts(splits.test) | texts(splits.validation))


def test_conll_files_with_repeated_short_sentences(tmp_path: Path) -> None:
    """As in CoNLL-2003: scores and headlines come again and again, within the files and across them."""

    def conll(name: str, sentences: list[str]) -> str:
        file = tmp_path / name
        file.write_text("\n\n".join("\n".join(f"{w} {'B-PER' if w[0].isupper() else 'O'}" for w in s.split())
                                    for s in sentences) + "\n")  # fmt: skip
        return str(file)

    results = ["Bern 1 1", "Bern 1 1", "-", "Spain 2 0"]
    train = conll("train.conll", [*results, "Anna sings", "Otto runs", "Otto runs"])
    data = {
        "train": train,
        "validation": conll("dev.conll", ["-", "-", "Mia swims"]),
        "test": conll("test.conll", results),
    }
    splits = load_splits(DataSettings.model_validate(data), TokenClassification())
    assert [" ".join(row["tokens"]) for row in splits.test] == results
    assert [" ".join(row["tokens"]) for row in splits.train] == ["Anna sings", "Otto runs", "Otto runs"]
    assert len(splits.validation) == 3
    assert splits.left_out == {"also in test": 4}


def test_one_file_as_validation_and_test(tmp_path: Path) -> None:
    rows, held = make_rows(60, seed=1), write_csv(tmp_path / "held.csv", make_rows(20, seed=2))
    told = Listener()
    splits = splits_of(rows, tmp_path / "a", told, validation=str(held), test=str(held))
    assert splits.validation == splits.test
    assert len(splits.test) == 20
    (message,) = told.warnings
    assert "data.validation: all rows are in data.test too" in message


@pytest.mark.parametrize("name", ["validation", "test"])
def test_one_file_to_train_on_and_to_score(tmp_path: Path, name: str) -> None:
    rows = make_rows(60)
    same: dict[str, Any] = {name: str(tmp_path / "a" / "rows.csv")}
    with pytest.raises(UserError, match=f"rows.csv is in data.{name} too, the same file.*data.deduplicate=none"):
        splits_of(rows, tmp_path / "a", **same)
    told = Listener()
    splits = splits_of(rows, tmp_path / "a", told, deduplicate="none", **same)
    assert len(splits.named()[name]) == 60
    assert any(f"60 of 60 rows are in data.{name} too" in message for message in told.warnings)


def test_contradicting_repeats_are_told(tmp_path: Path) -> None:
    rows = [*make_rows(60), {"text": make_rows(60)[0]["text"] + " ", "label": "tool"}]
    told = Listener()
    splits = splits_of(rows, tmp_path / "a", told)
    assert told.warnings == [
        "data.train: 1 rows repeat the text of an earlier row with another label, for example row 61 that of row 1;"
        " all of them are used"
    ]
    assert sum(map(len, splits.named().values())) == 61
    splits_of(rows, tmp_path / "a", told, deduplicate="all")
    assert told.warnings[-1].endswith("training uses only the first of them")


def test_many_answers_to_one_prompt(tmp_path: Path) -> None:
    """None is a repeat of another, and no prompt is on both sides of a split."""
    prompts = ["Tell me a joke.", "Name a fruit.", "Say hello.", "Count to ten."]
    rows = [{"instruction": p, "output": f"answer {i}"} for i in range(50) for p in prompts]
    data = DataSettings(train=FileSettings(source=str(write_rows(tmp_path / "rows.jsonl", rows))))
    splits = load_splits(data, CausalLM())
    assert sum(map(len, splits.named().values())) == 200
    assert splits.left_out == {}
    asked = [{row["prompt"] for row in part} for part in splits.named().values()]
    assert all(asked)
    assert sum(map(len, asked)) == 4
    told = Listener()
    one = [row for row in rows if row["instruction"] == prompts[0]]
    data = DataSettings(train=FileSettings(source=str(write_rows(tmp_path / "rows.jsonl", one))))
    splits = load_splits(data, CausalLM(), told)
    assert all(splits.named().values())
    assert "have 1 different prompts, too few to split by" in told.warnings[0]


def test_prompts_that_are_trained_on_and_scored_are_told(tmp_path: Path) -> None:
    held = write_rows(tmp_path / "test.jsonl", [{"prompt": "p 1", "completion": c} for c in ("a", "b")])
    rows = [{"prompt": f"p {i % 20}", "completion": c} for i in range(40) for c in "bc"[i // 20]]
    train = write_rows(tmp_path / "train.jsonl", rows)
    told = Listener()
    splits = load_splits(DataSettings.model_validate({"train": str(train), "test": str(held)}), CausalLM(), told)
    assert splits.left_out == {"also in test": 1}
    assert told.warnings == [
        "data.train: 1 rows have the prompt of a test row but a different answer; they remain in training"
    ]


@pytest.mark.parametrize("number", [3, 5, 28])
def test_small_files_have_a_row_in_every_split(tmp_path: Path, number: int) -> None:
    for seed in range(20):
        rows = [{"text": f"text {i} of {seed}", "label": "ab"[i % 2 if number > 3 else 0]} for i in range(number)]
        if number == 3:
            data = DataSettings(
                train=FileSettings(source=str(write_csv(tmp_path / "n.csv", [{**r, "label": "1"} for r in rows])))
            )
            splits = load_splits(data, Regression())
        else:
            splits = splits_of(rows, tmp_path / "a")
            assert {row["label"] for row in splits.train} == {"a", "b"}
        if number == 28:
            assert {row["label"] for row in splits.test} == {row["label"] for row in splits.validation} == {"a", "b"}
        assert all(splits.named().values())
        assert sum(map(len, splits.named().values())) == number


def test_files_too_small_for_three_splits(tmp_path: Path) -> None:
    told = Listener()
    data = DataSettings(train=FileSettings(source=str(write_csv(tmp_path / "n.csv", [
        {"text": "one", "label": "1"}, {"text": "two", "label": "2"}]))))  # fmt: skip
    splits = load_splits(data, Regression(), told)
    assert [len(part) for part in splits.named().values()] == [1, 1, 0]
    assert told.warnings == [
        "data.train: its 2 rows are too few for a test split; the final evaluation uses the validation rows"
    ]
    with pytest.raises(UserError, match="its 2 rows are too few for training and validation"):
        splits_of([{"text": "one", "label": "a"}, {"text": "two", "label": "b"}], tmp_path / "a")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200)), min_size=3, max_size=60),
    st.lists(st.tuples(st.integers(0, 3), st.integers(201, 400)), max_size=30),
    st.integers(0, 3),
)
def test_texts_move_only_to_fill_a_gap(some: Any, more: Any, seed: int) -> None:
    """A text that is where its hash puts it in a file stays there in a larger one, but for those that fill gaps."""

    def texts_of(pairs: Any) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name, text in pairs:
            found.setdefault(f"t{text}", set()).add(f"c{name}")
        return found

    def by_hash(text: str) -> str:
        where = place(text, seed)
        return "test" if where < 0.15 else "validation" if where < 0.25 else "train"

    few: list[set[str]] = []
    small, large = texts_of(some), texts_of([*some, *more])
    for texts in (small, large):
        found = hash_split(texts, SHARES, seed)
        numbers = Counter((name, split) for text, split in found.items() for name in (*texts[text], None))
        classes = {name for names in texts.values() for name in names}
        assert all(numbers[name, "train"] for name in classes)
        few.append({text for text in texts if found[text] != by_hash(text)})
        assert len(few[-1]) <= 3 * (len(classes) + 1)
        if len(texts) > len(classes) + 1:
            assert numbers[None, "validation"]
    before, after = hash_split(small, SHARES, seed), hash_split(large, SHARES, seed)
    assert {text for text in small if before[text] != after[text]} <= few[0] | few[1]


def test_no_text_of_a_common_class_moves() -> None:
    texts = {f"text {i}": {"abc"[i % 3]} for i in range(300)}
    texts |= {f"seldom {i}": {"d"} for i in range(2)}
    found = hash_split(texts, SHARES, 0)
    edges = {text: place(text, 0) for text in texts if not text.startswith("seldom")}
    assert all((found[text] == "test") == (edges[text] < 0.15) for text in edges)
    assert all((found[text] == "train") == (edges[text] >= 0.25) for text in edges)


def test_the_order_of_rows_decides_nothing() -> None:
    texts = {f"text {i}": {"ab"[i % 2]} for i in range(30)}
    assert hash_split(texts, SHARES, 0) == hash_split(dict(reversed(texts.items())), SHARES, 0)


def test_a_class_of_one_row_is_trained_on(tmp_path: Path) -> None:
    for i in range(12):
        rows = [*make_rows(90), {"text": f"word{i} kiwi", "label": "bird"}]
        splits = splits_of(rows, tmp_path / "a")
        assert "bird" in {row["label"] for row in splits.train}
        TASK.fit(splits)


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    rows = make_rows(100)
    rows[4]["text"], rows[9]["label"], rows[20]["text"] = " ", "", ""
    with pytest.raises(UserError) as refused:
        splits_of(rows, tmp_path / "a")
    assert "row 5 has no text; row 10 has no label; row 21 has no text" in str(refused.value)
    assert "data.invalid_rows=skip" in str(refused.value)
    told = Listener()
    splits = splits_of(rows, tmp_path / "a", told, invalid_rows="skip")
    assert sum(map(len, splits.named().values())) == 97
    assert splits.left_out == {"invalid": 3}
    assert splits.invalid == {"train": {"has no text": ["5", "21"], "has no label": ["10"]}}
    assert told.warnings[0].endswith(
        "3 rows cannot be used and are left out: has no text: rows 5, 21; has no label: row 10"
    )
    ids = {i for name in NAMES for i in splits.ids[name]}
    assert ids == {str(i) for i in range(1, 101)} - {"5", "10", "21"}  # numbers are those in the file
    with pytest.raises(UserError, match=r"no row can be used \(2 rows: invalid\)"):
        splits_of([{"text": "", "label": "a"}, {"text": "b", "label": ""}], tmp_path / "a", invalid_rows="skip")


def test_bins_and_rows_without_a_number(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": str(i / 10 - 2)} for i in range(41)]
    bins = {"edges": [-0.5, 0.5], "names": ["bad", None, "good"]}
    splits = splits_of(rows, tmp_path / "a", bins=bins)
    labels = [row["label"] for part in splits.named().values() for row in part]
    assert (labels.count("bad"), labels.count("good"), splits.left_out) == (15, 16, {"in a bin without a name": 10})
    rows[7]["label"] = "n/a"
    with pytest.raises(UserError, match=r"row 8 has a label that is not a number, 'n/a', but data.bins needs numbers"):
        splits_of(rows, tmp_path / "a", bins=bins)
    splits = splits_of(rows, tmp_path / "a", bins=bins, invalid_rows="skip")
    assert splits.left_out == {"in a bin without a name": 10, "invalid": 1}
    renamed = splits_of(
        [{"text": f"t {i}", "label": str(i % 2)} for i in range(50)], tmp_path / "b", labels={"0": "ham", "1": "spam"}
    )
    assert {row["label"] for row in renamed.train} == {"ham", "spam"}


def test_rare_classes_and_fewer_rows(tmp_path: Path) -> None:
    rows = [*make_rows(90), {"text": "word1 kiwi", "label": "bird"}]
    assert splits_of(rows, tmp_path / "a", min_class_rows=5).left_out == {"of a rare class": 1}
    few, fewer = splits_of(rows, tmp_path / "b", train_rows=40), splits_of(rows, tmp_path / "c", train_rows=10)
    assert len(few.train) == 40
    assert len(fewer.train) == 10
    assert texts(fewer.train) < texts(few.train)
    assert few.test == fewer.test
    assert len(few.ids["train"]) == 40


def test_a_column_that_comes_late_is_read(tmp_path: Path) -> None:
    """A JSON-lines file whose first rows lack a field."""
    rows: list[dict[str, Any]] = [{"instruction": f"say {i}", "output": f"{i}"} for i in range(150)]
    rows += [{"instruction": "sum up", "input": f"text {i}", "output": "it"} for i in range(50)]
    data = DataSettings(train=FileSettings(source=str(write_rows(tmp_path / "rows.jsonl", rows))))
    splits = load_splits(data, CausalLM())
    assert sum("text" in json.dumps(row) for part in splits.named().values() for row in part) == 50
