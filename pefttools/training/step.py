"""The update step: the only one there is. The loop, the memory plan and the compatibility probe all call it.

Gradients of the rows' summed loss, divided by the number of targets; of penalties, once; clipped; into the weights.
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
    """Rows of a step that are computed at once."""

    batch: Batch
    forward: Forward
    weight: float = 1.0
    """0 where a process only takes part because the others have rows."""
    around: AbstractContextManager[Any] = field(default_factory=nullcontext)
    """Around its passes: whether processes exchange gradients."""


@dataclass(frozen=True)
class Update:
    """Everything that a step changes, and how."""

    objectives: Composed
    penalties: Penalties
    optimizer: Optimizer
    backward: Callable[[Tensor], None]
    clip: Callable[[], Any]
    """Scale the gradients down to the largest norm that is allowed; returns the norm."""
    watch: Callable[[], None] = lambda: None
    """Look at the loss's gradients before anything is added."""
    updated: Callable[[], None] = lambda: None
    """Called once the weights have changed, with their gradients still there."""

    def step(self, parts: Callable[[], Iterable[Part]], num_targets: int) -> tuple[Tensor, Tensor, Tensor]:
        """Change the weights once; returns the mean loss of a target, what penalties add, and the gradients' norm.

        Args:
            parts: the step's rows, micro-batch by micro-batch; asked again where an objective computes them twice.
            num_targets: over all processes.
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
