"""A run's model scored on rows: its metrics, the worst predictions, and the scores of groups of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pefttools.analysis.groups import by_groups, group_names
from pefttools.analysis.mistakes import check_number, worst
from pefttools.analysis.scored_run import ScoredRows
from pefttools.inference.columns import column_values
from pefttools.inference.scoring import rows_to_score, score_rows
from pefttools.reporter import SILENT, Reporter
from pefttools.training.run import Run


def evaluate(
    path: Path,
    overrides: Sequence[str] = (),
    reporter: Reporter = SILENT,
    errors: int | None = None,
    column: str | None = None,
) -> dict[str, Any]:
    """The values of `inference.scoring.evaluate_run`, with `errors` and `by` where they are wanted.

    Args:
        errors: number of the worst predictions to list.
        column: of the data, by whose values the rows are grouped.

    Raises:
        UserError: as in `evaluate_run`, before the model is loaded: the column does not exist or does not group rows.
    """
    if errors is not None:
        check_number(errors)
    split, rows = rows_to_score(path, overrides, reporter)
    names = group_names(column, column_values(path, overrides, split, rows, column)) if column is not None else None
    found = score_rows(path, split, rows, reporter)
    task, own = found.task, None if overrides else Run.open(path).scored_rows()
    ids = own.ids if own else [str(row.get("id", number)) for number, row in enumerate(rows, 1)]
    references = [task.reference(row) for row in rows]
    metrics = {name: value for name, value in found.metrics.items() if name != "loss"}
    scored = ScoredRows(task, ids, rows, found.predictions, references, metrics)
    return {
        "rows": len(rows),
        "scored_on": split,
        **found.metrics,
        **({"errors": worst(scored, errors)} if errors is not None else {}),
        **({"by": by_groups(scored, column, names)} if column is not None and names is not None else {}),
    }
