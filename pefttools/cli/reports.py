"""Commands that show what finished runs do well and badly: compare, report."""

from __future__ import annotations

from pathlib import Path

from pefttools import extras
from pefttools.cli import display
from pefttools.cli.base import Json, app
from pefttools.cli.compare import GROUP as COMPARE
from pefttools.cli.runs import GROUP as USE
from pefttools.progress import RichReporter


@app.command(group=COMPARE)
def compare(*runs: Path, out: Path | None = None, texts: bool = True, json: Json = False) -> None:
    """Compare finished runs of one task on the test rows that they share, with paired tests.

    Args:
        runs: two or more run folders.
        out: also write the comparison as a page to this file (.html).
        texts: show the texts of the rows on which runs disagree.
        json: print one JSON object.
    """
    from pefttools.analysis import comparison, pages, terminal

    if out:
        extras.require("compare --out", extras.EXTRAS["charts"])
        pages.check(out)
    reporter = RichReporter()
    values = comparison.compare(runs, reporter, texts)
    if out:
        pages.write_comparison(values, out)
        reporter.note(f"wrote {out}")
    display.as_json(values) if json else display.parts(terminal.comparison(values))


@app.command(group=USE)
def report(run: Path, /, *, out: Path | None = None, texts: bool = True, json: Json = False) -> None:
    """Write a page on a finished run: curves, classes, confusions, calibration, worst mistakes, errors by length.

    Args:
        run: a run folder.
        out: the page's file (.html); by default RUN/report.html.
        texts: write the texts of the mistakes into the page.
        json: print what the page shows as one JSON object.
    """
    from pefttools.analysis import pages, run_report, terminal

    extras.require("report", extras.EXTRAS["charts"])
    file = out or run / "report.html"
    if out:
        pages.check(out)
    values = run_report.report(run, RichReporter(), texts)
    pages.write_report(values, file)
    display.as_json(values) if json else display.parts(terminal.report(values, str(file)))
