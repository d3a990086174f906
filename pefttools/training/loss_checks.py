"""Stop a run whose losses are not finite or have exploded, with the step, its rows and what is left."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pefttools.errors import UserError
from pefttools.training import checkpoint

if TYPE_CHECKING:
    from pefttools.training.checkpoint import Progress
    from pefttools.training.micro_batches import MicroBatches
    from pefttools.training.run import Run

COMPARED = 10
"""Number of losses at the beginning, and of the last ones, whose medians are compared."""
EXPLODED = 100.0
"""How many times as large as at the beginning, and as 1 (nat, or variance of the numbers), the loss may become."""
SHOWN = 8
"""Number of rows that a message names."""


def check(
    values: Sequence[tuple[float, float, float]],
    progress: Progress,
    batches: MicroBatches,
    run: Run,
    rate: float | None,
) -> None:
    """Check the newest losses, and remember them.

    Args:
        values: loss, penalty and gradient norm of the last steps, up to `progress.step`.
        rate: the learning rate, for messages.

    Raises:
        UserError: a value is not finite, or the loss has exploded; the weights since then are useless.
    """
    for step, one in enumerate(values, progress.step - len(values) + 1):
        for name, value in zip(("loss", "penalty", "gradient norm"), one, strict=True):
            if not math.isfinite(value):
                raise UserError(f"the {name} of step {step} is {value}; {_rows(batches, step)}. {_advice(run, rate)}")
    losses = [loss for loss, *_ in values]
    progress.first_losses += losses[: COMPARED - len(progress.first_losses)]
    progress.last_losses = [*progress.last_losses, *losses][-COMPARED:]
    if progress.step < 2 * COMPARED:
        return
    before, now = statistics.median(progress.first_losses), statistics.median(progress.last_losses)
    if now > EXPLODED * max(before, 1.0):
        raise UserError(
            f"the loss has exploded: it was {before:.3g} in the first steps and is {now:.3g} at step {progress.step}."
            f" {_advice(run, rate)}"
        )


def _rows(batches: MicroBatches, step: int) -> str:
    """The rows of a step, by their numbers among the training rows, from 1."""
    rows = batches.rows(step - 1)
    numbers = sorted({batches.encoded[row]["row"] + 1 for row in rows})
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"its rows are {', '.join(map(str, numbers[:SHOWN]))}{more} of the training rows"


def _advice(run: Run, rate: float | None) -> str:
    last = checkpoint.latest(run.checkpoints)
    return f"Start again with a lower train.learning_rate (now {rate:g}), or check the rows; " + (
        f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
    )
