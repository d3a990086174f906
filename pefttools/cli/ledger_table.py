"""The scores of earlier runs' test rows after every run, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

OWN = "in brackets: if the model chooses among the classes of those rows alone"


def shown(ledger: Mapping[str, Any]) -> Iterator[str | Table]:
    """A table with a row for each run so far and a column for its test rows, and what was forgotten."""
    names = [run["name"] for run in ledger["runs"]]
    own = ledger.get("own")
    table = Table(title=f"{ledger['metric']} on the test rows of each run, after each run", title_justify="left")
    table.add_column("after")
    for name in names:
        table.add_column(f"rows of {name}", justify="right")
    for i, scores in enumerate(ledger["all"]["scores"]):
        alone = own["scores"][i] if own else []
        cells = [*_cells(scores, alone), *[""] * (len(names) - len(scores))]
        table.add_row(names[i], *cells)
    yield table
    yield _forgotten(ledger["all"])
    if own:
        yield f"{OWN}: {_forgotten(own)}"


def _forgotten(values: Mapping[str, Any]) -> str:
    return f"forgetting {values['forgetting']:.4f}, backward transfer {values['backward_transfer']:+.4f}"


def _cells(scores: Sequence[float], own: Sequence[float]) -> list[str]:
    if not own:
        return [f"{score:.4f}" for score in scores]
    return [f"{score:.4f} ({alone:.4f})" for score, alone in zip(scores, own, strict=True)]
