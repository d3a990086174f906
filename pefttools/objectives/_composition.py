"""The composition of several objectives, and what they need of a run together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError
from pefttools.objectives.base import (
    Batch,
    BoundObjective,
    BoundTargetObjective,
    Context,
    Forward,
    Gradients,
    Loss,
    Objective,
    TargetLosses,
    cross_entropies,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task


class Composed:
    """Several bound objectives around the task's own loss; without objectives, loss and step are unchanged."""

    def __init__(self, task_loss: Loss, bound: Mapping[str, BoundObjective] | None = None) -> None:
        self.bound = dict(bound or {})
        self.loss = task_loss
        """As in `BoundObjective`."""
        losses: TargetLosses | None = cross_entropies
        previous = ""
        for name, one in self.bound.items():
            one.inner, one.inner_losses = self.loss, losses
            self.loss = one.loss
            if type(one).loss is BoundObjective.loss:  # it changes the gradient only (sam)
                continue
            if not isinstance(one, BoundTargetObjective):
                losses, previous = None, previous or name
            elif losses is not None:
                losses = one.target_losses
            elif one.needs_inner_losses:
                raise UserError(
                    f"objectives.{name}: changes the loss of every target, so it must come before {previous}; list the"
                    f" objectives in the order [{name}, {previous}]"
                )
        own = [one for one in self.bound.values() if type(one).add_gradients is not BoundObjective.add_gradients]
        assert len(own) <= 1, "misfits refuses two objectives with adds_gradients = True"
        self._adding = own[0] if own else BoundObjective()

    @property
    def reads_outputs(self) -> bool:
        """Whether an objective reads the outputs of a pass besides the task's loss."""
        return any(type(one).loss is not BoundObjective.loss for one in self.bound.values())

    def add_gradients(self, forward: Forward, batch: Batch, gradients: Gradients) -> Tensor:
        """Add the gradients of one micro-batch to `.grad`, and return its share of the reported loss, shape ()."""
        return self._adding.add_gradients(self.loss, forward, batch, gradients)

    def run_passes(self, accumulate_gradients: Callable[[], Tensor]) -> Tensor:
        """As in `BoundObjective`."""
        for one in self.bound.values():
            one.start_step()
            accumulate_gradients = partial(one.run_passes, accumulate_gradients)
        return accumulate_gradients()

    def abandon_step(self) -> None:
        """As in `BoundObjective`."""
        for one in self.bound.values():
            one.abandon_step()

    @property
    def partial_steps(self) -> int:
        """As in `BoundObjective`."""
        return max((one.partial_steps for one in self.bound.values()), default=0)

    def updated(self) -> None:
        """As in `BoundObjective`."""
        for one in self.bound.values():
            one.updated()

    def state(self) -> dict[str, dict[str, Any]]:
        return {name: one.state() for name, one in self.bound.items()}

    def load_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        for name, one in self.bound.items():
            one.load_state(state[name])


def loss_of(task: Task) -> Loss:
    """The task's own loss."""
    return lambda forward, batch: task.loss(forward(batch), batch)


def composed(chosen: Mapping[str, Objective], context: Context, task_loss: Loss | None = None) -> Composed:
    """The objectives of a recipe, bound and composed around the task's loss or another one.

    Raises:
        UserError: an objective does not work with this model.
    """
    bound = {name: one.bind(context) for name, one in chosen.items()}
    return Composed(task_loss or loss_of(context.task), bound)


def misfits(chosen: Mapping[str, Objective], task: Task, strategy: Strategy) -> list[str]:
    """One message for every objective that does not fit the task, the strategy or another objective."""
    found = []
    for name, one in chosen.items():
        if not strategy.trains:
            found.append(
                f"objectives.{name}: strategy={strategy.name} trains nothing, so objectives have no effect; remove them"
            )
        elif reason := one.problem(task, strategy):
            found.append(f"objectives.{name}: {reason}")
        found += [
            f"objectives.{name}: cannot be combined with {other}; remove one of the two"
            for other in one.excludes
            if other in chosen and (name not in chosen[other].excludes or name < other)
        ]
    adding = [name for name, one in chosen.items() if one.adds_gradients]
    if len(adding) > 1:
        found.append(f"objectives: each of {', '.join(adding)} replaces the passes over a micro-batch; use one of them")
    return found


def reuse_features(chosen: Mapping[str, Objective]) -> bool:
    """Whether the outputs of frozen blocks may be cached for all steps."""
    return all(one.reuses_features for one in chosen.values())


def read_numbers(chosen: Mapping[str, Objective]) -> bool:
    """Whether training batches need the rows' numbers."""
    return any(one.reads_numbers for one in chosen.values())


def read_hidden_states(chosen: Mapping[str, Objective]) -> bool:
    """Whether all blocks must compute their outputs at all tokens."""
    return any(one.reads_hidden_states for one in chosen.values())


def need_plain_autograd(chosen: Mapping[str, Objective]) -> bool:
    """Whether layers that write gradients themselves must be disabled."""
    return any(one.needs_plain_autograd for one in chosen.values())
