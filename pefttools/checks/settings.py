"""Settings that work, but are unlikely to be meant: a learning rate far from its range, another chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pefttools.data.chat_template import rendered
from pefttools.data.rows import Row
from pefttools.errors import UserError
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FAR = 5.0
"""Factor beyond the strategy's range from which on a learning rate is far from it."""
COMPARED = 5
"""Number of chats that both templates write."""


def learning_rate(recipe: Recipe) -> Iterator[Finding]:
    """A finding if the learning rate is far outside the range in which the strategy is usually searched.

    The ranges are for AdamW on pretrained weights; for another optimizer they are scaled by its usual ratio.
    """
    strategy, optimizer, rate = recipe.strategy, recipe.train.optimizer, recipe.train.learning_rate
    if not strategy.trains or recipe.base.init == "scratch" or rate is None:
        return
    low, high = (bound * optimizer.adamw_lr_ratio for bound in strategy.lr_range)
    if low / FAR <= rate <= high * FAR:
        return
    times = rate / high if rate > high else low / rate
    yield Finding(
        "learning rate",
        f"train.learning_rate={rate:g} is far {'above' if rate > high else 'below'} the range of {strategy.name}",
        f"it is usually between {low:g} and {high:g} with {optimizer.name}; this is {times:.3g} times beyond",
        f"pefttools train RECIPE train.learning_rate={strategy.start_lr() * optimizer.adamw_lr_ratio:g}",
    )


def chat_template(recipe: Recipe, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """A finding if the recipe's chat template writes chats differently from the base's own, which it was trained on."""
    task: Any = recipe.task
    template, own = getattr(task, "chat_template", None), getattr(tokenizer, "chat_template", None)
    chats = [row for row in rows[:COMPARED] if row.get("messages")]
    if template is None or own is None or not chats:
        return
    try:
        pairs = [
            tuple(rendered(row["messages"], tokenizer, one, tools=row.get("tools")) for one in (None, template))
            for row in chats
        ]
    except UserError:  # one of them rejects these chats, so they cannot be compared
        return
    if not (different := [pair for pair in pairs if pair[0] != pair[1]]):
        return
    base, recipes = different[0]
    same = len([*takewhile(lambda pair: pair[0] == pair[1], zip(base, recipes, strict=False))])
    yield Finding(
        "chat template",
        "task.chat_template writes chats in another form than the base's own template, which the base was trained with",
        f"{len(different)} of {len(chats)} chats differ; after {same} equal characters the base's has"
        f" {base[same : same + 24]!r}, the recipe's {recipes[same : same + 24]!r}",
        "pefttools train RECIPE task.chat_template=null",
    )
