"""The rows that a run was scored on, and a comparison with the file that they came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pefttools.data.rows import Row, content_hash, key_hash
from pefttools.data.splitting import Splits, load_rows, load_splits
from pefttools.errors import UserError
from pefttools.recipe import needed_packages
from pefttools.reporter import SILENT, Reporter
from pefttools.training.run_rows import ScoredRows

if TYPE_CHECKING:
    from pefttools.tasks.base import Task
    from pefttools.training.run import Run

SHOWN = 10
"""Number of ids that a message lists."""


def own_rows(run: Run, task: Task, reporter: Reporter = SILENT) -> ScoredRows:
    """The rows that a run was scored on, as it read them; warns if their file no longer contains them.

    Raises:
        UserError: a package that scoring needs is not installed; the run's files were changed; or it is a run of an
            older version, which did not save its rows, and its data has changed.
    """
    needed_packages.refuse_unscored(task)
    scored = run.scored_rows()
    if scored is None:
        return _read_again(run, task, reporter)
    _compare(scored, run, task, reporter)
    return scored


def unchanged_rows(run: Run, split: str, task: Task, reporter: Reporter = SILENT) -> Sequence[Row]:
    """The rows of a split of the run's data, read again. Raises UserError when the data has changed."""
    return _unchanged(run, task, reporter).named()[split]


def _read_again(run: Run, task: Task, reporter: Reporter) -> ScoredRows:
    splits, name = _unchanged(run, task, reporter), "test" if run.result()["test"] else "validation"
    return ScoredRows(name, list(splits.ids_of(name)), splits.named()[name])


def _unchanged(run: Run, task: Task, reporter: Reporter) -> Splits:
    splits = load_splits(run.recipe().data, task, reporter)
    if splits.digest != run.result()["data"]["digest"]:
        raise UserError(
            f"{run.path}: the run's data has changed since it was trained, and these rows were not saved in the run's"
            " folder; name the rows to score with data.test=FILE"
        )
    return splits


def _compare(scored: ScoredRows, run: Run, task: Task, reporter: Reporter) -> None:
    """Warn of rows that their file no longer contains."""
    settings = run.recipe().data
    name = "train" if getattr(settings, scored.split) is None else scored.split
    file = getattr(settings, name)
    if file.sha256:
        return  # the hash guarantees that the file is unchanged
    what = f"the {len(scored.rows)} {scored.split} rows saved in {run.path} are scored"
    try:
        found = Counter(map(content_hash, load_rows(name, settings, task, Counter())))
    except (UserError, OSError) as error:
        reason = error.problems[0] if isinstance(error, UserError) else str(error)
        reporter.warn(f"{reason}; {what} instead")
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
            f" {file.source}, or were changed there: {', '.join(missing[:SHOWN])}{more}; {what} instead. To score the"
            f" file as it is now, add data.test={file.source}"
        )


def validation_rows(run: Run, task: Task, reporter: Reporter = SILENT) -> tuple[list[str], Sequence[Row]]:
    """The ids and rows of a run's validation split, identified by their hashes.

    Raises:
        UserError: some are no longer in their file.
    """
    scored, hashes = own_rows(run, task, reporter), run.row_hashes()
    if scored.split == "validation":
        return scored.ids, scored.rows
    settings = run.recipe().data
    if hashes is None:  # the data is unchanged, or `own_rows` would have raised
        splits = load_splits(settings, task, reporter)
        return list(splits.ids_of("validation")), splits.validation
    name = "validation" if settings.validation else "train"
    rows = {content_hash(row): row for row in load_rows(name, settings, task, Counter(), reporter)}
    wanted = hashes["validation"]
    if lost := [i for i, content in zip(wanted.ids, wanted.contents, strict=True) if content not in rows]:
        raise UserError(
            f"data.{name}: {len(lost)} of the {len(wanted.ids)} validation rows of {run.path} are no longer in"
            f" {getattr(settings, name).source}, or were changed there; restore that file"
        )
    return wanted.ids, [rows[content] for content in wanted.contents]


def warn_of_known(run: Run, rows: Sequence[Row], task: Task, reporter: Reporter) -> None:
    """Warn of rows to score that the run used for training or validation."""
    hashes = run.row_hashes()
    if hashes is None:
        return
    keys = [key_hash(row, task) for row in rows]
    for name, purpose in (("train", "training"), ("validation", "validation")):
        if number := sum(map(set(hashes[name].keys).__contains__, keys)):
            which = "all" if number == len(rows) else f"{number} of the {len(rows)}"
            reporter.warn(f"the run used {which} rows to score for {purpose}; the score is too optimistic")
