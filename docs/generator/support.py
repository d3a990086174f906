"""The page of the support matrix: which strategy works for which task on which kind of model, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from generator.markdown import code, escaped, table
from pefttools.compatibility import matrix

INTRODUCTION = f"""# What works together

Every strategy and its variants were tried for every task on a tiny model of every architecture: wrapped, trained and
merged. `{matrix.COMMAND}` writes these results, and a test measures them again. `pefttools list strategies --task TASK`
prints one table in the terminal.

*merges*: it can be merged into plain weights. *exact start*: before training, the model predicts like the base. *nf4*:
it works on a base that is quantised by `base.quantize=nf4`. A number refers to the reason below the table."""


def page() -> str:
    """The page as Markdown."""
    saved = matrix.saved()
    versions = ", ".join(f"{library} {version}" for library, version in saved["versions"].items())
    parts = [INTRODUCTION, f"Measured with {versions}."]
    parts += [part for task in saved["tasks"] for part in _task(saved, task)]
    return "\n\n".join([*parts, *_peft(saved["peft_types"])]) + "\n"


def _task(saved: Mapping[str, Any], task: str) -> Iterator[str]:
    """The heading of a task, its architectures that no strategy fits, its table and the reasons."""
    rows = {(name, variant): row for name, found in saved["tasks"][task].items() for variant, row in found.items()}
    never = {
        architecture: reasons.pop()
        for architecture in saved["architectures"]
        if len(reasons := {row["fits"][architecture] for row in rows.values()}) == 1 and True not in reasons
    }
    groups: dict[str, list[str]] = {}
    for architecture, group in saved["architectures"].items():
        if architecture not in never:
            groups.setdefault(group, []).append(architecture)
    yield f"## {code(task)}"
    yield "\n".join(f"- {group}: {', '.join(members)}" for group, members in groups.items())
    notes: list[str] = []
    yield table(("strategy", "merges", "exact start", "nf4", *groups), (
        [
            code(name) if variant == "default" else f"{code(name)}, {variant}",
            "yes" if row["merges"] else "no",
            "yes" if row["exact_start"] else "no",
            _which({a: fits for a, fits in row["nf4"].items() if a not in never}, notes),
            *(_which({a: row["fits"][a] for a in members}, notes) for members in groups.values()),
        ]
        for (name, variant), row in rows.items()
    ))  # fmt: skip
    yield "\n".join(f"{number}. {escaped(reason)}" for number, reason in enumerate(notes, 1))
    if never:
        yield "Refused with every strategy:"
        yield "\n".join(f"- {architecture}: {escaped(str(reason))}" for architecture, reason in never.items())


def _which(fits: Mapping[str, bool | str], notes: list[str]) -> str:
    """`yes` if all work, else those that do not, with the number of the reason; a new reason is added to the notes."""
    reasons: dict[str, list[str]] = {}
    for architecture, reason in fits.items():
        if isinstance(reason, str):
            reasons.setdefault(reason, []).append(architecture)
    words = []
    for reason, members in reasons.items():
        if reason not in notes:
            notes.append(reason)
        who = f"not {', '.join(members)}" if len(members) < len(fits) else "no"
        words.append(f"{who} ({notes.index(reason) + 1})")
    return "; ".join(words) or ("yes" if fits else "")


def _peft(types: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """The methods of the installed peft, by `strategy=peft strategy.type=TYPE`."""
    rows = (
        [
            code(kind),
            "yes" if row["fits"] is True else escaped(str(row["fits"])),
            *("" if row.get(fact) is None else "yes" if row[fact] else "no" for fact in ("merges", "exact_start")),
        ]
        for kind, row in types.items()
    )
    return [
        "## Methods of peft",
        "`strategy=peft strategy.type=TYPE`, for `text_classification` on a BERT, at peft's default settings.",
        table(("type", "works", "merges", "exact start"), rows),
    ]
