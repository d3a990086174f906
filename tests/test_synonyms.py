"""Setting names of peft and transformers in a recipe: the error suggests the setting of this package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pefttools.errors import UserError
from pefttools.optimizers import optimizers
from pefttools.planning.planner import plan
from pefttools.recipe import recipes
from pefttools.recipe.recipe import Recipe
from pefttools.strategies import strategies
from pefttools.synonyms import METHODS, WORDS
from pefttools.tasks import tasks


def error_of(file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        plan(recipes.load(str(file), list(overrides)).recipe)
    return str(caught.value)


def exists(key: str) -> bool:
    name, _, value = key.partition("=")
    section, _, last = name.partition(".")
    if last.startswith("optimizer."):
        section, last = "optimizer", last.removeprefix("optimizer.")
    if last and section in ("strategy", "task", "optimizer"):
        choices = {"strategy": strategies, "task": tasks, "optimizer": optimizers}[section]
        return any(last in choices.get(choice).model_fields for choice in choices.names())
    if last:
        return last in Recipe.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    return value in strategies.names() if section == "strategy" else section in Recipe.model_fields


def test_suggested_settings_exist() -> None:
    keys = {
        key for words in (WORDS, METHODS) for suggestion in words.values() for key in re.findall("`(.*?)`", suggestion)
    }
    assert len(keys) > 30
    assert not [key for key in keys if not exists(key)]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("strategy.r=8", "strategy.r: unknown key 'r'; in pefttools: strategy.rank. Known: rank, alpha, "),
        ("strategy.lora_alpha=8", "in pefttools: strategy.alpha."),
        ("strategy.lora_dropout=.1", "in pefttools: strategy.dropout."),
        ("strategy.target_modules=[query]", "in pefttools: strategy.targets."),
        ("strategy.modules_to_save=[embed_tokens]", "base.head lists modules to train completely"),
        ("strategy.trainable_token_indices=[3]", "with strategy.type=LORA accepts it in strategy.settings"),
        ("strategy.layers_to_transform=[1]", "strategy.targets takes patterns on full paths"),
        ("strategy.use_rslora=true", "in pefttools: strategy.rslora."),
        ("base.load_in_4bit=true", "base.load_in_4bit: unknown key 'load_in_4bit'; in pefttools: base.quantize"),
        ("train.num_train_epochs=2", "in pefttools: train.epochs."),
        ("output_dir=x", "in pefttools: --out."),
        ("model_name_or_path=x", "in pefttools: base=hf:NAME."),
        ("strategy=qlora", "unknown strategy 'qlora'; in pefttools: strategy=lora with base.quantize=nf4. Known: "),
        ("strategy=dora", "in pefttools: strategy=lora with strategy.dora=true"),
        ("strategy=LoHa", "in pefttools: strategy=peft with strategy.type=LOHA"),
    ],
)
def test_setting_name_of_another_library_suggests_ours(override: str, expected: str, recipe_file: Path) -> None:
    assert expected in error_of(recipe_file, override)
