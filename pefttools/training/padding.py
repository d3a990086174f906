"""Whether what a model returns for a row depends on the padding behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError
from pefttools.reporter import SILENT, Finding, Reporter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.bases.loading import Base
    from pefttools.tasks.base import Task

PADDING = 8
"""Number of padding tokens that a row is tried with."""
READS, WARNS = 1e-2, 1e-3
"""Change of a logit, as a share of the largest one, above which a model is refused, and above which you are warned.
Rounding changes less than 1e-5."""


def refuse_padding_readers(
    base: Base,
    task: Task,
    strategy: str,
    model: nn.Module,
    row: Mapping[str, Sequence[Any]],
    unwrapped: Callable[[], Base],
    reporter: Reporter,
) -> None:
    """Run the model on one encoded row with padding and without; its logits must be the same.

    Args:
        strategy: name of the strategy that wraps `base` in `model`.
        unwrapped: loads the base again, to find out which of the two reads padding.

    Raises:
        UserError: the logits differ (FNet mixes all positions of a row, padding included), or the model fails.
    """
    if not (problem := _padding_problem(base, task, model, row, reporter)):
        return
    name = _name(base)
    plain = unwrapped()
    bare: Any = plain.model
    bare.to(next(model.parameters()).device)
    if own := _padding_problem(plain, task, bare, row, SILENT):
        raise UserError(f"base: {name} {own}; use another base")
    raise UserError(
        f"strategy: with {strategy} {name} {problem}; `pefttools list strategies` shows which strategies work on which"
        " kind of model"
    )


def _name(base: Base) -> str:
    return f"{base.source} ({type(base.model).__name__})"


def _padding_problem(
    base: Base, task: Task, model: nn.Module, row: Mapping[str, Sequence[Any]], reporter: Reporter
) -> str | None:
    import torch

    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.no_grad():
            batch = task.collate(row, base.tokenizer, 1)
            longer = task.collate(row, base.tokenizer, batch["input_ids"].shape[-1] + PADDING)
            plain, padded = (_logits(task, model, one, device) for one in (batch, longer))
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return f"fails on the shortest training row: {type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        model.train(was_training)
    padded = padded[: len(plain)]  # without an attention mask, logits of padding are returned too
    gap = float((plain - padded).abs().max() / plain.abs().max()) if plain.numel() else 0.0
    if gap > READS and not base.quantised:  # int8 rounds activations by the largest one, padding included
        return (
            "reads padding: predictions depend on the length of the other texts in the batch (logits change by up to"
            f" {gap:.0%} of the largest one)"
        )
    if gap > WARNS and not base.quantised:
        reporter.warn(
            Finding(
                "padding",
                f"{_name(base)} reads padding a little, so predictions depend on the length of the other texts in the"
                " batch",
                f"{PADDING} padding tokens change logits by up to {gap:.1%} of the largest one",
                "pefttools train RECIPE base=OTHER_BASE",
            )
        )
    return None


def _logits(task: Task, model: nn.Module, batch: Mapping[str, Tensor], device: Any) -> Tensor:
    batch = {name: value.to(device) for name, value in batch.items()}
    return task.logits_of_rows(model(**task.inputs_of(batch)), batch)[0].float()
