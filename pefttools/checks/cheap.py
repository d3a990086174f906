"""All cheap checks of a recipe, on rows that are already loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pefttools.checks.imbalance import imbalance
from pefttools.checks.settings import chat_template, learning_rate
from pefttools.checks.shortcuts import shortcuts
from pefttools.data.rows import Splits
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = ("class imbalance", "leaking column", "constant column", "learning rate", "chat template")
"""The checks that `findings` runs."""


def findings(recipe: Recipe, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """What the cheap checks find.

    Args:
        recipe: the recipe with its task fitted to the rows.
    """
    yield from imbalance(recipe, splits.train)
    yield from shortcuts(recipe, splits.train)
    yield from learning_rate(recipe)
    yield from chat_template(recipe, splits.train, tokenizer)
