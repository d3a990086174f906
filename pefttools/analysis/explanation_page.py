"""The page of explanations: every word of every row, coloured by its contribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttools import atomic
from pefttools.analysis import sentences
from pefttools.bench import html

HERE = Path(__file__).parent


def write(
    run: Path,
    explanations: Sequence[Mapping[str, Any]],
    frequent: Mapping[str, Sequence[Mapping[str, Any]]],
    method: str,
    file: Path,
) -> None:
    """Write the page.

    Args:
        explanations: of `inference.explanation.explain`.
        frequent: of `inference.explanation.frequent_words`.
        method: how they were computed.
    """
    rows = sorted((_row(one) for one in explanations), key=lambda row: row["is_right"] is not False)
    errors = [row["error"] for row in rows if row["error"] is not None]
    text = html.page(
        "explanations.html.jinja", f"Explanations of {run.absolute().name}", {}, (), HERE,
        (HERE / "page.css", HERE / "explanations.css"), rows=rows, frequent=frequent, text=sentences,
        method=method.replace("_", " "), worst=max(errors, default=None),
        wrong=sum(row["is_right"] is False for row in rows),
    )  # fmt: skip
    atomic.write_text(file, text)


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    words = [word for word in one["words"] if not word["is_special"]]
    largest = max((abs(word["value"]) for word in words), default=0.0) or 1.0
    return {
        "number": one["row"],
        "id": one.get("id"),
        "answer": one["answer"],
        "is_right": one.get("is_right"),
        "reference": one.get("reference"),
        "score": one["score"],
        "baseline": one["baseline"],
        "error": one["completeness_error"],
        "words": [
            {
                "word": word["word"],
                "value": word["value"],
                "kind": "for" if word["value"] > 0 else "against",
                "share": round(100 * abs(word["value"]) / largest),
            }
            for word in words
        ],
    }
