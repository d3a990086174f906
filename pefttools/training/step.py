"""The update step. The training loop, the memory plan and the compatibility probe all call it.

It sums the gradients of the micro-batches' losses, divided by the number of targets, adds the penalties' gradients
once, clips, and updates the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from pefttools.objectives.base import Batch, Composed, Forward
    from pefttools.training.penalties import Penalties


@dataclass(frozen=True)
class Part:
    """One micro-batch of a step."""

    batch: Batch
    forward: Forward
    weight: float = 1.0
    """0 where a process has no rows left and computes only because the others wait for it."""
    around: AbstractContextManager[Any] = field(default_factory=nullcontext)
    """Context of the passes; it decides whether processes exchange gradients."""


@dataclass(frozen=True)
class Update:
    """The parts of an update step: losses, penalties, optimizer, clipping and callbacks."""

    objectives: Composed
    penalties: Penalties
    optimizer: Optimizer
    backward: Callable[[Tensor], None]
    clip: Callable[[], Any]
    """Scale the gradients down to the largest norm that is allowed; returns the norm."""
    watch: Callable[[], None] = lambda: None
    """Called with the gradients of the loss in place, before those of penalties are added."""
    updated: Callable[[], None] = lambda: None
    """Called after the weights have changed, before the gradients are cleared."""

    def step(self, parts: Callable[[], Iterable[Part]], num_targets: int) -> tuple[Tensor, Tensor, Tensor]:
        """Update the weights once; returns the mean loss per target, the sum of penalties and the gradient norm.

        Args:
            parts: returns the step's micro-batches; called twice where an objective (SAM) needs two passes.
            num_targets: number of targets in the step, over all processes.
        """

        def gradients() -> Tensor:
            loss: Tensor | float = 0.0
            with self.penalties.perturbed():
                for part in parts():
                    with part.around:
                        share = self.objectives.loss(part.forward, part.batch) * part.weight / num_targets
                        self.backward(share)
                    loss = loss + share.detach()
            return torch.as_tensor(loss)

        loss = self.objectives.step(gradients)
        self.watch()
        penalty = self.penalties.add_gradients()
        norm = self.clip()
        self.optimizer.step()
        self.updated()
        self.optimizer.zero_grad()
        return loss, torch.as_tensor(penalty), torch.as_tensor(norm)
