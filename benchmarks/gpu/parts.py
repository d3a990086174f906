"""The parts of the benchmark, in the order in which they run: the most important ones first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import sizes


class Skipped(Exception):
    """A part that cannot run on this machine; the text is the reason."""


@dataclass(frozen=True)
class Part:
    """One part."""

    run: Callable[[sizes.Sizes, Path, Path], dict[str, Any]]
    """(sizes, folder of shared inputs, own folder) -> the values of the part."""
    seconds: float
    """Limit of its time."""


IMPORTANT = ("encoder", "decoder-1.1b", "decoder-1.1b-full")
"""Cases that come before predictions and plans; the others are last, because they may not fit into ten minutes."""
CONTENDERS = ("pefttools", "pefttools_liger", "trainer", "trainer_tuned", "trl")


def _later(module: str, function: str, *arguments: Any) -> Callable[..., dict[str, Any]]:
    """A function that imports its module when it is called, because the main process needs none of them."""
    return lambda *more: getattr(import_module(module), function)(*arguments, *more)


def parts_of(chosen: sizes.Sizes) -> Mapping[str, Part]:
    """Name -> part, for models and rows of these sizes."""
    found = {"machine": Part(_later("machine", "measure"), 60)}
    for name in ("golden", "ddp_of_one", "resume", "merge", "qlora", "out_of_memory"):
        found[name] = Part(_later("proofs", name), 120)
    trainings = {
        f"{case} {contender}": Part(_later("timings", "train", case, contender), 90)
        for case in chosen.cases
        for contender in CONTENDERS
        if contender not in ("pefttools_liger", "trl") or case.startswith("decoder")
    }
    found |= {name: part for name, part in trainings.items() if name.split()[0] in IMPORTANT}
    for contender in ("pefttools", "pipeline"):
        found[f"predict {contender}"] = Part(_later("timings", "predict", contender), 90)
    found["plan"] = Part(_later("timings", "plan_error"), 120)
    return found | trainings
