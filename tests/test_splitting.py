"""Splits: files stay whole; repeated rows, small files, invalid rows, and stable hashing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Listener, make_rows, write_csv, write_rows

from pefttools.data.rows import NAMES, Splits
from pefttools.data.settings import DataSettings, FileSettings
from pefttools.data.splitting import load_splits
from pefttools.errors import UserError
from pefttools.tasks.causal_lm import CausalLM
from pefttools.tasks.regression import Regression
from pefttools.tasks.text_classification import TextClassification
from pefttools.tasks.token_classification import TokenClassification

TASK = TextClassification()


def splits_of(rows: list[dict[str, str]], folder: Path, listener: Listener | None = None, **values: Any) -> Splits:
    folder.mkdir(exist_ok=True)
    data = DataSettings.model_validate({"train": str(write_csv(folder / "rows.csv", rows)), **values})
    return load_splits(data, TASK, listener or Listener())


def texts(rows: Sequence[dict[str, Any]]) -> set[str]:
    return {row["text"] for row in rows}


def test_rows_stay_in_their_split_when_others_are_added(tmp_path: Path) -> None:
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
def test_deduplicate_modes_on_repeated_rows(tmp_path: Path, mode: Any, repeats: tuple[int, ...]) -> None:
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(100)]
    once, twice = splits_of(rows, tmp_path / "a"), splits_of([*rows, *rows], tmp_path / "b", deduplicate=mode)
    for (name, part), number in zip(twice.named().items(), repeats, strict=True):
        assert Counter(row["text"] for row in part) == dict.fromkeys(texts(once.named()[name]), number)
    assert twice.left_out.get("repeated", 0) == 200 - sum(map(len, twice.named().values()))


@pytest.mark.parametrize("mode", ["overlap", "train", "all", "none"])
def test_validation_and_test_files_stay_whole(tmp_path: Path, mode: str) -> None:
    """Rows that repeat within or between them stay; equal rows are removed from training."""
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(60)]
    test = write_csv(tmp_path / "test.csv", [*rows[:10], *rows[:5]])
    validation = write_csv(tmp_path / "validation.csv", rows[8:20])
    listener = Listener()
    splits = splits_of(
        [*rows, rows[40], rows[41]],
        tmp_path / "a",
        listener,
        test=str(test),
        validation=str(validation),
        deduplicate=mode,
    )
    assert (len(splits.test), len(splits.validation)) == (15, 12)
    train = {"overlap": 42, "train": 40, "all": 40, "none": 62}[mode]
    assert len(splits.train) == train
    assert "data.validation: 2 of 12 rows are in data.test too" in listener.warnings[0]
    if mode == "none":
        start = "data.train: 10 of 62 rows are in data.test too, so the evaluation includes rows that were trained on"
        assert any(warning.startswith(start) for warning in listener.warnings)
    else:
        assert splits.left_out["also in test"] == 10
        assert splits.left_out["also in validation"] == 10
        assert not texts(splits.train) & (texts(splits.test) | texts(splits.validation))


def test_sentences_repeated_across_conll_files_stay_in_the_test_file(tmp_path: Path) -> None:
    """As in CoNLL-2003, where scores and headlines repeat within and across files."""

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


def test_same_file_as_validation_and_test_warns(tmp_path: Path) -> None:
    rows, held_out = make_rows(60, seed=1), write_csv(tmp_path / "held.csv", make_rows(20, seed=2))
    listener = Listener()
    splits = splits_of(rows, tmp_path / "a", listener, validation=str(held_out), test=str(held_out))
    assert splits.validation == splits.test
    assert len(splits.test) == 20
    (message,) = listener.warnings
    assert "data.validation: all rows are in data.test too" in message


@pytest.mark.parametrize("name", ["validation", "test"])
def test_same_file_for_training_and_evaluation_is_refused(tmp_path: Path, name: str) -> None:
    rows = make_rows(60)
    same: dict[str, Any] = {name: str(tmp_path / "a" / "rows.csv")}
    with pytest.raises(UserError, match=f"rows.csv is in data.{name} too, the same file.*data.deduplicate=none"):
        splits_of(rows, tmp_path / "a", **same)
    listener = Listener()
    splits = splits_of(rows, tmp_path / "a", listener, deduplicate="none", **same)
    assert len(splits.named()[name]) == 60
    assert any(f"60 of 60 rows are in data.{name} too" in message for message in listener.warnings)


def test_repeated_rows_with_different_labels_warn(tmp_path: Path) -> None:
    rows = [*make_rows(60), {"text": make_rows(60)[0]["text"] + " ", "label": "tool"}]
    listener = Listener()
    splits = splits_of(rows, tmp_path / "a", listener)
    (warning,) = listener.warnings
    assert warning.startswith("data.train: 1 rows repeat the text of an earlier row with another label: 1 of 61 rows,")
    assert "for example row 61 that of row 1; all of them are used" in warning
    assert sum(map(len, splits.named().values())) == 61
    splits_of(rows, tmp_path / "a", listener, deduplicate="all")
    assert "training uses only the first of them" in listener.warnings[-1]


def test_rows_with_the_same_prompt_are_in_one_split(tmp_path: Path) -> None:
    """They are not repeats of each other, and no prompt is in two splits."""
    prompts = ["Tell me a joke.", "Name a fruit.", "Say hello.", "Count to ten."]
    rows = [{"instruction": p, "output": f"answer {i}"} for i in range(50) for p in prompts]
    data = DataSettings(train=FileSettings(source=str(write_rows(tmp_path / "rows.jsonl", rows))))
    splits = load_splits(data, CausalLM())
    assert sum(map(len, splits.named().values())) == 200
    assert splits.left_out == {}
    prompt_sets = [{row["prompt"] for row in part} for part in splits.named().values()]
    assert all(prompt_sets)
    assert sum(map(len, prompt_sets)) == 4
    listener = Listener()
    one = [row for row in rows if row["instruction"] == prompts[0]]
    data = DataSettings(train=FileSettings(source=str(write_rows(tmp_path / "rows.jsonl", one))))
    splits = load_splits(data, CausalLM(), listener)
    assert all(splits.named().values())
    assert "have 1 different prompts, too few to split by" in listener.warnings[0]


def test_prompts_in_training_and_test_warn(tmp_path: Path) -> None:
    held_out = write_rows(tmp_path / "test.jsonl", [{"prompt": "p 1", "completion": c} for c in ("a", "b")])
    rows = [{"prompt": f"p {i % 20}", "completion": c} for i in range(40) for c in "bc"[i // 20]]
    train = write_rows(tmp_path / "train.jsonl", rows)
    listener = Listener()
    splits = load_splits(
        DataSettings.model_validate({"train": str(train), "test": str(held_out)}), CausalLM(), listener
    )
    assert splits.left_out == {"also in test": 1}
    assert listener.warnings == [
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


def test_two_rows_are_too_few_for_three_splits(tmp_path: Path) -> None:
    listener = Listener()
    data = DataSettings(train=FileSettings(source=str(write_csv(tmp_path / "n.csv", [
        {"text": "one", "label": "1"}, {"text": "two", "label": "2"}]))))  # fmt: skip
    splits = load_splits(data, Regression(), listener)
    assert [len(part) for part in splits.named().values()] == [1, 1, 0]
    assert listener.warnings == [
        "data.train: 2 rows are too few to split off test rows; the final evaluation uses the validation rows, which"
        " also choose the checkpoint, so its scores are optimistic; set data.test to a file for independent ones"
    ]
    with pytest.raises(UserError, match="its 2 rows are too few for training and validation"):
        splits_of([{"text": "one", "label": "a"}, {"text": "two", "label": "b"}], tmp_path / "a")


def test_class_with_one_row_is_in_training(tmp_path: Path) -> None:
    for i in range(12):
        rows = [*make_rows(90), {"text": f"word{i} kiwi", "label": "bird"}]
        splits = splits_of(rows, tmp_path / "a")
        assert "bird" in {row["label"] for row in splits.train}
        TASK.fit(splits)


def test_invalid_rows_are_refused_or_skipped(tmp_path: Path) -> None:
    rows = make_rows(100)
    rows[4]["text"], rows[9]["label"], rows[20]["text"] = " ", "", ""
    with pytest.raises(UserError) as refused:
        splits_of(rows, tmp_path / "a")
    assert "row 5 has no text; row 10 has no label; row 21 has no text" in str(refused.value)
    assert "data.invalid_rows=skip" in str(refused.value)
    listener = Listener()
    splits = splits_of(rows, tmp_path / "a", listener, invalid_rows="skip")
    assert sum(map(len, splits.named().values())) == 97
    assert splits.left_out == {"invalid": 3}
    assert splits.invalid == {"train": {"has no text": ["5", "21"], "has no label": ["10"]}}
    assert listener.warnings[0].endswith(
        "3 rows cannot be used and are skipped: has no text: rows 5, 21; has no label: row 10"
    )
    ids = {i for name in NAMES for i in splits.ids[name]}
    assert ids == {str(i) for i in range(1, 101)} - {"5", "10", "21"}  # the ids are row numbers in the file
    with pytest.raises(UserError, match=r"no row can be used \(2 rows: invalid\)"):
        splits_of([{"text": "", "label": "a"}, {"text": "b", "label": ""}], tmp_path / "a", invalid_rows="skip")


def test_bins_make_classes_of_numbers(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": str(i / 10 - 2)} for i in range(41)]
    bins = {"edges": [-0.5, 0.5], "names": ["bad", None, "good"]}
    splits = splits_of(rows, tmp_path / "a", bins=bins)
    labels = [row["label"] for part in splits.named().values() for row in part]
    assert (labels.count("bad"), labels.count("good"), splits.left_out) == (15, 16, {"in a bin without a name": 10})
    rows[7]["label"] = "n/a"
    with pytest.raises(UserError, match=r"row 8 has the label 'n/a', but data.bins needs numbers"):
        splits_of(rows, tmp_path / "a", bins=bins)
    splits = splits_of(rows, tmp_path / "a", bins=bins, invalid_rows="skip")
    assert splits.left_out == {"in a bin without a name": 10, "invalid": 1}
    renamed = splits_of(
        [{"text": f"t {i}", "label": str(i % 2)} for i in range(50)], tmp_path / "b", labels={"0": "ham", "1": "spam"}
    )
    assert {row["label"] for row in renamed.train} == {"ham", "spam"}


def test_min_class_rows_and_train_rows(tmp_path: Path) -> None:
    rows = [*make_rows(90), {"text": "word1 kiwi", "label": "bird"}]
    assert splits_of(rows, tmp_path / "a", min_class_rows=5).left_out == {"of a rare class": 1}
    few, fewer = splits_of(rows, tmp_path / "b", train_rows=40), splits_of(rows, tmp_path / "c", train_rows=10)
    assert len(few.train) == 40
    assert len(fewer.train) == 10
    assert texts(fewer.train) < texts(few.train)
    assert few.test == fewer.test
    assert len(few.ids["train"]) == 40


def test_column_missing_from_the_first_rows_is_read(tmp_path: Path) -> None:
    """The first rows of the JSON-lines file lack the field."""
    rows: list[dict[str, Any]] = [{"instruction": f"say {i}", "output": f"{i}"} for i in range(150)]
    rows += [{"instruction": "sum up", "input": f"text {i}", "output": "it"} for i in range(50)]
    data = DataSettings(train=FileSettings(source=str(write_rows(tmp_path / "rows.jsonl", rows))))
    splits = load_splits(data, CausalLM())
    assert sum("text" in json.dumps(row) for part in splits.named().values() for row in part) == 50
