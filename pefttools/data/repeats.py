"""Rows that occur more than once, compared by the inputs that the model sees: warnings, and their removal.

Rows repeat within a file, or in several of the training, validation and test splits. `data.deduplicate` decides which
of them are removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pefttools.data.rows import IdentifiedRow, RowReader, key
from pefttools.data.settings import DataSettings
from pefttools.errors import UserError
from pefttools.reporter import Finding, Reporter

Key = tuple[str, ...]


def warn_of_contradictions(
    files: Mapping[str, list[IdentifiedRow]], task: RowReader, dedup: str, reporter: Reporter
) -> None:
    """Warn of rows that have the inputs of an earlier row of their file but other targets."""
    if task.generates:
        return  # several answers to one prompt do not contradict each other
    target = task.targets[0]
    for name, rows in files.items():
        first: dict[Key, IdentifiedRow] = {}
        pairs = [
            (before, found)
            for found in rows
            if _targets((before := first.setdefault(key(found.row, task), found)), task) != _targets(found, task)
        ]
        if pairs:
            one, other = pairs[0]
            first_only = name == "train" and dedup in ("train", "all")
            reporter.warn(
                Finding(
                    "conflicting duplicates",
                    f"data.{name}: {len(pairs)} rows repeat the {task.inputs[0]} of an earlier row with another"
                    f" {target}",
                    f"{len(pairs)} of {len(rows)} rows, for example row {other.id} that of row {one.id};"
                    + (" training uses only the first of them" if first_only else " all of them are used"),
                    f"pefttools train RECIPE data.{'deduplicate=train' if name == 'train' else f'{name}=OTHER_ROWS'}",
                )
            )


def _targets(found: IdentifiedRow, task: RowReader) -> list[Any]:
    return [found.row.get(name) for name in task.targets]


def first_of_each(rows: list[IdentifiedRow], task: RowReader, counts: Counter[str]) -> list[IdentifiedRow]:
    """The rows without those that repeat an earlier one."""
    seen: dict[Key, IdentifiedRow] = {}
    for found in rows:
        seen.setdefault(key(found.row, task), found)
    counts["repeated"] += len(rows) - len(seen)
    return list(seen.values())


def without_overlap(
    files: Mapping[str, list[IdentifiedRow]],
    settings: DataSettings,
    task: RowReader,
    counts: Counter[str],
    reporter: Reporter,
) -> dict[str, list[IdentifiedRow]]:
    """The rows per file, with training rows that are in validation or test removed.

    Raises:
        UserError: no training row is left.
    """
    keys = {name: {key(found.row, task) for found in rows} for name, rows in files.items() if name != "train"}
    if len(keys) == 2:
        _warn_of_shared(files, keys["test"], task, reporter)
    pool = [(key(found.row, task), found) for found in files["train"]]
    for name, known in reversed(keys.items()):
        rest = [one for one in pool if one[0] not in known]
        shared = len(pool) - len(rest)
        if settings.deduplicate == "none":
            if shared:
                reporter.warn(
                    Finding(
                        "overlap of train and test",
                        f"data.train: {shared} of {len(pool)} rows are in data.{name} too, so the evaluation includes"
                        " rows that were trained on",
                        f"{shared / len(pool):.1%} of the rows, with data.deduplicate=none",
                        "pefttools train RECIPE data.deduplicate=overlap",
                    )
                )
            continue
        counts[f"also in {name}"] += shared
        if not rest:
            raise UserError(_nothing_left(name, settings))
        pool = rest
    if task.generates:
        _warn_of_prompts([known for known, _ in pool], keys, task, reporter)
    return {**files, "train": [found for _, found in pool]}


def _nothing_left(name: str, settings: DataSettings) -> str:
    same = settings.train.source == getattr(settings, name).source
    cure = f"leave out data.{name}, so that a share of the training rows takes its place" if same else "give other rows"
    return (
        f"data.train: every row of {settings.train.source} is in data.{name} too{', the same file' if same else ''};"
        f" rows of an evaluation are removed from training. {cure[0].upper()}{cure[1:]}, or set data.deduplicate=none"
        " to train on them as well"
    )


def _warn_of_shared(
    files: Mapping[str, list[IdentifiedRow]], test: set[Key], task: RowReader, reporter: Reporter
) -> None:
    rows = files["validation"]
    if shared := sum(key(found.row, task) in test for found in rows):
        which = "all" if shared == len(rows) else f"{shared} of {len(rows)}"
        reporter.warn(
            Finding(
                "overlap of train and test",
                f"data.validation: {which} rows are in data.test too, which also choose the best model, so the test"
                " score is too optimistic",
                f"{shared / len(rows):.1%} of the validation rows",
                "pefttools train RECIPE data.validation=null",
            )
        )


def _warn_of_prompts(pool: list[Key], keys: Mapping[str, set[Key]], task: RowReader, reporter: Reporter) -> None:
    """Warn of training rows that have the inputs of an evaluated row but other targets; they remain in training."""
    inputs = slice(0, -len(task.targets) or None)
    for name in keys:
        prompts = {known[inputs] for known in keys[name]}
        if shared := sum(known[inputs] in prompts and known not in keys[name] for known in pool):
            reporter.warn(
                f"data.train: {shared} rows have the {task.inputs[0]} of a {name} row but a different answer;"
                " they remain in training"
            )
