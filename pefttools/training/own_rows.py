"""The rows that a run was scored on, and what became of the file they came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pefttools.data.rows import Row, content_hash, key_hash
from pefttools.data.splitting import load_rows, load_splits
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.training.run_rows import ScoredRows

if TYPE_CHECKING:
    from pefttools.tasks.base import Task
    from pefttools.training.run import Run

SHOWN = 10
"""Ids that a message lists."""


def own_rows(run: Run, task: Task, reporter: Reporter = SILENT) -> ScoredRows:
    """The rows that a run was scored on, as it read them; a warning where their file no longer holds them.

    Raises:
        UserError: the run was trained before runs kept their rows, and its file gives others now; or what it kept was
            changed.
    """
    scored = run.scored_rows()
    if scored is None:
        return _read_again(run, task, reporter)
    _compare(scored, run, task, reporter)
    return scored


def _read_again(run: Run, task: Task, reporter: Reporter) -> ScoredRows:
    splits = load_splits(run.recipe().data, task, reporter)
    if splits.digest != run.result()["data"]["digest"]:
        raise UserError(
            f"{run.path}: its data is read otherwise now than when it was trained, and this run was written before runs"
            " kept their rows; name the rows to score: data.test=FILE"
        )
    name = "test" if run.result()["test"] else "validation"
    return ScoredRows(name, list(splits.ids_of(name)), splits.named()[name])


def _compare(scored: ScoredRows, run: Run, task: Task, reporter: Reporter) -> None:
    """Report rows that their file does not hold any more."""
    settings = run.recipe().data
    name = "train" if getattr(settings, scored.split) is None else scored.split
    file = getattr(settings, name)
    if file.sha256:
        return  # pinned: it cannot be read otherwise
    what = f"the {len(scored.rows)} {scored.split} rows in {run.path} are scored"
    try:
        found = Counter(map(content_hash, load_rows(name, settings, task, Counter())))
    except (UserError, OSError) as error:
        reason = error.problems[0] if isinstance(error, UserError) else str(error)
        reporter.warn(f"{reason}; {what}, as they were when it was trained")
        return
    missing = []
    for row_id, row in zip(scored.ids, scored.rows, strict=True):
        if not found[content_hash(row)]:
            missing.append(row_id)
        found[content_hash(row)] -= 1
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        reporter.warn(
            f"data.{name}: {len(missing)} of the {scored.split} rows that the run was scored on are no longer in"
            f" {file.source}, or were changed there: {', '.join(missing[:SHOWN])}{more}; {what}, as they were when it"
            f" was trained. To score a file as it is: data.test={file.source}"
        )


def validation_rows(run: Run, task: Task, reporter: Reporter = SILENT) -> tuple[list[str], list[Row]]:
    """Ids and rows that a run was chosen by, found again by their hashes.

    Raises:
        UserError: some are no longer in their file.
    """
    scored, hashes = own_rows(run, task, reporter), run.row_hashes()
    if scored.split == "validation":
        return scored.ids, scored.rows
    settings = run.recipe().data
    if hashes is None:  # the data is read as it was, or `own_rows` would have refused
        splits = load_splits(settings, task, reporter)
        return list(splits.ids_of("validation")), splits.validation
    name = "validation" if settings.validation else "train"
    rows = {content_hash(row): row for row in load_rows(name, settings, task, Counter(), reporter)}
    wanted = hashes["validation"]
    if lost := [i for i, content in zip(wanted.ids, wanted.contents, strict=True) if content not in rows]:
        raise UserError(
            f"data.{name}: {len(lost)} of the {len(wanted.ids)} validation rows that {run.path} was chosen by are no"
            f" longer in {getattr(settings, name).source}, or were changed there"
        )
    return wanted.ids, [rows[content] for content in wanted.contents]


def warn_of_known(run: Run, rows: Sequence[Row], task: Task, reporter: Reporter) -> None:
    """Warn of rows to score that the run was trained on or chosen by."""
    hashes = run.row_hashes()
    if hashes is None:
        return
    keys = [key_hash(row, task) for row in rows]
    for name, doing in (("train", "trained on"), ("validation", "chosen by")):
        if number := sum(map(set(hashes[name].keys).__contains__, keys)):
            which = "all" if number == len(rows) else f"{number} of the {len(rows)}"
            reporter.warn(f"{which} rows to score are rows that the run was {doing}; the score is too good")
