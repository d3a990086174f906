"""Rows of a task: columns mapped, checked, deduplicated, and split by a seeded hash of the text.

The hash makes a row stay where it is when other rows are added or the file is reordered. Deduplication comes
first, so no text is on both sides of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pefttools.data.reading import Raw, read
from pefttools.data.settings import DataSettings, FileSettings
from pefttools.errors import UserError, nearest
from pefttools.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from pefttools.tasks.base import Task

Row = dict[str, Any]
NAMES = ("train", "validation", "test")


class LeftOut(ValueError):
    """Why a row cannot be used; it is counted and skipped, where any other ValueError refuses its file."""


@dataclass(frozen=True)
class Splits:
    """Checked rows of one task, and what was left out of them."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> number of rows."""
    spare: list[Row] = field(default_factory=list)
    """Training rows that `train_rows` leaves aside; their labels are known all the same."""

    @property
    def digest(self) -> str:
        """The sha256 of the rows: the same rows give the same digest, whatever file format they came from."""
        text = json.dumps([self.train, self.validation, self.test], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def named(self) -> dict[str, list[Row]]:
        return {name: getattr(self, name) for name in NAMES}


def load_splits(settings: DataSettings, task: Task, reporter: Reporter = SILENT) -> Splits:
    """Read, check, deduplicate and split.

    Raises:
        UserError: a file that cannot be read, a missing column, rows the task cannot use.
    """
    counts: Counter[str] = Counter()
    given = {
        name: load_rows(name, settings, task, counts, reporter) for name in NAMES if getattr(settings, name) is not None
    }
    if settings.deduplicate:
        given = _unique(given, task, counts, reporter)
    parts = _split(given, settings, task)
    if settings.min_class_rows > 1:
        parts = _without_rare(parts, settings.min_class_rows, counts)
    train, spare = _subset(parts["train"], settings, task)
    left_out = {reason: number for reason, number in counts.items() if number}
    splits = Splits(train, parts["validation"], parts["test"], left_out, spare)
    if not splits.train:
        told = "".join(f"; {number} left out: {reason}" for reason, number in left_out.items())
        raise UserError(f"data.train: no rows are left to train on{told}")
    if not splits.validation:
        raise UserError(
            f"data: none of {len(splits.train)} rows fell to validation;"
            " raise data.validation_share or give data.validation"
        )
    return splits


def load_rows(
    name: str, settings: DataSettings, task: Task, counts: Counter[str], reporter: Reporter = SILENT
) -> list[Row]:
    """The checked rows of one file (`train`, `validation` or `test`), all of them but those in a nameless bin."""
    file, key = getattr(settings, name), f"data.{name}"
    raws = read(file, key, reporter)
    columns = _columns(raws, key, file, settings, task)
    rows, bad = [], []
    for number, raw in enumerate(raws, 1):
        values = {f: raw.get(column) for f, column in columns.items()}
        try:
            row = task.read(values)
        except LeftOut as reason:
            counts[str(reason)] += 1
            continue
        except ValueError as error:
            bad.append(f"row {number} {error}")
            continue
        if "label" in row:
            row["label"] = _renamed(row["label"], settings.labels)
        rows.append(row)
    if bad:
        more = f" (and {len(bad) - 3} rows more)" if len(bad) > 3 else ""
        raise UserError(f"{key}: {file.source}: {'; '.join(bad[:3])}{more}")
    if not rows:
        told = "; ".join(f"{number} rows: {reason}" for reason, number in counts.items())
        raise UserError(f"{key}: {file.source}: no row can be used ({told})")
    return _binned(rows, settings, key, counts) if settings.bins else rows


def _renamed(label: Any, names: Mapping[str, str]) -> Any:
    """A label, or each of a list of them, by its new name."""
    if isinstance(label, list):
        return [_renamed(one, names) for one in label]
    return names.get(label, label) if isinstance(label, str) else label


def _columns(raws: list[Raw], key: str, file: FileSettings, settings: DataSettings, task: Task) -> dict[str, str]:
    """Field -> column, for the fields this file has."""
    known = {column: None for raw in raws[:100] for column in raw}
    chosen, problems = {}, []
    for name, required in task.fields.items():
        column = settings.columns.get(name, name)
        if column in known:
            chosen[name] = column
        elif required or name in settings.columns:
            match = nearest(column, known)
            hint = f"; set data.columns.{name}={match}" if match else f"; set data.columns.{name}"
            if list(known) == ["text"] and "tokens" in task.fields:
                hint = f"; a file of a word a line is read by {key}.format=conll"
            problems.append(
                f"{key}: {file.source} has no column {column!r} for {name}{hint}. Columns: {', '.join(known)}"
            )
    if unknown := sorted(set(settings.columns) - set(task.fields)):
        problems.append(
            f"data.columns: the task {task.name} has no field {', '.join(unknown)}. Fields: {', '.join(task.fields)}"
        )
    if problems:
        raise UserError(*problems)
    return chosen


def _binned(rows: list[Row], settings: DataSettings, key: str, counts: Counter[str]) -> list[Row]:
    assert settings.bins is not None
    kept = []
    for number, row in enumerate(rows, 1):
        try:
            value = float(row["label"])
        except (ValueError, TypeError) as error:
            raise UserError(f"{key}: row {number}: data.bins needs a number as label, got {row['label']!r}") from error
        name = settings.bins.names[sum(value >= edge for edge in settings.bins.edges)]
        if name is None:
            counts["in a bin without a name"] += 1
        else:
            kept.append({**row, "label": name})
    return kept


def _without_rare(parts: dict[str, list[Row]], least: int, counts: Counter[str]) -> dict[str, list[Row]]:
    sizes = Counter(label for row in parts["train"] for label in _labels(row))
    rare = {label for rows in parts.values() for row in rows for label in _labels(row) if sizes[label] < least}
    kept = {name: [row for row in rows if not rare & {*_labels(row)}] for name, rows in parts.items()}
    counts["of a rare class"] += sum(map(len, parts.values())) - sum(map(len, kept.values()))
    return kept


def _labels(row: Row) -> list[Any]:
    """The row's classes: one, several, or none."""
    label = row.get("label")
    return label if isinstance(label, list) else [] if label is None else [label]


def _unique(given: dict[str, list[Row]], task: Task, counts: Counter[str], reporter: Reporter) -> dict[str, list[Row]]:
    """One row for each input; where files share one, test keeps it before validation, and that before training."""
    seen: dict[tuple[str, ...], Row] = {}
    kept, contradictions = {}, 0
    for name in reversed(NAMES):
        unique = []
        for row in given.get(name, []):
            key = tuple(" ".join(str(row[f]).split()) for f in task.inputs if f in row)
            if key in seen:
                contradictions += any(seen[key].get(f) != row.get(f) for f in task.targets)
            else:
                seen[key] = row
                unique.append(row)
        kept[name] = unique
    counts["duplicate"] += sum(map(len, given.values())) - len(seen)
    if contradictions:
        reporter.warn(f"{contradictions} duplicate rows say something else than the one that was kept")
    return {name: kept[name] for name in NAMES if name in given}


def _split(given: Mapping[str, list[Row]], settings: DataSettings, task: Task) -> dict[str, list[Row]]:
    parts = {name: list(given.get(name, [])) if name != "train" else [] for name in NAMES}
    test_below = 0.0 if "test" in given else settings.test_share
    validation_below = test_below + (0.0 if "validation" in given else settings.validation_share)
    for row in given["train"]:
        place = _place(row, settings, task)
        name = "test" if place < test_below else "validation" if place < validation_below else "train"
        parts[name].append(row)
    return parts


def _place(row: Row, settings: DataSettings, task: Task) -> float:
    """Where in [0, 1) a row falls: a hash of its first input, so rows that share it stay together."""
    text = " ".join(str(row[task.inputs[0]]).split())
    digest = hashlib.sha256(f"{settings.split_seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _subset(rows: list[Row], settings: DataSettings, task: Task) -> tuple[list[Row], list[Row]]:
    """The rows to train on and those left aside, both in their order."""
    if settings.train_rows is None:
        return rows, []
    other = settings.model_copy(update={"split_seed": -1 - settings.split_seed})
    ranked = sorted(range(len(rows)), key=lambda i: _place(rows[i], other, task))
    chosen = set(ranked[: settings.train_rows])
    return [r for i, r in enumerate(rows) if i in chosen], [r for i, r in enumerate(rows) if i not in chosen]
