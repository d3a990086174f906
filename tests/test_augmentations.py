"""Augmentations copy training rows only, each copy from one row; those of this package keep words and spaces."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Listener, losses, make_rows, power_cut, train_tiny, without_clock, write_recipe, write_rows
from hypothesis import given
from hypothesis import strategies as st
from test_train import assert_same_weights

from pefttools import cli
from pefttools.augmentations import augmentations
from pefttools.augmentations.base import copies
from pefttools.augmentations.random_deletion import RandomDeletion
from pefttools.augmentations.random_swap import RandomSwap
from pefttools.data import units as _units
from pefttools.data.batching import steps
from pefttools.data.splitting import load_splits
from pefttools.errors import UserError
from pefttools.planning import planner
from pefttools.recipe import recipes
from pefttools.strategies import strategies
from pefttools.tasks import tasks
from pefttools.training.preparation import prepare
from pefttools.training.run import Run

SHORT = ("train.epochs=1", "data.train_rows=200")
BOTH = "augmentations=[random_deletion, random_swap]"
TASK = tasks.get("text_classification")(labels=("a", "b"), pair=False)  # type: ignore[call-arg]
CHINESE = "今天天气很好,我们去公园吧。"
TEXTS = st.text(st.sampled_from("ab北京,。が\u3099\ufe00é'- \u3000\n"), max_size=30) | st.text(max_size=30)
SETTINGS = {"eda": {"synonyms": str(Path(__file__).parent / "synonym_groups.txt")}}
"""Settings with which an augmentation needs no network."""
WITHOUT_MODELS = [name for name in augmentations.names() if name != "back_translation"]
REWRITABLE = [name for name in tasks.names() if tasks.get(name).rewritable]


def run_tiny(recipe_file: Path, out: Path, *overrides: str) -> dict[str, Any]:
    """`pefttools train`; the result."""
    assert cli.run(["train", str(recipe_file), *overrides, "--out", str(out)]) == 0
    return Run(out).result()


@pytest.mark.slow
def test_empty_augmentations_change_nothing(recipe_file: Path, tmp_path: Path) -> None:
    plain, _ = train_tiny(recipe_file, tmp_path / "plain", *SHORT)
    again, result = train_tiny(recipe_file, tmp_path / "again", *SHORT, "augmentations=[]")
    assert losses(plain) == losses(again)
    assert_same_weights(plain, again)
    assert result["digest"] == Run(plain).result()["digest"]
    assert (result["augmentations"], result["data"]["augmented"]) == ([], 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_MODELS)
def test_training_with_an_augmentation_learns(name: str, recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = [f"augmentations.{name}.{key}={value}" for key, value in SETTINGS.get(name, {}).items()]
    result = run_tiny(recipe_file, out, f"augmentations={name}", *settings, "train.epochs=2")
    rows, added = result["data"]["rows"]["train"], result["data"]["augmented"]
    assert result["augmentations"] == [name]
    assert 0 < added <= rows
    assert result["train"]["steps"] == 2 * -(-(rows + added) // 16)
    assert result["test"]["accuracy"] >= 0.9
    again = recipes.load(str(out / "recipe.yaml")).recipe
    assert (again.digest, list(again.augmentations)) == (result["digest"], [name])


@pytest.mark.parametrize("name", WITHOUT_MODELS)
@given(text=TEXTS, seed=st.integers(0, 9))
def test_rewriting_is_deterministic_and_never_empty(name: str, text: str, seed: int) -> None:
    one = augmentations.get(name)(**SETTINGS.get(name, {}))
    found = one.rewrite(text, random.Random(seed))
    assert found == one.rewrite(text, random.Random(seed))
    assert found is None or found.strip()


@given(text=TEXTS, seed=st.integers(0, 9), share=st.floats(0.01, 0.99), number=st.integers(1, 9))
def test_rewritten_words_come_from_the_text(text: str, seed: int, share: float, number: int) -> None:
    units, gaps = _units.split(text)
    assert _units.join(units, gaps) == text
    deleted = RandomDeletion(probability=share).rewrite(text, random.Random(seed))
    if deleted is not None:
        left = _units.split(deleted)[0]
        assert 0 < len(left) < len(units)
        assert not Counter(left) - Counter(units)
        positions = iter(units)
        assert all(word in positions for word in left)  # in their order
    swapped = RandomSwap(num_swaps=number).rewrite(text, random.Random(seed))
    if swapped is not None:
        assert swapped != text
        assert Counter(_units.split(swapped)[0]) == Counter(units)


def test_chinese_is_rewritten_by_characters() -> None:
    swapped = {RandomSwap().rewrite(CHINESE, random.Random(seed)) for seed in range(50)}
    deleted = {RandomDeletion(probability=0.3).rewrite(CHINESE, random.Random(seed)) for seed in range(50)}
    assert len(swapped) > 25
    assert len(deleted) > 25
    assert all(sorted(text) == sorted(CHINESE) for text in swapped if text)
    assert all(" " not in text and not Counter(text) - Counter(CHINESE) for text in deleted if text)


def test_spaces_around_unchanged_words_are_kept() -> None:
    text = "  a,\tb  c\nd "
    for seed in range(50):
        found = RandomSwap().rewrite(text, random.Random(seed))
        assert found is not None
        assert _units.split(found)[1] == _units.split(text)[1]
        left = RandomDeletion(probability=0.5).rewrite(text, random.Random(seed)) or text
        assert left.startswith("  ")
        assert left.endswith(" ")
        assert "b  c" in left or not {"b", "c"} <= {*left}
    assert _units.join(["ab", "cd"], ["", "", ""]) == "ab cd"  # two words never become one
    assert _units.join(["ab", "北", "cd"], ["", "", "", ""]) == "ab北cd"


@pytest.mark.parametrize("text", ["", " ", "word", "word word"])
def test_text_that_cannot_change_gets_no_copy(text: str) -> None:
    chosen = {"random_swap": RandomSwap(copies=5)}
    assert copies(chosen, [{"text": text, "label": "a"}], TASK, 0) == {"random_swap": []}


def test_copies_of_a_row_are_distinct_and_independent_of_other_rows() -> None:
    rows = [{"text": row["text"], "label": row["label"]} for row in make_rows(40)]
    chosen = {"random_deletion": RandomDeletion(copies=3, probability=0.3), "random_swap": RandomSwap(copies=3)}
    found = copies(chosen, rows, TASK, 0)
    alone = [copies(chosen, [row], TASK, 0) for row in rows]
    for name, added in found.items():
        assert added == [copy for part in alone for copy in part[name]]
    every = [copy["text"] for part in (alone[0], {"own": [rows[0]]}) for some in part.values() for copy in some]
    assert len(every) == len({*every}) > 4
    assert all(copy["label"] == rows[0]["label"] for some in alone[0].values() for copy in some)
    assert copies(chosen, rows, TASK, 0) == found != copies(chosen, rows, TASK, 1)
    fewer = copies({"random_swap": RandomSwap(copies=1)}, rows, TASK, 0)["random_swap"]
    assert all(copy in found["random_swap"] for copy in fewer if copy not in found["random_deletion"])


@pytest.mark.parametrize("name", REWRITABLE)
def test_only_rewritable_fields_change(name: str) -> None:
    cls = tasks.get(name)
    task = cls.model_validate(cls.sample_settings)
    rows = [task.read(dict(row)) for row in cls.samples]
    added = copies({"random_swap": RandomSwap(copies=4)}, rows, task, 0)["random_swap"]
    assert added
    frozen = [{k: v for k, v in row.items() if k not in cls.rewritable} for row in rows]
    assert all({k: v for k, v in copy.items() if k not in cls.rewritable} in frozen for copy in added)


@pytest.mark.slow
@pytest.mark.parametrize("name", REWRITABLE)
def test_every_rewritable_task_trains_with_an_augmentation(
    name: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    cls = tasks.get(name)
    family = {"AutoModelForCausalLM": "llama", "AutoModelForSeq2SeqLM": "bart"}.get(cls.auto_class, "bert")
    rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in cls.samples] * 4)
    data = {"validation": str(rows), "test": str(rows), "deduplicate": "none"}
    task = {"name": name, "max_length": 32, **cls.sample_settings}
    file = write_recipe(tmp_path / "tiny.yaml", bases(family), rows, data=data, task=task, train={"epochs": 2})
    result = run_tiny(file, tmp_path / "run", "augmentations.random_swap.copies=2")
    assert result["data"]["rows"]["train"] == len(cls.samples) * 4
    assert result["data"]["augmented"] > 0
    assert result["validation"]["loss"] < result["before"]["loss"]


@pytest.mark.slow
def test_augmentation_leaves_evaluation_rows_unchanged(recipe_file: Path, tmp_path: Path) -> None:
    plain, without = train_tiny(recipe_file, tmp_path / "plain", *SHORT)
    run, result = train_tiny(recipe_file, tmp_path / "run", *SHORT, BOTH)
    assert result["data"].pop("augmented") > 0 == without["data"].pop("augmented")
    assert result["data"] == without["data"]
    assert Run(run).row_hashes() == Run(plain).row_hashes()
    assert Run(run).scored_rows() == Run(plain).scored_rows()
    assert {k: result["before"][k] for k in ("loss", "majority")} == {
        k: without["before"][k] for k in ("loss", "majority")
    }
    digests = [result["digest"], without["digest"]]
    digests += [
        recipes.load(str(recipe_file), [*SHORT, one]).recipe.digest
        for one in ("augmentations=[random_swap, random_deletion]", "augmentations.random_swap.num_swaps=2")
    ]
    assert len({*digests}) == 4


@pytest.mark.slow
def test_added_rows_are_encoded_planned_and_reported(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = (
        "strategy=top_layers",
        "strategy.layers=0",
        "train.epochs=2",
    )  # its features are cached, so the plan counts rows
    recipe = recipes.load(str(recipe_file), [SHORT[1], BOTH, *head]).recipe
    listener = Listener()
    ready = prepare(recipe, listener)
    number = sum(map(len, ready.added.values()))
    assert len(ready.encoded["train"]) == 200 + number
    assert len(ready.encoded["validation"]) == len(ready.splits.validation)
    [note] = [note for note in listener.notes if "augmentations added" in note]
    assert note.startswith(f"augmentations added {number} rows to the 200 training rows: random_deletion ")
    splits = load_splits(recipe.data, recipe.task)
    assert ready.splits.digest == splits.digest
    counted: list[int] = []
    plain = planner._cacheable_rows
    monkeypatch.setattr(planner, "_cacheable_rows", lambda *a: counted.append(len(plain(*a))) or plain(*a))
    planner.plan(recipe)
    planner.plan(recipe.model_copy(update={"augmentations": {}}))
    assert counted[0] - counted[1] == number
    assert len(steps(ready.encoded["train"]["length"][:], 16, 0, 0)) == -(-(200 + number) // 16)


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one_and_refuses_other_augmentations(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [BOTH, "base.dropout=0.1", *SHORT]
    whole, expected = train_tiny(recipe_file, tmp_path / "whole", *common)
    with power_cut(7):
        train_tiny(recipe_file, tmp_path / "died", *common, "train.checkpoint_seconds=0")
    more = ["augmentations.random_swap.copies=2", "--out", str(tmp_path / "died"), "--resume"]
    assert cli.run(["train", str(recipe_file), *common, *more]) == 2
    assert "run of another recipe" in " ".join(capsys.readouterr().err.split())
    with pytest.MonkeyPatch.context() as patch:  # a plug-in that changed before the run was resumed
        patch.setattr(RandomSwap, "rewrite", lambda self, text, draw: f"{text} {text}")
        with pytest.raises(UserError, match="--resume: augmented rows was"):
            train_tiny(recipe_file, tmp_path / "died", *common, resume=True)
    died, resumed = train_tiny(recipe_file, tmp_path / "died", *common, resume=True)
    assert losses(died) == losses(whole)
    assert_same_weights(whole, died)
    assert without_clock(resumed) == without_clock(expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["augmentations=random_swop"], "unknown augmentation 'random_swop'; did you mean 'random_swap'?"),
        (["augmentations.random_deletion.probability=1"], "augmentations.random_deletion.probability: input should be"),
        (["augmentations.random_swap.pairs=2"], "unknown key 'pairs'"),
        ([BOTH, "strategy=frozen"], "augmentations.random_swap: strategy=frozen trains nothing"),
        *(
            ([BOTH, f"task={name}"], f"augmentations.random_swap: task={name} has no field that can be rewritten")
            for name in ("causal_lm", "masked_lm")
        ),
    ],
)
def test_invalid_augmentations_are_refused(
    overrides: list[str], message: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(recipe_file), *overrides, "--out", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_augmentation_that_adds_no_row_warns(recipe_file: Path, tmp_path: Path) -> None:
    rows = [{**row, "text": row["text"].replace(" ", "-")} for row in make_rows(60)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    listener = Listener()
    prepare(recipes.load(str(recipe_file), [f"data.train={file}", "augmentations=random_swap"]).recipe, listener)
    assert any("augmentations.random_swap: adds no rows" in warning for warning in listener.warnings)


def test_augmentations_are_listed_planned_and_accepted_by_every_trained_strategy(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["list", "augmentations", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["augmentations"].keys() >= {"random_deletion", "random_swap"}
    assert cli.run(["plan", str(recipe_file), BOTH, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"]["peak"] > 0
    assert cli.run(["show", str(recipe_file), "augmentations.random_swap.copies=3"]) == 0
    assert "copies: 3" in capsys.readouterr().out
    for name in strategies.names():
        trains = strategies.get(name)().trains
        overrides = [f"strategy={name}", "augmentations=random_swap"]
        if trains:
            assert recipes.load(str(recipe_file), overrides).recipe.augmentations
