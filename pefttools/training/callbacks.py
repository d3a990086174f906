"""Callbacks: what a program of the user's own does while a run trains. They see numbers and paths, and nothing else.

A callback gets no model, no batch and no optimizer, and the random states are those of before after it returns, so that
it cannot change the result by accident. The one thing that it can do is to end training early.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    step: int
    """Its number, from 1."""
    num_steps: int
    """Number of steps of the whole run."""
    loss: float
    """Mean over the step's targets, without penalties."""
    penalty: float
    """Sum of the penalties."""
    gradient_norm: float
    """Before it is clipped."""


@dataclass(frozen=True)
class Evaluation:
    """The scores on the validation rows after a step."""

    step: int
    num_steps: int
    metrics: Mapping[str, float]
    """The task's metrics that are numbers, and `loss`."""
    is_best: bool
    """Whether the weights of this step are the best so far, which a run keeps."""


class Callback:
    """Does nothing; subclass it, and override what you need. Any object with some of these methods will do."""

    def on_step(self, step: Step) -> None:
        """After every optimizer step."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """After every evaluation on the validation rows."""

    def on_checkpoint(self, folder: Path) -> None:
        """After a checkpoint was written to this folder."""

    def should_stop(self) -> bool:
        """Whether to end training now, as an early stop does: the best weights are kept and scored."""
        return False


@dataclass(frozen=True)
class Callbacks:
    """The callbacks of a run, called in their order."""

    members: Sequence[object] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.members)

    def on_step(self, step: Step) -> None:
        self._call("on_step", step)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        self._call("on_evaluation", evaluation)

    def on_checkpoint(self, folder: Path) -> None:
        self._call("on_checkpoint", folder)

    def should_stop(self) -> bool:
        """Whether any callback wants to stop; all are asked."""
        return any(self._call("should_stop"))

    def _call(self, method: str, *values: object) -> list[object]:
        if not self.members:
            return []
        with same_random_states():
            return [found(*values) for one in self.members if (found := getattr(one, method, None)) is not None]


@contextmanager
def same_random_states() -> Iterator[None]:
    """After this context, Python's, numpy's and torch's random states are those of before it."""
    import numpy
    import torch

    python, arrays = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
