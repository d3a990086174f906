"""Whether a run fits a device: the largest micro-batch that does, and what to change where none does.

Micro-batches change only rounding: a step has the same rows, whatever the number of its parts.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from pefttools.errors import UserError
from pefttools.planning.planner import Draft, Plan, draft
from pefttools.planning.target import Target, limited
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import SILENT, Reporter
from pefttools.training.launch import num_processes

PROCESSES = (2, 4, 8)
"""Numbers of processes among which a model is shared where it fits no single device."""
SHORTEST = 64
"""Tokens below which rows are not truncated further."""
MOST_TRAINED = 0.05
"""Share of trained parameters above which LoRA, which trains fewer, is an option."""
CHECKPOINTING, QUANTIZED, LORA = "train.gradient_checkpointing=true", "base.quantize=nf4", "strategy=lora"

Resolve = Callable[[Sequence[str]], Recipe]


@dataclass(frozen=True)
class Option:
    """Changes of a recipe, and the peak with them in micro-batches of one row."""

    overrides: tuple[str, ...]
    peak: int
    fits: bool
    command: str
    """With all changes; what a user runs."""


@dataclass(frozen=True)
class Fit:
    """How a recipe's run fits a device."""

    plan: Plan
    """With the recipe's own micro-batches."""
    device: str
    usable: int
    """Bytes that the peak may take."""
    fits: bool
    """Whether the recipe fits as it is."""
    rows: int | None
    """The most rows of the greatest length in a micro-batch that fits; None where not even one does."""
    peak: int
    """The peak with these rows; with one row where none fits."""
    options: tuple[Option, ...]
    """Changes that take less memory, where no micro-batch fits."""

    def as_dict(self) -> dict[str, Any]:
        tokens = self.rows and self.rows * self.plan.length
        about = {"device": self.device, "usable": self.usable, "fits": self.fits, "rows": self.rows, "tokens": tokens,
                 "peak": self.peak, "options": [asdict(one) for one in self.options]}  # fmt: skip
        return {**self.plan.as_dict(), "fit": about}


def fit(
    resolve: Resolve, words: Sequence[str], target: Target, reporter: Reporter = SILENT, processes: int | None = None
) -> Fit:
    """How a recipe's run fits a device.

    Args:
        resolve: returns the recipe with further overrides.
        words: the recipe's name or path and its overrides, for commands.
        processes: the number of processes that train together; those of this launch if it is None.

    Raises:
        UserError: something is wrong with the recipe, the data, the base or the strategy's settings.
    """
    number = processes or num_processes()
    made = draft(resolve(()), reporter)
    plan = made.plan(target, number)
    rows, peak = most_rows(made, target, number, plan)
    return Fit(
        plan=plan,
        device=target.name,
        usable=target.usable,
        fits=plan.bytes["peak"] <= target.usable,
        rows=rows,
        peak=peak,
        options=() if rows else tuple(_options(resolve, tuple(words), made, target, number, reporter)),
    )


def within_memory(recipe: Recipe, reporter: Reporter = SILENT) -> Recipe:
    """The recipe with `train.memory_tokens` and `train.gradient_checkpointing` such that its run fits `train.memory`.

    Without `train.memory`, it is returned as it is. The digest stays the same.

    Raises:
        UserError: not even one row at a time fits, or several processes train together.
    """
    settings = recipe.train
    if settings.memory is None:
        return recipe
    if num_processes() > 1:
        raise UserError(
            "train.memory: is for one process; say with train.micro_batch_tokens how much each process computes at"
            " once, after `pefttools plan RECIPE --processes N --device DEVICE`"
        )
    target, made = limited(settings), draft(recipe, reporter)
    plan = made.plan(target, 1)
    about = f"of {target.usable / 2**20:,.0f} MiB"
    if plan.bytes["peak"] <= target.usable:
        reporter.note(f"train.memory: the run needs {plan.bytes['peak'] / 2**20:,.0f} {about} as it is")
        return recipe
    changes: dict[str, Any] = {}
    rows, peak = most_rows(made, target, 1, plan)
    if rows is None and not settings.gradient_checkpointing:
        with suppress(UserError):  # the model cannot do it
            rows, peak = most_rows(made, target, 1, plan, gradient_checkpointing=True)
            changes["gradient_checkpointing"] = True
    if rows is None:
        raise UserError(
            f"train.memory: with one row at a time, the run needs {peak / 2**20:,.0f} {about}; `pefttools plan"
            f" {recipe.name} --device {target.type}:{target.memory >> 20}MB` shows what takes less"
        )
    changes["memory_tokens"] = rows * plan.length
    chosen = " ".join(f"train.{name}={str(value).lower()}" for name, value in changes.items())
    reporter.note(f"train.memory: the run needs {peak / 2**20:,.0f} {about} with {chosen}")
    return recipe.model_copy(update={"train": settings.with_values(**changes)})


def most_rows(made: Draft, target: Target, processes: int, plan: Plan, **train: Any) -> tuple[int | None, int]:
    """The most rows of a micro-batch that fits, None where not even one row does; and the peak with them.

    Args:
        plan: the recipe's own.
        train: settings of `train` to change besides.
    """
    known: dict[int, int] = {}

    def peak(rows: int) -> int:
        if rows not in known:
            limits = {"micro_batch_size": rows, "micro_batch_tokens": rows * plan.length}
            known[rows] = made.plan(target, processes, **limits, **train).bytes["peak"]
        return known[rows]

    rows = largest_rows(-(-made.recipe.train.batch_size // processes), peak, target.usable)
    return rows, peak(rows or 1)


def largest_rows(most: int, peak: Callable[[int], int], usable: int) -> int | None:
    """The most rows, up to `most`, whose peak fits; None if not even one row's does.

    The peak grows with the rows almost in proportion, so a straight line through two known peaks shows where to look.
    """
    if peak(1) > usable:
        return None
    if most == 1 or peak(most) <= usable:
        return most
    low, high = 1, most
    while high - low > 1:
        slope = (peak(high) - peak(low)) / (high - low)
        guess = low + int((usable - peak(low)) / slope) if slope > 0 else (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        low, high = (guess, high) if peak(guess) <= usable else (low, guess)
        if low == guess and peak(low + 1) > usable:
            break
    return low


def _options(
    resolve: Resolve, words: tuple[str, ...], made: Draft, target: Target, processes: int, reporter: Reporter
) -> Iterator[Option]:
    """Changes that take less memory, each on top of those before, until the run fits.

    If nothing does but the device is a GPU, the last options share the model among several.
    """

    def option(overrides: tuple[str, ...], processes: int, launched: bool = False) -> Option:
        now = draft(resolve(overrides), reporter, made.splits)
        peak = now.plan(target, processes, micro_batch_size=1, micro_batch_tokens=1).bytes["peak"]
        command = shlex.join(("pefttools", "train", *words, *overrides, "train.micro_batch_size=1"))
        before = f"torchrun --nproc-per-node {processes} -m " if launched else ""
        return Option(overrides, peak, peak <= target.usable, before + command)

    taken: tuple[str, ...] = ()
    least = made.plan(target, processes, micro_batch_size=1, micro_batch_tokens=1).bytes["peak"]
    for change in _changes(made):
        try:
            found = option((*taken, change), processes)
        except UserError:  # the model or the strategy cannot do it
            continue
        if found.peak < least:
            taken, least = found.overrides, found.peak
            yield found
            if found.fits:
                return
    for number in PROCESSES if target.type == "cuda" else ():
        plain = tuple(change for change in taken if change != QUANTIZED)
        try:
            found = option((*plain, "train.shard=true"), processes * number, launched=True)
        except UserError:
            return
        if found.fits or number == PROCESSES[-1]:
            yield found
            return


def _changes(made: Draft) -> Iterator[str]:
    """Overrides that may take less memory, those that change least first."""
    recipe = made.recipe
    if not recipe.train.gradient_checkpointing:
        yield CHECKPOINTING
    if not recipe.base.quantize:
        yield QUANTIZED
    if made.params["trainable"] > MOST_TRAINED * made.params["total"]:
        yield LORA
    length = recipe.task.longest(made.base.tokenizer.model_max_length)
    while (length := length // 2) >= SHORTEST:
        yield f"task.max_length={length}"
