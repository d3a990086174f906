"""The table of the classic suite in docs/comparing.md, made from its committed results.

pefttools bench classic --workers 2 --no-texts --out benchmarks/results/classic   # the summary
python benchmarks/readme.py                                                       # the table
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pefttools.bench.tables import cells

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/comparing.md"
SUMMARY = ROOT / "benchmarks/results/classic/summary.json"
BEGIN, END = "<!-- made by `python benchmarks/readme.py` -->\n", "<!-- end -->\n"
SHOWN = ("tier", "method", "test", "95% interval", "trained", "seconds", "peak MB", "moved", "forgot")


def table(summary: Mapping[str, Any]) -> str:
    """A table for each problem of the suite."""
    from pefttools.bench.tables import COLUMNS

    lines = []
    for problem in summary["problems"]:
        lines += [f"{problem['name']}, {problem['metric']}:", "", "| " + " | ".join(SHOWN) + " |"]
        lines += ["|" + "|".join("---" if name in ("tier", "method") else "---:" for name in SHOWN) + "|"]
        for row in problem["methods"]:
            texts = dict(zip(COLUMNS, cells(row), strict=True))
            lines.append("| " + " | ".join(texts[name] for name in SHOWN) + " |")
        lines.append("")
    return "\n".join(lines)


def updated(page: str) -> str:
    """The page with the current table."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(json.loads(SUMMARY.read_text("utf-8"))) + END + after


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
