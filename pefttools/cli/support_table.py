"""The support matrix as tables for a terminal: which strategy works on which architecture, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table


def shown(matrix: Mapping[str, Any], yes: str) -> Iterator[str | Table]:
    """A table for each task, with the reasons for failures below it, then peft's methods.

    Args:
        matrix: the result of `compatibility.matrix.saved`.
        yes: the mark for a strategy that works.
    """
    for task, strategies in matrix["tasks"].items():
        rows = {(name, variant): row for name, found in strategies.items() for variant, row in found.items()}
        never = {a: {row["fits"][a] for row in rows.values()} for a in matrix["architectures"]}
        groups: dict[str, list[str]] = {}
        for architecture, group in matrix["architectures"].items():
            if len(never[architecture]) > 1 or True in never[architecture]:
                groups.setdefault(group, []).append(architecture)
        table = Table(
            title=f"what works, for {task}",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
        )
        for column in ("strategy", "merges", "exact\nstart", "nf4\nbase", *groups):
            header, width = column.replace("encoder-", "encoder-\n"), 10 if column in groups else None
            table.add_column(header, no_wrap=column in ("strategy", "merges"), min_width=width, overflow="fold")
        notes: dict[str, int] = {}
        for (name, variant), row in rows.items():
            table.add_row(
                name if variant == "default" else f"  {variant}",
                yes if row["merges"] else "no",
                yes if row["exact_start"] else "no",
                _which(row["nf4"], notes, yes),
                *(_which({a: row["fits"][a] for a in members}, notes, yes) for members in groups.values()),
            )
        yield table
        yield ("\n".join(f"{group}: {', '.join(members)}" for group, members in groups.items()))
        for architecture in sorted(never.keys() - {a for members in groups.values() for a in members}):
            yield (f"{architecture}: {min(map(str, never[architecture]))}")
        yield ("\n".join(f"({number}) {reason}" for reason, number in notes.items()))
    kinds = {kind: row["fits"] for kind, row in matrix["peft_types"].items()}
    yield ("\nstrategy=peft strategy.type=TYPE, on a BERT at peft's default settings:")
    yield (f"  work: {', '.join(kind for kind, fits in kinds.items() if fits is True)}")
    yield ("\n".join(f"  {kind}: {fits}" for kind, fits in kinds.items() if fits is not True))


def _which(fits: Mapping[str, bool | str], notes: dict[str, int], yes: str) -> str:
    """`yes` if all work, else those that do not, with the number of the reason; a new reason gets the next number."""
    reasons: dict[str, list[str]] = {}
    for architecture, reason in fits.items():
        if isinstance(reason, str):
            reasons.setdefault(reason, []).append(architecture)
    lines = []
    for reason, members in reasons.items():
        number = notes.setdefault(reason, len(notes) + 1)
        lines.append(f"not {', '.join(members)} ({number})" if len(members) < len(fits) else f"none ({number})")
    return "\n".join(lines) or yes
