"""A probe of one strategy on one tiny model: wrap, initialize, train and merge it, and check its attributes."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pefttools.compatibility import tiny_models
from pefttools.compatibility.tiny_models import ARCHITECTURES
from pefttools.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task

TOLERANCE = 1e-5
"""Allowed difference of logits that should be equal."""
STEPS = 3
"""Number of steps within which every trained parameter must get a gradient; LoRA's A gets one once B is not zero."""


class Contradiction(Exception):
    """An attribute of a strategy is wrong: a bug of ours, which must not become a line of the matrix."""


@dataclass(frozen=True)
class Found:
    """The result of a probe."""

    reason: str | None = None
    """The reason why the strategy does not work; None where it does."""
    exact_start: bool = False
    merges: bool = False
    merge_reason: str | None = None

    @property
    def fits(self) -> bool | str:
        return self.reason or True


def probe(
    task: Task,
    strategy: Strategy,
    architecture: str,
    quantised: bool = False,
    sizes: Mapping[str, Any] | None = None,
) -> Found:
    """Wrap, initialize, train and merge a tiny model. An error becomes the result's reason.

    Raises:
        Contradiction: the strategy changes quantised weights.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            base = tiny_models.base(task, architecture, quantised, sizes or ARCHITECTURES[architecture].sizes)
            frozen = {n: p.detach().clone() for n, p in base.model.named_parameters() if not p.is_floating_point()}
            bare, plain = copy.deepcopy(base.model), _logits(task, base.model)
            torch.manual_seed(0)
            model = strategy.wrap(base)
            batch = task.inputs_of(tiny_models.batch(task, base.model.config, 0))
            strategy.start(model, [batch] * 2)  # equal batches, so that EVA converges at once
            logits = _logits(task, model)
            if logits.shape != plain.shape:
                raise ArithmeticError(f"logits of shape {tuple(logits.shape)} instead of {tuple(plain.shape)}")
            if _gap(_padded(task, model, logits), logits) > TOLERANCE >= _gap(_padded(task, bare, plain), plain):
                raise ArithmeticError("logits change with padding")
            gap = _gap(logits, plain)
            _train(task, model, strategy)
        except Exception as error:
            return Found(reason=_short(error))
        if changed := [n for n, p in frozen.items() if not _still_there(model, p)]:
            raise Contradiction(f"on a quantised {architecture} it changes or replaces {changed[0]} without an error")
        found = Found(exact_start=gap <= TOLERANCE)
        if not strategy.mergeable or quantised:
            return found
        return _merged(task, model, strategy, found)


def _train(task: Task, model: nn.Module, strategy: Strategy) -> None:
    """Take a few of the training loop's steps. Raises if logits are not finite or a parameter gets no gradient."""
    import torch

    from pefttools.objectives._composition import Composed
    from pefttools.objectives.base import Batch, Forward
    from pefttools.recipe.train_settings import TrainSettings
    from pefttools.strategies.base import trained
    from pefttools.training import optimizer_setup
    from pefttools.training.penalties import Penalties
    from pefttools.training.step import MicroBatch, Update

    waiting = set(trained(model))
    if not waiting:
        assert not strategy.trains, "no parameter is trained"
        return
    optimizer = optimizer_setup.build(model, strategy, TrainSettings(learning_rate=strategy.start_lr()))
    model.train()
    batch = tiny_models.batch(task, model.config, 0)

    def loss(forward: Forward, batch: Batch) -> Tensor:
        outputs = forward(batch)
        first, further = task.logits(outputs, batch).flatten(0, -2), task.row_logits(outputs)
        return _any_loss(first) if further is None else _any_loss(first) + _any_loss(further)

    def watch() -> None:
        waiting.difference_update(n for n, p in trained(model).items() if p.grad is not None and p.grad.any())

    def run(batch: Batch, embeddings: Tensor | None = None) -> Any:
        assert embeddings is None
        return model(**task.inputs_of(batch))

    part = MicroBatch(batch, run)
    penalties = Penalties(strategy, model)
    for step in range(1, STEPS + 1):
        updated = partial(strategy.updated, model, step, STEPS)
        update = Update(
            Composed(loss),
            penalties,
            optimizer,
            torch.Tensor.backward,
            _unclipped,
            on_loss_gradients=watch,
            on_updated=updated,
        )
        update.step(lambda: (part,), 1)
    if not _logits(task, model).isfinite().all():
        raise ArithmeticError("logits are not finite after training")
    if waiting:
        raise ArithmeticError(f"{len(waiting)} trained parameters never get a gradient: {min(waiting)}")


def _any_loss(logits: Tensor) -> Tensor:
    """A loss of logits of shape (targets, classes), for arbitrary targets; shape ()."""
    import torch

    if logits.shape[-1] > 1:
        return torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[-1])
    return (logits[:, 0] - torch.arange(len(logits))).square().mean()


def _unclipped() -> float:
    return 0.0


def _merged(task: Task, model: nn.Module, strategy: Strategy, found: Found) -> Found:
    """The result of the probe, completed by merging the trained model."""
    import torch

    batch = tiny_models.batch(task, model.config, 0)  # made before merging, which may enlarge the vocabulary
    before = _logits(task, model)
    try:
        merged = task.to_transformers(strategy.merge(model))
        with torch.no_grad():
            gap = _gap(_logits_of(task, merged.eval(), batch), before)
    except Exception as error:
        return Found(None, found.exact_start, False, f"cannot be merged: {_short(error)}")
    foreign = {type(m).__module__.partition(".")[0] for m in merged.modules()} - {"torch", "transformers"}
    if foreign:
        return Found(None, found.exact_start, False, f"merging leaves modules of {', '.join(sorted(foreign))}")
    if not gap <= TOLERANCE:
        return Found(None, found.exact_start, False, "merging changes its logits")
    return Found(None, found.exact_start, True)


def _still_there(model: nn.Module, parameter: Tensor) -> bool:
    """Whether the model contains an unchanged frozen tensor."""
    import torch

    return any(
        p.shape == parameter.shape and p.dtype == parameter.dtype and torch.equal(p, parameter)
        for p in model.parameters()
    )


def _logits_of(task: Task, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    return task.logits(model(**task.inputs_of(batch)), batch)


def _logits(task: Task, model: nn.Module, padding: int = 0) -> Tensor:
    import torch

    with torch.no_grad():
        return _logits_of(task, model.eval(), tiny_models.batch(task, model.config, padding))


def _padded(task: Task, model: nn.Module, logits: Tensor) -> Tensor:
    """The logits of the same rows with padding after them, without the logits of the padding."""
    padded = _logits(task, model, padding=3)
    return padded[tuple(slice(size) for size in logits.shape)] if padded.ndim == logits.ndim else padded


def _gap(logits: Tensor, others: Tensor) -> float:
    return float((logits - others).abs().max()) if logits.shape == others.shape else float("inf")


def _short(error: Exception) -> str:
    """The reason in a few words, the same on every machine."""
    if not isinstance(error, UserError):
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    message = error.problems[0].partition("; ")[0]
    return re.sub(r"^(strategy: |base: )?(it )?(\(\w+\) )?", "", message)
