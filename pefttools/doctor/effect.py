"""The effect of a run's adapter on the outputs, and whether bf16 can represent what training changed.

The trained model is compared with the base under the same trained head, because a new head's outputs mean nothing. The
effect is ‖z − z₀‖ / ‖z₀‖ over the logits z of some rows. It says when there is hardly any, but not when it is too much:
it is 3 in a good run on question types, where the base's outputs are small. An adapter overwhelms the base if its
change of the blocks' weights is larger than the weights, ‖ΔW‖_F > ‖W‖_F (0.04 in that run), or if the outputs no longer
depend on the text, which is seen in their spread over the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pefttools.doctor.saved import RunToCheck, loads
from pefttools.reporter import Finding
from pefttools.strategies.base import trained
from pefttools.training.evaluation import Evaluator
from pefttools.training.run import load
from pefttools.training.weight_change import moved

if TYPE_CHECKING:
    from torch import Tensor, nn

TINY = 0.003
"""Effect below which the adapter hardly changes anything."""
LARGE = 1.0
"""Change of the weights, as a share of their size, above which they are no longer the base's."""
CONSTANT = 0.01
"""Spread of the outputs over rows, as a share of their size, below which they no longer depend on the text."""
LOST = 0.9
"""Share of the changed weights that bf16 rounds back to their start, from which on the run did next to nothing."""
LEAST_ROWS = 8
OVERWHELMS = "the adapter overwhelms the base"


def why_not(subject: RunToCheck) -> str | None:
    """The reason why the effect cannot be measured."""
    if subject.result["params"]["adapter"] == 0:
        return "the run trained only a head"
    if len(subject.rows) < LEAST_ROWS:
        return f"the run has fewer than {LEAST_ROWS} scored rows"
    return loads(subject)


def effect(subject: RunToCheck) -> Iterator[Finding]:
    """A finding if the adapter hardly changes the outputs, or makes them the same for every row."""
    import torch

    now = dict(subject.trained.model.named_parameters())
    own = {name: p for name, p in trained(subject.start.model).items() if subject.is_of_head(name) and name in now}
    before = {name: p.detach().clone() for name, p in own.items()}
    try:
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(now[name])
        start, end = _logits(subject, subject.start.model), _logits(subject, subject.trained.model)
    finally:
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(before[name])
    if start.shape != end.shape:
        return
    change = float((end - start).norm() / start.norm())
    spread, spread_before = _spread(end), _spread(start)
    if change < TINY:
        evidence = f"logits of {len(subject.rows)} rows change by {change:.2%} of their size"
        yield _finding(subject, "the adapter hardly changes the outputs", evidence, 1)
    elif spread < CONSTANT <= spread_before:
        evidence = f"over {len(subject.rows)} rows the logits vary by {spread:.2%} of their size, without the adapter"
        evidence += f" by {spread_before:.2%}"
        yield _finding(subject, f"{OVERWHELMS}: the outputs are nearly the same for every text", evidence, 1 / 3)
    elif (relative := _weight_change(subject)) > LARGE:
        evidence = f"its change of the blocks' weights is {relative:.3g} times as large as they are (their norms)"
        yield _finding(subject, f"{OVERWHELMS}: hardly anything of the base's weights is left", evidence, 1 / 3)


def _finding(subject: RunToCheck, what: str, evidence: str, factor: float) -> Finding:
    """A finding whose cure is another learning rate: the strategy's default, multiplied by `factor`."""
    rate = factor * subject.recipe.strategy.start_lr()
    cure = f"pefttools train {subject.run.recipe_file} --out NEW_RUN train.learning_rate={rate:.2g}"
    return Finding("effect of the adapter", what, evidence, cure)


def _weight_change(subject: RunToCheck) -> float:
    """‖ΔW‖_F / ‖W‖_F of the blocks; 0 where the method cannot be merged, and where W had random values."""
    recipe = subject.recipe
    if not recipe.strategy.mergeable or recipe.base.init == "scratch" or recipe.base.quantize:
        return 0.0
    trained = load(subject.run.path, subject.reporter, is_calibrated=False)  # another copy, as merging changes it
    return moved(trained)["relative"]


def _logits(subject: RunToCheck, model: nn.Module) -> Tensor:
    """The mean logits of every row, shape (rows, classes), or (rows, vocabulary) for tasks with logits per token."""
    import torch

    task = subject.recipe.task
    evaluator = Evaluator(model, task, subject.start.base.tokenizer)
    found: dict[int, Any] = {}
    indices = range(len(subject.encoded["length"]))
    for part, batch, outputs in evaluator.outputs(subject.encoded, indices):
        for index, row in zip(part, task.logits_of_rows(outputs, batch), strict=True):
            found[index] = row.float().cpu() if row.ndim == 1 else row.float().mean(0).cpu()
    width = min(len(found[index]) for index in indices)
    return torch.stack([found[index][:width] for index in indices])


def _spread(logits: Tensor) -> float:
    """The deviation of rows from their mean, as a share of the size of the logits."""
    return float((logits - logits.mean(0)).norm() / logits.norm())


def why_no_bf16(subject: RunToCheck) -> str | None:
    """The reason why rounding to bf16 lost nothing."""
    if subject.result["train"].get("precision") != "bf16":
        return "the run was not computed in bf16"
    return loads(subject)


def bf16_underflow(subject: RunToCheck) -> Iterator[Finding]:
    """A finding if most weights of the base that changed are the same as before once they are rounded to bf16.

    Matrices are multiplied in bf16, so these changes never reached the outputs. An adapter's own matrices are not
    affected: they start near zero, where bf16 is as fine as fp32.
    """
    import torch

    now = dict(subject.trained.model.named_parameters())
    changed = lost = 0
    for name, before in trained(subject.start.model).items():
        if name not in subject.start.of_base or before.ndim != 2 or name not in now or subject.is_of_head(name):
            continue
        one, other = before.detach().cpu(), now[name].detach().cpu()
        moved = one != other
        changed += int(moved.sum())
        lost += int((moved & (one.to(torch.bfloat16) == other.to(torch.bfloat16))).sum())
    if not changed or lost < LOST * changed:
        return
    yield Finding(
        "bf16 underflow",
        "nearly all changes of the base's matrices are smaller than bf16 can represent, so they had no effect",
        f"{lost:,} of {changed:,} changed weights ({lost / changed:.1%}) are equal to their start in bf16",
        f"pefttools train {subject.run.recipe_file} --out NEW_RUN train.precision=fp32"
        f" train.learning_rate={subject.recipe.strategy.start_lr():g}",
    )
