"""Words of peft and transformers in a recipe lead to what exists here."""

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


def refused(file: Path, *overrides: str) -> str:
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


def test_what_is_named_exists() -> None:
    keys = {key for words in (WORDS, METHODS) for told in words.values() for key in re.findall("`(.*?)`", told)}
    assert len(keys) > 30
    assert not [key for key in keys if not exists(key)]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("strategy.r=8", "strategy.r: unknown key 'r'; that is strategy.rank. Known: rank, alpha, "),
        ("strategy.lora_alpha=8", "that is strategy.alpha."),
        ("strategy.lora_dropout=.1", "that is strategy.dropout."),
        ("strategy.target_modules=[query]", "that is strategy.targets."),
        ("strategy.modules_to_save=[embed_tokens]", "base.head names modules that are trained whole"),
        ("strategy.trainable_token_indices=[3]", "strategy=peft with strategy.type=LORA takes it in strategy.settings"),
        ("strategy.layers_to_transform=[1]", "strategy.targets takes patterns on full paths"),
        ("strategy.use_rslora=true", "that is strategy.rslora."),
        ("base.load_in_4bit=true", "base.load_in_4bit: unknown key 'load_in_4bit'; that is base.quantize"),
        ("train.num_train_epochs=2", "that is train.epochs."),
        ("output_dir=x", "that is --out."),
        ("model_name_or_path=x", "that is base=hf:NAME."),
        ("strategy=qlora", "unknown strategy 'qlora'; that is strategy=lora with base.quantize=nf4. Known: adalora"),
        ("strategy=dora", "that is strategy=lora with strategy.dora=true"),
        ("strategy=LoHa", "that is strategy=peft with strategy.type=LOHA"),
    ],
)
def test_another_librarys_word_leads_here(override: str, expected: str, recipe_file: Path) -> None:
    assert expected in refused(recipe_file, override)
