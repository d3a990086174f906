"""Rows that repeat others: within a file, and between training and what is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pefttools.data.rows import Found, RowReader, key
from pefttools.data.settings import DataSettings
from pefttools.errors import UserError
from pefttools.reporter import Reporter

Key = tuple[str, ...]


def warn_of_contradictions(given: Mapping[str, list[Found]], task: RowReader, dedup: str, reporter: Reporter) -> None:
    """Warn of rows whose inputs are those of an earlier row of their file and whose targets are not."""
    if task.generates:
        return  # many answers to one prompt are no contradiction
    target = task.targets[0]
    for name, rows in given.items():
        first: dict[Key, Found] = {}
        pairs = [
            (before, found)
            for found in rows
            if _targets((before := first.setdefault(key(found.row, task), found)), task) != _targets(found, task)
        ]
        if pairs:
            one, other = pairs[0]
            first_only = name == "train" and dedup in ("train", "all")
            reporter.warn(
                f"data.{name}: {len(pairs)} rows repeat an earlier row with a different {target}: row {other.id},"
                f" for example, has the {task.inputs[0]} of row {one.id};"
                + (" only the first of them is used in training" if first_only else " all of them are used")
            )


def _targets(found: Found, task: RowReader) -> list[Any]:
    return [found.row.get(name) for name in task.targets]


def first_of_each(rows: list[Found], task: RowReader, counts: Counter[str]) -> list[Found]:
    """The rows without those that repeat an earlier one."""
    seen: dict[Key, Found] = {}
    for found in rows:
        seen.setdefault(key(found.row, task), found)
    counts["repeated"] += len(rows) - len(seen)
    return list(seen.values())


def without_overlap(
    given: Mapping[str, list[Found]], settings: DataSettings, task: RowReader, counts: Counter[str], reporter: Reporter
) -> dict[str, list[Found]]:
    """The rows with a training file that shares none with validation and test.

    Raises:
        UserError: nothing is left to train on.
    """
    keys = {name: {key(found.row, task) for found in rows} for name, rows in given.items() if name != "train"}
    if len(keys) == 2:
        _warn_of_shared(given, keys["test"], task, reporter)
    pool = [(key(found.row, task), found) for found in given["train"]]
    for name, known in reversed(keys.items()):
        rest = [one for one in pool if one[0] not in known]
        shared = len(pool) - len(rest)
        if settings.deduplicate == "none":
            if shared:
                reporter.warn(
                    f"data.train: {shared} of {len(pool)} rows are in data.{name} too,"
                    " so they are both trained on and scored"
                )
            continue
        counts[f"also in {name}"] += shared
        if not rest:
            raise UserError(_nothing_left(name, settings))
        pool = rest
    if task.generates:
        _warn_of_prompts([known for known, _ in pool], keys, task, reporter)
    return {**given, "train": [found for _, found in pool]}


def _nothing_left(name: str, settings: DataSettings) -> str:
    same = settings.train.source == getattr(settings, name).source
    cure = f"leave out data.{name}, so that a share of the training rows takes its place" if same else "give other rows"
    return (
        f"data.train: every row of {settings.train.source} is in data.{name} too{', the same file' if same else ''};"
        f" rows that are scored are not trained on. {cure[0].upper()}{cure[1:]}, or set data.deduplicate=none to train"
        " on what is scored"
    )


def _warn_of_shared(given: Mapping[str, list[Found]], test: set[Key], task: RowReader, reporter: Reporter) -> None:
    rows = given["validation"]
    if shared := sum(key(found.row, task) in test for found in rows):
        which = "all" if shared == len(rows) else f"{shared} of {len(rows)}"
        reporter.warn(
            f"data.validation: {which} rows are in data.test too, so the test score is of rows that the model was"
            " chosen by; it is too good"
        )


def _warn_of_prompts(pool: list[Key], keys: Mapping[str, set[Key]], task: RowReader, reporter: Reporter) -> None:
    """Warn of training rows whose inputs are scored with other targets; they are still trained on."""
    inputs = slice(0, -len(task.targets) or None)
    for name in keys:
        prompts = {known[inputs] for known in keys[name]}
        if shared := sum(known[inputs] in prompts and known not in keys[name] for known in pool):
            reporter.warn(
                f"data.train: {shared} rows have the {task.inputs[0]} of a {name} row and a different answer; they stay"
            )
