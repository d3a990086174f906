"""The README's table of the classic suite, made from its committed results.

pefttools bench classic --workers 2 --no-texts --out benchmarks/results/classic   # the summary
python benchmarks/readme.py                                                       # the README's table
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pefttools.bench.tables import cells

ROOT = Path(__file__).resolve().parents[1]
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


def updated(readme: str) -> str:
    """The README with the current table."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(json.loads(SUMMARY.read_text("utf-8"))) + END + after


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(updated(file.read_text("utf-8")), "utf-8")
