"""A step on a batch of one shape, in bare forwards: the forward, peft's step and pefttools' take turns in one process.

The forward is the untouched base's, cast to bf16, in evaluation mode and without gradients. peft's step is its LoRA
model's under bf16 autocast: forward, backward, clipping, AdamW. pefttools' step is what passes between two beats of a
real training. A LoRA step needs a forward and the gradients of the inputs: twice a forward is the limit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import exact
import ours
import plain
import torch
from cases import Order, recipe_of
from clock import Clock
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from work import seconds

from pefttools.bases.loading import load_tokenizer, locate
from pefttools.recipe.recipe import Recipe
from pefttools.strategies.base import trained
from pefttools.tasks.base import LABELS

ROWS, LENGTH, STEPS, WARM_UP = 32, 32, 20, 3


class Turns(Clock):
    """After every step of the training the others have their turn."""

    def __init__(self, others: Sequence[Callable[[], Any]]) -> None:
        super().__init__()
        self.others = others
        self.own: list[float] = []
        self.theirs: list[list[float]] = [[] for _ in others]
        self.resumed: float | None = None

    def stepped(self) -> None:
        if self.resumed is not None:
            self.own.append(self.training.last - self.resumed)
        ours = ALL_ATTENTION_FUNCTIONS["sdpa"]
        ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa_attention_forward)  # the training's serves every model meanwhile
        for call, times in zip(self.others, self.theirs, strict=True):
            times.append(seconds(call))
        ALL_ATTENTION_FUNCTIONS.register("sdpa", ours)
        self.resumed = time.perf_counter()


def measure(order: Order) -> dict[str, Any]:
    """Median milliseconds of each, and what a step takes in forwards."""
    folder = Path(order.folder) / "fixed"
    settings = recipe_of(order).base
    tokenizer = load_tokenizer(locate(settings)[0], settings.source)
    rows = exact.write(folder, tokenizer, ROWS * STEPS, LENGTH)
    once = ("data.train_rows=null", "train.epochs=1", f"train.batch_size={ROWS}", "train.log_every=1")
    recipe = recipe_of(order, *rows, *once)
    turns = Turns(contenders(recipe))
    ours.run(recipe, clock=turns)
    forward, peft, own = (1000 * statistics.median(times[WARM_UP:]) for times in (*turns.theirs, turns.own))
    return {
        "forward_ms": forward, "peft_ms": peft, "pefttools_ms": own,
        "peft_forwards": peft / forward, "pefttools_forwards": own / forward,
    }  # fmt: skip


def contenders(recipe: Recipe) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A bare forward in bf16, and peft's step, on a batch of the recipe's first rows."""
    from pefttools.data.encoding import columns_of
    from pefttools.data.splitting import load_splits

    splits = load_splits(recipe.data, recipe.task)
    task = recipe.task.fit(splits)
    base, model = plain.build(recipe, task)
    bare: Any = task.load(recipe.base).model.eval()
    bare.to(torch.bfloat16)
    batch = task.collate(columns_of(splits.train[:ROWS], task, base.tokenizer), base.tokenizer, 8)
    assert tuple(batch["input_ids"].shape) == (ROWS, LENGTH), "the rows are not as long as they should be"
    inputs = task.inputs_of(batch)
    parameters = list(trained(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=recipe.train.learning_rate or 0.0, fused=True)
    model.train()

    def forward() -> None:
        with torch.inference_mode():
            bare(**inputs)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**inputs).logits
        torch.nn.functional.cross_entropy(logits.float(), batch[LABELS]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return forward, step
