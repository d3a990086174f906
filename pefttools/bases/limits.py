"""What a base leaves a method: positions for virtual tokens, a place for keys and values before a text, a rank."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.bases.loading import Base
    from pefttools.tasks.base import Task

MIN_TOKENS = 4
"""The shortest text a task cuts to."""
PADDING = 8
"""How much padding a row is tried with."""
READS, WARNS = 1e-2, 1e-3
"""From which change of a logit on, in parts of the largest, a model reads padding, and from which on you should know.
Rounding makes less than 1e-5."""


def refuse_padding_readers(
    base: Base,
    task: Task,
    strategy: str,
    model: nn.Module,
    row: Mapping[str, Sequence[Any]],
    unwrapped: Callable[[], Base],
    reporter: Reporter,
) -> None:
    """Try one encoded row with padding and without; its answer must be the same.

    Args:
        strategy: the name of the strategy that made `model` of `base`.
        unwrapped: loads the base anew, to see which of the two is at fault.

    Raises:
        UserError: it is another one (FNet mixes all places of a row, padding too), or the model fails on the row.
    """  # fmt: skip
    if not (problem := _padding_problem(base, task, model, row, reporter)):
        return
    name = _name(base)
    plain = unwrapped()
    if own := _padding_problem(plain, task, plain.model.to(next(model.parameters()).device), row, SILENT):
        raise UserError(f"base: {name} {own}; take another base")
    raise UserError(f"strategy: with {strategy} {name} {problem}; `pefttools list strategies` shows what works where")


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
    padded = padded[: len(plain)]  # without an attention mask nobody knows which places are real
    gap = float((plain - padded).abs().max() / plain.abs().max()) if plain.numel() else 0.0
    if gap > READS and not base.quantised:  # in 8 bits what stands beside a number decides how it is rounded
        return (
            "reads padding: a prediction depends on how long the other texts of its batch are (its logits change by up"
            f" to {gap:.0%} of the largest)"
        )
    if gap > WARNS and not base.quantised:
        reporter.warn(
            f"{_name(base)} reads padding a little: a text's logits change by up to {gap:.1%} of the largest with the"
            " length of the other texts of its batch"
        )
    return None


def _logits(task: Task, model: nn.Module, batch: Mapping[str, Tensor], device: Any) -> Tensor:
    batch = {name: value.to(device) for name, value in batch.items()}
    return task.logits_of_rows(model(**task.inputs_of(batch)), batch)[0].float()


def take_positions(base: Base, number: int, key: str) -> None:
    """Leave room for `number` virtual tokens: longer texts are cut.

    Raises:
        UserError: there is no room, or peft has no virtual tokens for this kind of model and task.
    """
    if base.task_type is None:
        raise UserError("strategy: peft has no virtual tokens for this task; use lora, adapter or ia3")
    if base.model.config.is_encoder_decoder and base.task_type != "SEQ_2_SEQ_LM":
        raise UserError(
            f"strategy: {base.source} is an encoder-decoder, and peft cannot put virtual tokens before one that"
            " classifies; use lora, adapter or ia3"
        )
    limit = base.tokenizer.model_max_length
    if limit - number < MIN_TOKENS:
        raise UserError(
            f"{key}: {number} virtual tokens leave {max(limit - number, 0)} of the {limit} positions of {base.source};"
            f" a text needs at least {MIN_TOKENS}: at most {limit - MIN_TOKENS} can be virtual"
        )
    base.tokenizer.model_max_length = limit - number


def refuse_last_token(base: Base) -> None:
    """Raises UserError when the model classifies by its last token: given embeddings, it would take padding for it."""
    left = getattr(base.tokenizer, "padding_side", "right") == "left"  # XLNet's
    if base.task_type == "SEQ_CLS" and (left or hasattr(base.model, "score")):  # so decoders' heads are named
        raise UserError(
            f"strategy: {base.source} ({type(base.model).__name__}) reads its answer at the last token, and cannot find"
            " that behind virtual tokens when texts are padded; strategy=lora and adapter work"
        )


def refuse_without_past(base: Base) -> None:
    """Raises UserError when the model takes no keys and values from before the text."""
    forwards = (base.model.forward, base.model.base_model.forward)
    if not any("past_key_values" in inspect.signature(forward).parameters for forward in forwards):
        raise UserError(
            f"strategy: {base.source} ({type(base.model).__name__}) takes no keys and values from before the text;"
            " strategy=lora and adapter work"
        )


def refuse_rank_beyond(base: Base, paths: Iterable[str], rank: int, key: str = "strategy.rank") -> None:
    """Raises UserError when the rank exceeds the smaller side of one of the matrices."""
    modules = {path: base.model.get_submodule(path) for path in paths}
    sides = {path: min(_sides(module)) for path, module in modules.items()}
    smallest = min(sides, key=lambda path: sides[path])
    if rank > sides[smallest]:
        raise UserError(f"{key}: {rank} is more than {smallest} allows, whose smaller side is {sides[smallest]}")


def _sides(module: Any) -> tuple[int, int]:
    """(in, out) of an `nn.Linear`, quantised or not (a packed weight's shape says nothing), or of a `Conv1D`."""
    import torch

    return (module.in_features, module.out_features) if isinstance(module, torch.nn.Linear) else (module.nx, module.nf)
