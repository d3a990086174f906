"""Explanations for a terminal: the words of a row, coloured by their contribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

FOR, AGAINST = (36, 96, 200), (196, 84, 20)
"""Colours of words for and against the answer, which colour-blind people can tell apart."""
FAINT = 0.08
"""Share of the largest contribution below which a word has no colour."""
SHOWN = 0.005
"""Contribution below which a word has no number."""


def shown(one: Mapping[str, Any]) -> list[Text]:
    """An explanation: its answer, and its words, blue if they are for it and orange if they are against it."""
    words = [word for word in one["words"] if not word["is_special"]]
    largest = max((abs(word["value"]) for word in words), default=0.0) or 1.0
    line = Text()
    for word in words:
        share = word["value"] / largest
        line.append(word["word"], _style(share))
        if abs(word["value"]) >= SHOWN:
            line.append(f" {word['value']:+.2f}", "dim")
        line.append(" ")
    if not words:
        line.append("(the tokenizer knows none of these words)", "dim")
    head = Text(f"row {one['row']}: {one['answer']}", "bold")
    if one.get("is_right") is False:
        head.append(f", which is wrong: it is {one['reference']}", "not bold")
    error = one["completeness_error"]
    about = f"score {one['score']:+.2f}, without the words {one['baseline']:+.2f}"
    if error is not None:
        about += f"; completeness error {error:.2%} with {one['steps']} steps"
    if one.get("is_cut"):
        about += "; the text was cut, and the model read these words alone"
    return [head, line, Text(about, "dim"), Text()]


def _style(share: float) -> str:
    if abs(share) < FAINT:
        return ""
    red, green, blue = FOR if share > 0 else AGAINST
    weight = 0.25 + 0.75 * abs(share)
    red, green, blue = (round(255 - (255 - part) * weight) for part in (red, green, blue))
    ink = "white" if weight > 0.55 else "black"
    return f"{ink} on rgb({red},{green},{blue})"


def words(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """The words that push each answer."""
    table = Table(title="words for each answer, over all rows: sum of contributions (number)", title_justify="left")
    table.add_column("answer")
    table.add_column("words")
    for answer, best in found.items():
        table.add_row(answer, ", ".join(f"{one['word']} {one['sum']:+.1f} ({one['number']})" for one in best))
    return table
