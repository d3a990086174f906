"""The update step. The training loop, the memory plan and the compatibility probe all call it.

1. For each micro-batch, the gradient of its summed loss, divided by the number of targets in the whole step, is added
   to `.grad`. An objective can run these passes more than once (SAM runs them a second time, at perturbed weights),
   or run several passes over each micro-batch (FGM runs a second one, with perturbed embeddings).
2. Gradients of a scaled loss (fp16) are divided by the scale. If they overflowed, step 1 is repeated with a lower one.
3. The penalties' gradients are added, once a step.
4. The sum is clipped, the optimizer updates the weights, and the gradients are cleared.

On several processes, every process runs its own micro-batches. `backward` multiplies the loss by the number of
processes, because DDP averages gradients over them; after the last micro-batch all processes have the same gradients of
the loss, so that 2 to 4 give the same result on each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from pefttools.objectives._composition import Composed
    from pefttools.objectives.base import Batch, Forward
    from pefttools.training.penalties import Penalties


Losses = tuple[Tensor, Tensor, Tensor]
"""A step's loss, penalty and gradient norm, each of shape ()."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a step that one forward and one backward pass compute together."""

    batch: Batch
    forward: Forward
    weight: float = 1.0
    """Factor of the loss: 1, or 0 for a filler that a process without rows runs because the others wait for it."""
    without_exchange: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Context of passes after which processes exchange no gradients (`no_sync`)."""
    is_last: bool = True
    """Whether processes exchange gradients after it."""


@dataclass(frozen=True)
class StepGradients:
    """The gradients of one micro-batch; see `objectives.base.Gradients`."""

    one: MicroBatch
    num_targets: int
    backward: Callable[[Tensor], None]
    gradient: Callable[[Tensor, Tensor], Tensor] = lambda loss, tensor: torch.autograd.grad(loss, tensor)[0]

    def add(self, loss: Callable[[], Tensor], more: bool = False) -> Tensor:
        with nullcontext() if self.one.is_last and not more else self.one.without_exchange():
            share = loss() * self.one.weight / self.num_targets
            self.backward(share)
        return share.detach()

    def of(self, loss: Callable[[], Tensor], tensor: Tensor) -> Tensor:
        with self.one.without_exchange():
            return self.gradient(loss(), tensor)

    def share(self, loss: Tensor) -> Tensor:
        return loss.detach() * self.one.weight / self.num_targets


@dataclass(frozen=True)
class Update:
    """What an update step needs."""

    objectives: Composed
    penalties: Penalties
    optimizer: Optimizer
    backward: Callable[[Tensor], None]
    clip: Callable[[], Any]
    """Clip the gradients of loss and penalties; returns their norm before clipping."""
    unscale: Callable[[], bool] = lambda: True
    """Divide the gradients of the loss by its scale; returns False if they overflowed and must be computed again."""
    gradient: Callable[[Tensor, Tensor], Tensor] = lambda loss, tensor: torch.autograd.grad(loss, tensor)[0]
    """The gradient of a loss with respect to one tensor, unscaled."""
    on_loss_gradients: Callable[[], None] = lambda: None
    """Called when `.grad` contains the gradients of the loss, before those of penalties are added."""
    on_updated: Callable[[], None] = lambda: None
    """Called after the optimizer's step, while `.grad` is still there: some strategies prune by it (AdaLoRA)."""

    def step(self, micro_batches: Callable[[], Iterable[MicroBatch]], num_targets: int) -> Losses:
        """Update the weights once.

        Args:
            micro_batches: returns the micro-batches of this process; each call (SAM makes two) returns the same ones.
            num_targets: number of targets in the step, over all processes.

        Returns:
            this process's share of the mean loss per target, the sum of the penalties, and the gradient norm.
        """

        def accumulate_gradients() -> Tensor:
            loss: Tensor | float = 0.0
            with self.penalties.perturbed():  # mixout replaces some weights by the pretrained ones
                for one in micro_batches():
                    gradients = StepGradients(one, num_targets, self.backward, self.gradient)
                    loss = loss + self.objectives.add_gradients(one.forward, one.batch, gradients)
            return torch.as_tensor(loss)

        loss = self.objectives.run_passes(accumulate_gradients)
        while not self.unscale():
            self.optimizer.zero_grad()
            self.objectives.abandon_step()
            loss = self.objectives.run_passes(accumulate_gradients)
        self.on_loss_gradients()
        penalty = self.penalties.add_gradients()
        norm = self.clip()
        self.optimizer.step()
        self.objectives.updated()
        self.on_updated()
        self.optimizer.zero_grad()
        return loss, torch.as_tensor(penalty), torch.as_tensor(norm)
