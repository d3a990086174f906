"""Which strategy works where, found by trying: task × strategy × architecture, and on a base quantised to nf4.

`python -m pefttools.support [TASK …]` builds a tiny model of every architecture from its configuration, wraps, trains
and merges it, and writes what happened to `strategies/support.json`. A test does the same and compares. What a strategy
claims of itself (`mergeable`, `exact_start`) and what was measured must agree; where they do not, nothing is written.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import tiny
from pefttools.atomic import write_text
from pefttools.errors import UserError
from pefttools.tiny import ARCHITECTURES

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task

KEPT = Path(__file__).parent / "strategies" / "support.json"
COMMAND = "python -m pefttools.support"
"""What writes the kept file anew."""
TOLERANCE = 1e-5
"""How far logits may differ that should be the same."""
STEPS = 3
"""Steps within which everything trained must have had a gradient: LoRA's A gets its first once B has moved."""
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


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


def kept() -> dict[str, Any]:
    """The matrix that was written last; nothing is imported or computed."""
    return json.loads(KEPT.read_text("utf-8"))


def matrix(only: str | None = None, architectures: Iterable[str] = tuple(ARCHITECTURES)) -> dict[str, Any]:
    """The whole matrix, measured now, on one thread: that is fastest for models so small.

    Args:
        architectures: only these, where given.
        only: only this task, where given.

    Raises:
        Contradiction: strategies whose claims are wrong, every one of them.
    """
    import torch

    from pefttools.strategies import strategies
    from pefttools.tasks import tasks

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    problems: list[str] = []
    try:
        measured = {
            name: {
                s: rows(tasks.get(name).example(), strategies.get(s), problems, architectures)
                for s in strategies.names()
            }
            for name in ([only] if only else tasks.names())
        }
        types = {} if only else peft_types(problems)
    finally:
        torch.set_num_threads(threads)
    if problems:
        raise Contradiction("\n".join(problems))
    return {
        "versions": {library: metadata.version(library) for library in LIBRARIES},
        "architectures": {name: architecture.group for name, architecture in ARCHITECTURES.items()},
        "tasks": measured,
        "peft_types": types,
    }


def rows(
    task: Task, cls: type[Strategy], problems: list[str], architectures: Iterable[str] = tuple(ARCHITECTURES)
) -> dict[str, Any]:
    """Variant -> its line, the strategy as it is by default first; contradictions are added to `problems`."""
    found: dict[str, Any] = {}
    for variant, settings in {"default": {}, **cls.variants}.items():
        try:
            found[variant] = row(task, cls(**settings), architectures)
        except Contradiction as error:
            problems.append(f"{task.name}, {cls.name} ({variant}): {error}")
    return found


def row(task: Task, strategy: Strategy, architectures: Iterable[str] = tuple(ARCHITECTURES)) -> dict[str, Any]:
    """One line of the matrix: `merges`, `exact_start`, `fits` by architecture and `nf4` by quantised architecture.

    Raises:
        Contradiction: the strategy's claims and what was measured disagree.
    """
    found = {name: probe(task, strategy, name) for name in architectures}
    fitting = {name: f for name, f in found.items() if f.reason is None}
    problems = [
        f"on {name} it claims {claim} but {f.merge_reason or 'starts elsewhere'}"
        for name, f in fitting.items()
        for claim, held in (("mergeable", f.merges), ("exact_start", f.exact_start))
        if getattr(strategy, claim) and not held
    ]
    if problems:
        raise Contradiction("; ".join(problems))
    return {
        "merges": strategy.mergeable,
        "exact_start": bool(fitting) and all(f.exact_start for f in fitting.values()),
        "fits": {name: f.fits for name, f in found.items()},
        "nf4": {name: probe(task, strategy, name, True).fits for name in tiny.QUANTISED if name in found},
    }


def peft_types(problems: list[str]) -> dict[str, Any]:
    """Every `peft_type` of the installed peft on a BERT: whether it fits at its default settings, and merges."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from pefttools.strategies.peft import Peft
    from pefttools.tasks.text_classification import TextClassification

    answers: dict[str, Any] = {}
    for kind in sorted(PeftType):
        virtual = "num_virtual_tokens" in PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__
        strategy = Peft(type=kind.value, settings={"num_virtual_tokens": 4} if virtual else {})  # it has no default
        found = probe(TextClassification.example(), strategy, "bert", sizes=tiny.WIDE)
        answers[kind.value] = {"fits": found.fits}
        if found.reason is None:
            answers[kind.value] |= {"merges": found.merges, "exact_start": found.exact_start}
            if strategy.mergeable and not found.merges:
                problems.append(f"peft's {kind.value}: it claims mergeable but {found.merge_reason}")
    return answers


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
            base = tiny.base(task, architecture, quantised, sizes or ARCHITECTURES[architecture].sizes)
            frozen = {n: p.detach().clone() for n, p in base.model.named_parameters() if not p.is_floating_point()}
            bare, plain = copy.deepcopy(base.model), _logits(task, base.model)
            torch.manual_seed(0)
            model = strategy.wrap(base)
            batch = task.inputs_of(tiny.batch(task, base.model.config, 0))
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

    from pefttools import optimizers
    from pefttools.recipe import TrainSettings
    from pefttools.strategies.base import trained

    waiting = set(trained(model))
    if not waiting:
        assert not strategy.trains, "nothing is trained"
        return
    optimizer = optimizers.build(model, strategy, TrainSettings(learning_rate=strategy.start_lr()))
    model.train()
    batch = tiny.batch(task, model.config, 0)
    for step in range(1, STEPS + 1):
        logits = _answer(task, model, batch).flatten(0, -2)
        if logits.shape[-1] > 1:
            loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[-1])
        else:
            loss = (logits[:, 0] - torch.arange(len(logits))).square().mean()
        loss.backward()
        waiting -= {n for n, p in trained(model).items() if p.grad is not None and p.grad.any()}
        if (extra := strategy.penalty(model)) is not None:
            extra.backward()
        optimizer.step()
        strategy.updated(model, step, STEPS)
        optimizer.zero_grad()
    if not _logits(task, model).isfinite().all():
        raise ArithmeticError("answers are not finite after training")
    if waiting:
        raise ArithmeticError(f"{len(waiting)} trained tensors never get a gradient: {min(waiting)}")


def _merged(task: Task, model: nn.Module, strategy: Strategy, found: Found) -> Found:
    """The same with what merging the trained model does."""
    import torch

    batch = tiny.batch(task, model.config, 0)  # merging may make the vocabulary larger
    before = _logits(task, model)
    try:
        merged = task.plain(strategy.merge(model))
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
        return _answer(task, model.eval(), tiny.batch(task, model.config, padding))


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


def write(names: Sequence[str] = ()) -> None:
    """Measure, and keep it.

    Args:
        names: only these tasks, the others staying as they were.
    """
    from pefttools.models import prepare_libraries

    prepare_libraries()
    if names:
        found = kept()
        for name in names:
            found["tasks"][name] = matrix(name)["tasks"][name]
    else:
        found = matrix()
    write_text(KEPT, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    write(sys.argv[1:])
