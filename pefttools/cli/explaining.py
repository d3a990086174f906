"""The command that explains predictions: explain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pefttools import extras
from pefttools.cli import display, explanation_text
from pefttools.cli.base import Json, app
from pefttools.cli.runs import GROUP
from pefttools.errors import UserError
from pefttools.progress import RichReporter


@app.command(group=GROUP)
def explain(
    run: Path,
    file: str | None = None,
    /,
    *,
    text: Annotated[list[str] | None, Parameter(negative="")] = None,
    rows: int | None = None,
    of: str | None = None,
    method: Literal["integrated_gradients", "occlusion"] = "integrated_gradients",
    tokens: int = 1,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Show how much each word contributed to a run's predictions, by integrated gradients or occlusion.

    Contributions to a class are in log-odds: +1 makes the odds of the class 2.7 times as large. Blue words are for the
    answer, orange ones against it. Needs `pip install "pefttools[explain]"`.

    Args:
        run: a run folder.
        file: a data file with rows to explain, with the columns of the training file.
        text: a text to explain; can be repeated.
        rows: explain this many of the rows that the run was scored on; mistakes are marked.
        of: explain this class or choice, or the tag of this word, instead of the predicted answer.
        method: integrated_gradients adds up to the difference of the score from a text without words; occlusion removes
            one word at a time.
        tokens: for language models: explain this many of the next tokens.
        out: write a page with all explanations and the words that push each class (.html).
        json: print one JSON object for each explanation.
    """
    given = [name for name, value in (("FILE", file), ("--text", text), ("--rows", rows)) if value is not None]
    if len(given) != 1:
        raise UserError(f"explain: name one of FILE, --text or --rows; got {', '.join(given) or 'none'}")
    extras.require("explain", extras.EXTRAS["explain"])
    from pefttools.analysis import explanation_page, pages
    from pefttools.inference import explanation
    from pefttools.inference.predictor import recipe_of
    from pefttools.inference.unlabeled import rows_to_predict

    if out:
        pages.check(out)
    reporter, wanted = RichReporter(), explanation.Wanted(method, of, tokens)
    if rows is not None:
        chosen = explanation.labelled_rows(run, rows, reporter)
    else:
        raws = rows_to_predict(recipe_of(run), file, text or [], sys.stdin.buffer, reporter, "explain")
        chosen = explanation.rows_of(run, raws, reporter)
    found = []
    for one in explanation.explain(run, chosen, wanted, reporter):
        found.append(one)
        if json:
            display.as_json_lines([one])
        elif out is None:
            display.parts(explanation_text.shown(one))
    if not found:
        reporter.note("there is nothing to explain: no entity and no answer was found in these rows")
    frequent = explanation.frequent_words(found)
    if frequent and not json:
        display.parts([explanation_text.words(frequent)])
    if out:
        explanation_page.write(run, found, frequent, method, out)
        reporter.note(f"wrote {out}")
