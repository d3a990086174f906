"""Suites: the trials that they expand to, and invalid ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pefttools.bench import suite
from pefttools.errors import UserError


def suite_file(folder: Path, **values: Any) -> str:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({"recipe": "question-type-lora", "axes": {"strategies": ["lora"]}, **values}))
    return str(file)


@pytest.mark.slow
@pytest.mark.parametrize("name", suite.names())
def test_packaged_suites_load_within_learning_rate_ranges(name: str) -> None:
    for cell in suite.load(name).cells():
        for rate in cell.learning_rates:
            recipe = cell.recipe(0, rate)
            low, high = recipe.strategy.lr_range
            assert rate is None or low <= rate <= high


def test_every_peft_type_that_fits_an_encoder_is_in_the_zoo() -> None:
    from pefttools.compatibility.matrix import saved

    fits = {name for name, found in saved()["peft_types"].items() if found["fits"] is True}
    assert set(suite.load("peft-zoo").axes["strategies"]) == fits


def test_axes_are_combined_except_for_leave_out(tmp_path: Path) -> None:
    axes = {
        "strategies": {"lora": None, "wide": {"name": "lora", "rank": 32}, "adapter": None},
        "penalties": ["none", "l2_sp", "frobenius"],
        "sizes": [50, "all"],
    }
    rules = [{"strategies": ["adapter"], "penalties": ["frobenius"]}]
    cells = suite.load(suite_file(tmp_path, axes=axes, leave_out=rules)).cells()
    assert len(cells) == 2 * (3 * 3 - 1)
    assert {cell.problem for cell in cells} == {"50", "all"}
    assert {cell.method for cell in cells if cell.problem == "50"} == {
        "lora", "lora + l2_sp", "lora + frobenius", "wide", "wide + l2_sp", "wide + frobenius", "adapter",
        "adapter + l2_sp",
    }  # fmt: skip
    wide = next(cell for cell in cells if cell.name == "50 · wide · l2_sp")
    recipe = wide.recipe(3, 0.001)
    assert recipe.strategy.as_dict()["rank"] == 32
    assert (recipe.seed, recipe.train.learning_rate, recipe.data.train_rows) == (3, 0.001, 50)
    assert list(recipe.regularizers) == ["l2_sp"]


def test_learning_rates_span_the_range_of_the_strategy(tmp_path: Path) -> None:
    from pefttools.strategies import strategies

    axes = {"strategies": ["full", "lora", "frozen"]}
    cells = suite.load(suite_file(tmp_path, axes=axes, tuning={"trials": 4})).cells()
    rates = {cell.method: cell.learning_rates for cell in cells}
    assert rates["frozen"] == [None]
    for name in ("full", "lora"):
        assert len(rates[name]) == 4
        assert (rates[name][0], rates[name][-1]) == pytest.approx(strategies.get(name).lr_range)


def test_overrides_set_the_suite_or_every_recipe(tmp_path: Path) -> None:
    loaded = suite.load(suite_file(tmp_path), ["seeds=[7]", "tuning.trials=1", "train.epochs=9"])
    assert loaded.seeds == (7,)
    (cell,) = loaded.cells()
    assert cell.recipe(7).train.epochs == 9
    assert loaded.digest != suite.load(suite_file(tmp_path)).digest


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axes": {"strategy": ["lora"]}}, "unknown axis 'strategy'; did you mean 'strategies'?"),
        ({"axes": {}}, "nothing to compare"),
        ({"axes": {"strategies": []}}, "`strategies` is empty"),
        ({"axes": {"strategies": ["lora", "lora"]}}, "lists an entry twice"),
        ({"axes": {"sizes": ["some"]}}, "must be numbers of training rows, or 'all'"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "has a seed twice"),
        ({"tuning": {"trails": 2}}, "did you mean 'trials'?"),
        ({"leave_out": [{"strategies": ["lore"]}]}, "did you mean 'lora'?"),
        ({"recipes": "x"}, "did you mean 'recipe'?"),
    ],
)
def test_invalid_suites_are_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        suite.load(suite_file(tmp_path, **values))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.epochs", "write KEY=VALUE"),
        ("train.epochs=[", "train.epochs: '[' is not YAML"),
        ("seed=3", "set `seeds`"),
        ("train.learning_rate=1", "set `tuning.trials`"),
    ],
)
def test_invalid_overrides_are_refused(tmp_path: Path, word: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        suite.load(suite_file(tmp_path), [word])
    assert message in str(error.value)


def test_a_suite_that_leaves_out_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="excludes every combination"):
        suite.load(suite_file(tmp_path, leave_out=[{"strategies": ["lora"]}])).cells()


def test_unknown_suite_suggests_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"unknown suite 'clasic'; did you mean 'classic'\?"):
        suite.load("clasic")


def test_command_of_a_trial_gives_the_same_recipe(tmp_path: Path) -> None:
    import shlex

    from pefttools.recipe import recipes

    axes = {"strategies": {"wide": {"name": "lora", "rank": 32}}, "penalties": {"l2_sp": {"l2_sp": {"alpha": 0.5}}}}
    (cell,) = suite.load(suite_file(tmp_path, axes=axes)).cells()
    program, verb, name, *words = shlex.split(cell.command(1, 0.002))
    assert (program, verb) == ("pefttools", "train")
    assert recipes.load(name, words).recipe.digest == cell.recipe(1, 0.002).digest
    assert json.loads(json.dumps(cell.overrides)) == cell.overrides


def test_objectives_and_augmentations_are_axes(tmp_path: Path) -> None:
    axes = {
        "objectives": ["none", "sam"],
        "augmentations": {"none": None, "both": {"random_swap": {"copies": 2}, "random_deletion": None}},
    }
    cells = {cell.method: cell for cell in suite.load(suite_file(tmp_path, axes=axes)).cells()}
    assert set(cells) == {"plain", "both", "sam", "sam + both"}
    recipe = cells["sam + both"].recipe(0)
    assert (list(recipe.objectives), {*recipe.augmentations}) == (["sam"], {"random_swap", "random_deletion"})
    assert recipe.augmentations["random_swap"].copies == 2
    assert not cells["plain"].recipe(0).objectives
    assert len({cell.problem for cell in cells.values()}) == 1
