"""A step on a batch of one shape, in multiples of a forward pass; the contenders take turns in one process.

The forward is that of the base in bf16, in evaluation mode and without gradients. peft's step is that of its LoRA model
under bf16 autocast: forward, backward, clipping, AdamW. pefttools' step is the time between two steps of a real run. A
LoRA step needs a forward pass and the gradients of the inputs, so it cannot take less than two forwards.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import exact
import ours
import torch
import trainer_models
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
    """Runs and times the other contenders after every step of the training."""

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
        ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa_attention_forward)  # the run's own attention is global
        for call, times in zip(self.others, self.theirs, strict=True):
            times.append(seconds(call))
        ALL_ATTENTION_FUNCTIONS.register("sdpa", ours)
        self.resumed = time.perf_counter()


def measure(order: Order) -> dict[str, Any]:
    """Median milliseconds of each contender, and the steps in multiples of a forward."""
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
    base, model = trainer_models.build(recipe, task)
    bare: Any = task.load(recipe.base).model.eval()
    bare.to(torch.bfloat16)
    batch = task.collate(columns_of(splits.train[:ROWS], task, base.tokenizer), base.tokenizer, 8)
    assert tuple(batch["input_ids"].shape) == (ROWS, LENGTH), "the rows do not have the expected length"
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
