"""Class imbalance: one class has nearly all rows, or some class has nearly none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pefttools.data.fields import listed
from pefttools.data.overview import class_counts
from pefttools.data.rows import Row
from pefttools.objectives.class_weights import ClassWeights
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import Finding

MAJORITY = 0.9
"""Share of the rows from which on one class is too frequent: always predicting it already has this accuracy."""
RATIO = 50
"""The most frequent class divided by the rarest, from which on the rarest hardly counts in the loss."""
MENDING = ("class_weights", "focal")
"""Objectives that are meant for imbalanced classes."""


def imbalance(recipe: Recipe, rows: Sequence[Row]) -> Iterator[Finding]:
    """A finding if the classes of the training rows are far from equally frequent, and no objective allows for it.

    Tasks with tags are not checked: most words are outside of entities in any text.
    """
    counts = class_counts(rows)
    if len(counts) < 2 or isinstance(rows[0].get("tags"), list) or {*MENDING} & {*recipe.objectives}:
        return
    (most, frequent), rarest = counts.most_common(1)[0], min(counts.values())
    share = frequent / len(rows)
    rare = [name for name, number in counts.items() if number * RATIO <= frequent]
    is_single = not isinstance(rows[0].get("label"), list)
    if not rare and not (is_single and share >= MAJORITY):
        return
    evidence = f"{most!r} has {frequent} of {len(rows)} training rows ({share:.1%}), the rarest class {rarest}"
    if rare:
        evidence += f"; less than a {RATIO}th of the most frequent: {listed(sorted(rare, key=counts.__getitem__))}"
    fits = ClassWeights().problem(recipe.task, recipe.strategy) is None
    yield Finding(
        "class imbalance",
        "the classes are very unequal, so the loss hardly depends on the rare ones; read macro-F1, not accuracy",
        evidence,
        f"pefttools train RECIPE {'objectives=class_weights' if fits else 'data.min_class_rows=20'}",
    )
