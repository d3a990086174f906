"""A base that already knows the test rows: it predicts them much better than training rows, or almost surely.

A language model that was trained on a public test set has a low perplexity on it before any training here. Rows whose
answer can be copied from the prompt have one too, so the finding names the figures and leaves the judgement to you.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pefttools.data.encoding import Encoded
from pefttools.reporter import SILENT, Finding, Reporter
from pefttools.training.evaluation import Evaluator
from pefttools.training.preparation import Prepared
from pefttools.training.wrapping import load_base

ROWS = 64
"""Number of rows of each split."""
LEAST_ROWS, LEAST_TOKENS = 16, 256
"""Rows, and targets in all of them, below which a perplexity says little."""
RATIO = 2.0
"""Perplexity on training rows divided by that on test rows, from which on the base knows the test rows better."""
SURE = 1.3
"""Perplexity below which a text of many tokens was almost certainly seen, or copied."""
LONG = 16
"""Tokens of an answer, on average, from which on `SURE` applies."""


def why_not(prepared: Prepared) -> str | None:
    """The reason why there is nothing to compare."""
    if prepared.recipe.task.primary != "perplexity" and not prepared.recipe.task.generates:
        return "the task has no perplexity of text"
    return None if prepared.splits.test else "there are no test rows"


def known_test(prepared: Prepared, reporter: Reporter) -> Iterator[Finding]:
    """A finding if the base's perplexity on test rows is suspiciously low before training."""
    model: Any = prepared.model
    if not prepared.recipe.strategy.exact_start and not (prepared.earlier and prepared.earlier.continues):
        model = load_base(prepared.recipe, SILENT, earlier=prepared.earlier).model
        model.to(next(prepared.model.parameters()).device)
    evaluator = Evaluator(model, prepared.recipe.task, prepared.base.tokenizer, reporter=reporter)
    test, train = (_loss(prepared, evaluator, name) for name in ("test", "train"))
    if test is None or train is None:
        return
    perplexity, length = math.exp(test[0]), test[1] / test[2]
    ratio = math.exp(train[0] - test[0])
    if ratio < RATIO and not (perplexity < SURE and length >= LONG):
        return
    yield Finding(
        "base knows the test rows",
        "the base predicts the test rows suspiciously well before training; it may have been trained on them",
        f"its perplexity is {perplexity:.3g} on {test[2]} test rows with {length:.0f} targets each, and"
        f" {math.exp(train[0]):.3g} on {train[2]} training rows",
        "pefttools train RECIPE data.test=NEWER_ROWS",
    )


def _loss(prepared: Prepared, evaluator: Evaluator, name: str) -> tuple[float, int, int] | None:
    """Mean loss per target, number of targets and of rows among the first rows; None if these are too few.

    Training rows are encoded as test rows are, so that both are read in the same way.
    """
    from pefttools.data.encoding import columns_of

    rows = prepared.splits.named()[name][:ROWS]
    columns = columns_of(rows, prepared.recipe.task, prepared.base.tokenizer)
    number = sum(columns["num_targets"])
    if len(rows) < LEAST_ROWS or number < LEAST_TOKENS:
        return None
    found, _ = evaluator.predictions(Encoded(columns), rows, f"perplexity of {name} rows")
    if any("nll" not in one for one in found):
        return None
    return sum(one["nll"] for one in found) / number, number, len(rows)
