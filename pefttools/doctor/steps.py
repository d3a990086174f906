"""Two trials on the prepared model: five steps to find dead gradients, and 100 steps to find the range of the rate.

The range test (Smith 2017) raises the learning rate exponentially, one step each, and follows the smoothed loss. The
recipe's rate is too high where the loss has risen above its start, and too low if the whole run moves the weights less
than the test did until its loss fell by a tenth of what it fell in all. Steps have few rows, so that the test is short;
both bounds are generous. The weights are as before at the end.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttools.data.batching import steps
from pefttools.reporter import Finding, Reporter
from pefttools.strategies.base import trained
from pefttools.training import optimizer_setup
from pefttools.training.loop import WATCHED_STEPS
from pefttools.training.micro_batches import collated, num_steps
from pefttools.training.preparation import Prepared

if TYPE_CHECKING:
    from torch.optim import Optimizer

STEPS = 100
"""Steps of the range test."""
ROWS, TOKENS = 8, 1024
"""Upper limits of a step's rows, and of their tokens if they have the median length; there are at least two rows."""
BEYOND = 10.0
"""Factor by which the test goes beyond the strategy's range on both sides."""
FIRST = 10
"""Number of steps whose mean loss is the loss at the start."""
SMOOTHING = 0.9
"""Weight of the past in the smoothed loss."""
DIVERGED = 3.0
"""The smoothed loss divided by its start, at which the test ends."""
FALLEN = 0.1
"""Share of the whole fall of the loss, from which on the rate has an effect."""
CLEAR = 0.05
"""Least fall of the loss as a share of its start; a smaller one is noise, and the test says nothing."""


def why_not(prepared: Prepared) -> str | None:
    """The reason why there are no steps to take."""
    return None if prepared.recipe.strategy.trains else "the strategy trains nothing"


def dead_gradients(prepared: Prepared, reporter: Reporter) -> Iterator[Finding]:
    """A finding if trained tensors get no gradient in the first steps; training would stop there."""
    del reporter
    trial = Trial(prepared)
    dead = set(trained(prepared.model))
    with restored(prepared):
        optimizer = trial.optimizer()
        for step in range(WATCHED_STEPS):
            trial.loss(step)
            dead -= {n for n, p in trained(prepared.model).items() if p.grad is not None and p.grad.any()}
            optimizer.step()
            optimizer.zero_grad()
    if not dead:
        return
    names, number = sorted(dead), len(trained(prepared.model))
    has_targets = "targets" in type(prepared.recipe.strategy).model_fields
    yield Finding(
        "dead gradients",
        "trained tensors get no gradient, so they would never be trained",
        f"{len(names)} of {number} tensors in {WATCHED_STEPS} steps: {', '.join(names[:3])}",
        f"pefttools train RECIPE {'strategy.targets=[query,value]' if has_targets else 'strategy=lora'}",
    )


@dataclass(frozen=True)
class Range:
    """What the range test measured."""

    start: float
    """The loss at the smallest rate."""
    lowest: float
    """The smallest smoothed loss."""
    effective: float
    """The rate at which the loss had fallen by `FALLEN` of its whole fall."""
    moved: float
    """The sum of all rates up to there."""
    diverges: float
    """The rate at which the loss rose above its start; infinity if it did not."""


def learning_rate(prepared: Prepared, reporter: Reporter) -> Iterator[Finding]:
    """A finding if the recipe's rate is outside the range that the test found."""
    recipe = prepared.recipe
    rate, total = recipe.train.learning_rate, num_steps(recipe.train, len(prepared.encoded["train"]))
    assert rate is not None
    if (found := range_test(prepared, rate, reporter)) is None:
        return
    upper = "" if math.isinf(found.diverges) else f" and rises above its start at {found.diverges:.2g}"
    evidence = f"in {STEPS} steps of rising rate the loss falls from {found.start:.3g} to {found.lowest:.3g}; it begins"
    evidence += f" to fall at {found.effective:.2g}{upper}"
    better = min(max(recipe.strategy.start_lr(), found.effective), found.diverges / 4)
    if rate >= found.diverges:
        what = f"train.learning_rate={rate:g} is so high that the loss rises"
    elif rate * total / 2 < found.moved:
        what = f"train.learning_rate={rate:g} is so low that {total} steps hardly change the loss"
    else:
        return
    cure = f"train.learning_rate={better:.2g}"
    if rate < found.diverges and better <= rate:  # the rate is right, but the steps are too few
        cure = f"train.epochs={max(2, math.ceil(recipe.train.epochs * 2 * found.moved / (rate * total)))}"
        what = f"{total} steps are too few: with train.learning_rate={rate:g} they hardly change the loss"
    yield Finding("learning rate", what, evidence, f"pefttools train RECIPE {cure}")


def range_test(prepared: Prepared, rate: float, reporter: Reporter) -> Range | None:
    """Run the test around the strategy's range and the recipe's rate; None if the loss did not clearly fall."""
    low, high = prepared.recipe.strategy.lr_range
    ratio = prepared.recipe.train.optimizer.adamw_lr_ratio
    low, high = min(low * ratio / BEYOND, rate), max(high * ratio * BEYOND, rate)
    trial, rates, losses = Trial(prepared), [], []
    with restored(prepared), reporter.bar("range test", STEPS, "steps") as bar:
        optimizer = trial.optimizer()
        for step in range(STEPS):
            rates.append(low * (high / low) ** (step / (STEPS - 1)))
            for group in optimizer.param_groups:
                group["lr"] = rates[-1] * group["lr_scale"]
            losses.append(trial.loss(step))
            bar.advance(1)
            if not math.isfinite(losses[-1]) or _smoothed(losses)[-1] > DIVERGED * losses[0]:
                break
            trial.clip()
            optimizer.step()
            optimizer.zero_grad()
    return measured(rates, losses)


def measured(rates: list[float], losses: list[float]) -> Range | None:
    """The range from the rates and losses of the steps; None if the loss did not clearly fall."""
    curve = _smoothed([loss if math.isfinite(loss) else 1e9 for loss in losses])
    start = sum(losses[:FIRST]) / FIRST
    if not math.isfinite(start):
        return None
    if len(curve) <= FIRST:
        return None
    bottom = min(range(FIRST, len(curve)), key=curve.__getitem__)
    fall = start - curve[bottom]
    if fall < CLEAR * start:
        return None
    first = next(i for i, loss in enumerate(curve) if loss <= start - FALLEN * fall and i >= FIRST)
    risen = next((i for i in range(bottom, len(curve)) if curve[i] > start), None)
    diverges = math.inf if risen is None else rates[risen]
    return Range(start, curve[bottom], rates[first], sum(rates[: first + 1]), diverges)


def _smoothed(losses: list[float]) -> list[float]:
    """The running mean with weight `SMOOTHING` on the past, corrected for its start."""
    found, mean = [], 0.0
    for number, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**number))
    return found


class Trial:
    """Gradients of small steps on the prepared model."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        rows, settings = prepared.encoded["train"], prepared.recipe.train
        lengths = rows["length"][:]
        number = max(2, min(ROWS, settings.batch_size, TOKENS // max(1, round(statistics.median(lengths)))))
        self.batches = steps(lengths, number, prepared.recipe.seed, 0)

    def optimizer(self) -> Optimizer:
        """A new optimizer of the recipe."""
        return optimizer_setup.build(self.prepared.model, self.prepared.recipe.strategy, self.prepared.recipe.train)

    def loss(self, step: int) -> float:
        """The mean loss per target of a step; adds its gradient to the trained tensors."""
        prepared = self.prepared
        task, model = prepared.recipe.task, prepared.model
        columns: Any = prepared.encoded["train"][self.batches[step % len(self.batches)]]
        device = next(model.parameters()).device
        batch = {k: v.to(device) for k, v in collated(task, columns, prepared.base.tokenizer, 1).items()}
        loss = task.loss(model(**task.inputs_of(batch)), batch) / max(1, sum(columns["num_targets"]))
        loss.backward()
        return loss.item()

    def clip(self) -> None:
        """Scale large gradients down as training does."""
        import torch

        limit = self.prepared.recipe.train.max_grad_norm
        torch.nn.utils.clip_grad_norm_(trained(self.prepared.model).values(), limit or math.inf)


@contextmanager
def restored(prepared: Prepared) -> Iterator[None]:
    """Training mode inside; at the end all weights and buffers are as before, and there are no gradients."""
    import torch

    model, was_training = prepared.model, prepared.model.training
    tensors = {**trained(model), **dict(model.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    model.train()
    try:
        with prepared.frozen.in_eval_mode():
            yield
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(before[name])
        model.zero_grad(set_to_none=True)
        model.train(was_training)
