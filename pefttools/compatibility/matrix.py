"""The support matrix: task × strategy × architecture, and bases quantised to nf4, measured on tiny models.

`python -m pefttools.compatibility.matrix [TASK …]` builds a tiny model of every architecture from its configuration,
wraps, trains and merges it, and writes the results to `compatibility/support.json`. A test measures them again and
compares. A strategy's attributes (`mergeable`, `exact_start`) must agree with the measurements; if they do not, nothing
is written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.atomic import write_text
from pefttools.compatibility import tiny_models
from pefttools.compatibility.probe import Contradiction, probe
from pefttools.compatibility.tiny_models import ARCHITECTURES

if TYPE_CHECKING:
    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task

FILE = Path(__file__).parent / "support.json"
COMMAND = "python -m pefttools.compatibility.matrix"
"""The command that writes the file."""
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def saved() -> dict[str, Any]:
    """The matrix that was written last. Imports and computes nothing."""
    return json.loads(FILE.read_text("utf-8"))


def matrix(only: str | None = None, architectures: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure the matrix, on one thread, which is fastest for such small models.

    Args:
        only: measure this task only.
        architectures: measure these architectures only.

    Raises:
        Contradiction: strategies whose attributes are wrong; the message lists all of them.
    """
    import torch

    from pefttools.strategies import strategies
    from pefttools.tasks import tasks

    chosen = tuple(ARCHITECTURES) if architectures is None else architectures
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    problems: list[str] = []
    try:
        measured = {
            name: {s: rows(tasks.get(name).example(), strategies.get(s), problems, chosen) for s in strategies.names()}
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


def rows(task: Task, cls: type[Strategy], problems: list[str], architectures: Sequence[str]) -> dict[str, Any]:
    """Variant -> its line, first for the strategy's default settings; adds contradictions to `problems`."""
    found: dict[str, Any] = {}
    for variant, settings in {"default": {}, **cls.variants}.items():
        try:
            found[variant] = row(task, cls(**settings), architectures)
        except Contradiction as error:
            problems.append(f"{task.name}, {cls.name} ({variant}): {error}")
    return found


def row(task: Task, strategy: Strategy, architectures: Sequence[str]) -> dict[str, Any]:
    """One line of the matrix: `merges`, `exact_start`, `fits` by architecture and `nf4` by quantised architecture.

    Raises:
        Contradiction: the strategy's attributes disagree with the measurements.
    """
    found = {name: probe(task, strategy, name) for name in architectures}
    fitting = {name: f for name, f in found.items() if f.reason is None}
    problems = [
        f"on {name} it claims {claim} but {f.merge_reason or 'changes predictions before training'}"
        for name, f in fitting.items()
        for claim, measured in (("mergeable", f.merges), ("exact_start", f.exact_start))
        if getattr(strategy, claim) and not measured
    ]
    if problems:
        raise Contradiction("; ".join(problems))
    return {
        "merges": strategy.mergeable,
        "exact_start": bool(fitting) and all(f.exact_start for f in fitting.values()),
        "fits": {name: f.fits for name, f in found.items()},
        "nf4": {name: probe(task, strategy, name, True).fits for name in tiny_models.QUANTISED if name in found},
    }


def peft_types(problems: list[str]) -> dict[str, Any]:
    """Every `peft_type` of the installed peft on a BERT: whether it works with default settings, and merges."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from pefttools.strategies.peft import Peft
    from pefttools.tasks.text_classification import TextClassification

    results: dict[str, Any] = {}
    for kind in sorted(PeftType):
        virtual = "num_virtual_tokens" in PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__
        strategy = Peft(type=kind.value, settings={"num_virtual_tokens": 4} if virtual else {})  # it has no default
        found = probe(TextClassification.example(), strategy, "bert", sizes=tiny_models.WIDE)
        results[kind.value] = {"fits": found.fits}
        if found.reason is None:
            results[kind.value] |= {"merges": found.merges, "exact_start": found.exact_start}
            if strategy.mergeable and not found.merges:
                problems.append(f"peft's {kind.value}: it claims mergeable but {found.merge_reason}")
    return results


def write(names: Sequence[str] = ()) -> None:
    """Measure the matrix and write it to the file.

    Args:
        names: measure these tasks only, and leave the others as they are in the file.
    """
    from pefttools.bases.loading import prepare_libraries

    prepare_libraries()
    if names:
        found = saved()
        for name in names:
            found["tasks"][name] = matrix(name)["tasks"][name]
    else:
        found = matrix()
    write_text(FILE, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    write(sys.argv[1:])
