"""One strategy tried on one tiny model: wrapped, started, trained and merged, and whether what it claims holds."""

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
"""How far logits may differ that should be the same."""
STEPS = 3
"""Steps within which everything trained must have had a gradient: LoRA's A gets its first once B has moved."""


class Contradiction(Exception):
    """A strategy claims of itself what is not so: our bug, never a row of the matrix."""


@dataclass(frozen=True)
class Found:
    """What one probe saw."""

    reason: str | None = None
    """Why it does not fit; None where it does."""
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
    """Wrap, start, train and merge a tiny model. What goes wrong becomes the reason; nothing but a bug raises."""
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
            strategy.start(model, [batch] * 2)  # alike, so that EVA converges at once
            logits = _logits(task, model)
            if logits.shape != plain.shape:
                raise ArithmeticError(f"answers of shape {tuple(logits.shape)} for {tuple(plain.shape)}")
            if _gap(_padded(task, model, logits), logits) > TOLERANCE >= _gap(_padded(task, bare, plain), plain):
                raise ArithmeticError("answers change with padding")
            gap = _gap(logits, plain)
            _train(task, model, strategy)
        except Exception as error:
            return Found(reason=_short(error))
        if changed := [n for n, p in frozen.items() if not _still_there(model, p)]:
            raise Contradiction(f"on a quantised {architecture} it changes or replaces {changed[0]} without a word")
        found = Found(exact_start=gap <= TOLERANCE)
        if not strategy.mergeable or quantised:
            return found
        return _merged(task, model, strategy, found)


def _train(task: Task, model: nn.Module, strategy: Strategy) -> None:
    """A few steps like the loop's. Raises where an answer is not finite or something trained has no gradient."""
    import torch

    from pefttools.objectives.base import Batch, Composed, Forward
    from pefttools.recipe.train_settings import TrainSettings
    from pefttools.strategies.base import trained
    from pefttools.training import optimizer_setup
    from pefttools.training.penalties import Penalties
    from pefttools.training.step import Part, Update

    waiting = set(trained(model))
    if not waiting:
        assert not strategy.trains, "nothing is trained"
        return
    optimizer = optimizer_setup.build(model, strategy, TrainSettings(learning_rate=strategy.start_lr()))
    model.train()
    batch = tiny_models.batch(task, model.config, 0)

    def loss(forward: Forward, batch: Batch) -> Tensor:
        logits = forward(batch).flatten(0, -2)
        if logits.shape[-1] > 1:
            return torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[-1])
        return (logits[:, 0] - torch.arange(len(logits))).square().mean()

    def watch() -> None:
        waiting.difference_update(n for n, p in trained(model).items() if p.grad is not None and p.grad.any())

    def run(batch: Batch, embeddings: Tensor | None = None) -> Tensor:
        assert embeddings is None
        return _answer(task, model, batch)

    part = Part(batch, run)
    penalties = Penalties(strategy, model)
    for step in range(1, STEPS + 1):
        updated = partial(strategy.updated, model, step, STEPS)
        update = Update(Composed(loss), penalties, optimizer, torch.Tensor.backward, _unclipped, watch, updated)
        update.step(lambda: (part,), 1)
    if not _logits(task, model).isfinite().all():
        raise ArithmeticError("answers are not finite after training")
    if waiting:
        raise ArithmeticError(f"{len(waiting)} trained tensors never get a gradient: {min(waiting)}")


def _unclipped() -> float:
    return 0.0


def _merged(task: Task, model: nn.Module, strategy: Strategy, found: Found) -> Found:
    """The same with what merging the trained model does."""
    import torch

    batch = tiny_models.batch(task, model.config, 0)  # merging may make the vocabulary larger
    before = _logits(task, model)
    try:
        merged = task.to_transformers(strategy.merge(model))
        with torch.no_grad():
            gap = _gap(_answer(task, merged.eval(), batch), before)
    except Exception as error:
        return Found(None, found.exact_start, False, f"cannot be merged: {_short(error)}")
    foreign = {type(m).__module__.partition(".")[0] for m in merged.modules()} - {"torch", "transformers"}
    if foreign:
        return Found(None, found.exact_start, False, f"merging leaves modules of {', '.join(sorted(foreign))}")
    if not gap <= TOLERANCE:
        return Found(None, found.exact_start, False, "merging changes its answers")
    return Found(None, found.exact_start, True)


def _still_there(model: nn.Module, parameter: Tensor) -> bool:
    """Whether a frozen tensor is in the model as it was."""
    import torch

    return any(
        p.shape == parameter.shape and p.dtype == parameter.dtype and torch.equal(p, parameter)
        for p in model.parameters()
    )


def _answer(task: Task, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    return task.logits(model(**task.inputs_of(batch)), batch)


def _logits(task: Task, model: nn.Module, padding: int = 0) -> Tensor:
    import torch

    with torch.no_grad():
        return _answer(task, model.eval(), tiny_models.batch(task, model.config, padding))


def _padded(task: Task, model: nn.Module, logits: Tensor) -> Tensor:
    """The logits of the same rows with padding behind them, without the padding's own."""
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
