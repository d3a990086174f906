"""Split the rows of a task into training, validation and test: by file, or by a seeded hash of the training file's
texts.

Every row of a validation or test file is evaluated, so that results are comparable. Rows that training shares with them
are removed from training (`data.deduplicate`); rows that validation shares with test are evaluated in both, with a
warning. Rows are repeats if their inputs are equal, and for tasks that generate, also their answers (`rows.key`). The
hash uses only the first input, so that no prompt is in two splits, whatever its answers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pefttools.data import repeats
from pefttools.data.fields import listed
from pefttools.data.hash_split import hash_split, place
from pefttools.data.loading import Loaded, load_file, load_rows
from pefttools.data.rows import NAMES, IdentifiedRow, LeftOut, Row, RowReader, Splits, key, labels_of, one_line
from pefttools.data.settings import DataSettings
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter

__all__ = ["LeftOut", "Row", "Splits", "load_rows", "load_splits"]

MANY = 10
"""Number of labels above which numbers are hardly the names of classes."""
REPEATED = {"none": (), "overlap": (), "train": ("train",), "all": NAMES}
"""`data.deduplicate` -> the splits from the training file in which only the first of repeated rows is kept."""


def load_splits(settings: DataSettings, task: RowReader, reporter: Reporter = SILENT) -> Splits:
    """Read, check, and split the rows of a task.

    Raises:
        UserError: a file cannot be read, a column is missing, the task cannot use a row, or there are too few rows.
    """
    counts: Counter[str] = Counter()
    loaded = {
        name: load_file(name, settings, task, counts, reporter) for name in NAMES if getattr(settings, name) is not None
    }
    _warn_of_labels_without_rows(loaded.values(), settings, task, reporter)
    files = {name: file.rows for name, file in loaded.items()}
    repeats.warn_of_contradictions(files, task, settings.deduplicate, reporter)
    files = repeats.without_overlap(files, settings, task, counts, reporter)
    parts = _split(files, settings, task, reporter)
    for name in (name for name in REPEATED[settings.deduplicate] if name == "train" or name not in files):
        parts[name] = repeats.first_of_each(parts[name], task, counts)
    if settings.min_class_rows > 1:
        parts = _without_rare(parts, settings.min_class_rows, counts)
    train, spare = _subset(parts["train"], settings, task)
    parts["train"] = train
    return _checked(
        Splits(
            **{name: [found.row for found in rows] for name, rows in parts.items()},
            left_out={reason: number for reason, number in counts.items() if number},
            spare=[found.row for found in spare],
            ids={name: [found.id for found in rows] for name, rows in parts.items()},
            invalid={name: file.invalid for name, file in loaded.items() if file.invalid},
            unread={name: file.unread for name, file in loaded.items() if file.unread},
        ),
        settings,
        reporter,
    )


def _warn_of_labels_without_rows(
    loaded: Iterable[Loaded], settings: DataSettings, task: RowReader, reporter: Reporter
) -> None:
    """Warn of names in `data.labels` that no row has, as they may be misspelled."""
    written = frozenset[str]().union(*(file.labels for file in loaded))
    if "label" in task.targets and (missing := [name for name in settings.labels if name not in written]):
        reporter.warn(f"data.labels: no row has the label {listed(missing)}; rows have {listed(sorted(written))}")


def _checked(splits: Splits, settings: DataSettings, reporter: Reporter) -> Splits:
    """The splits. Raises UserError if training or validation has no rows."""
    if not splits.train:
        reasons = "".join(f"; {number} left out: {reason}" for reason, number in splits.left_out.items())
        raise UserError(f"data.train: no rows are left to train on{reasons}")
    number = len(splits.train) + len(splits.spare)
    if not splits.validation:
        labels = {label for row in splits.train if isinstance(label := row.get("label"), str)}
        hint = f"; there are {len(labels):,} different labels: if they are numbers to predict, set task=regression"
        raise UserError(
            f"data.train: its {number} rows are too few for training and validation: training needs a row of every"
            " class, and validation one more; give more rows, or set data.validation to a file"
            + (hint if len(labels) > MANY and all(map(_is_number, labels)) else "")
        )
    if not splits.test and settings.test is None and settings.test_share:
        reporter.warn(
            f"data.train: {number + len(splits.validation)} rows are too few to split off test rows; the final"
            " evaluation uses the validation rows, which also choose the checkpoint, so its scores are optimistic; set"
            " data.test to a file for independent ones"
        )
    return splits


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


def _split(
    files: Mapping[str, list[IdentifiedRow]], settings: DataSettings, task: RowReader, reporter: Reporter
) -> dict[str, list[IdentifiedRow]]:
    """The rows of files as they are, and the training file's rows split by the hash of their first input."""
    shares = {"test": settings.test_share, "validation": settings.validation_share}
    shares = {name: share for name, share in shares.items() if share and name not in files}
    parts = {name: list(files.get(name, [])) if name != "train" else [] for name in NAMES}
    texts = [one_line(found.row[task.inputs[0]]) for found in files["train"]]
    if len(set(texts)) <= len(shares) < len({key(found.row, task) for found in files["train"]}):
        reporter.warn(
            f"data.train: its {len(texts)} rows have {len(set(texts))} different {task.inputs[0]}s, too few to"
            f" split by; validation, test and training rows share them"
        )
        texts = ["\n".join(key(found.row, task)) for found in files["train"]]
    classes: dict[str, set[str]] = {}
    for text, found in zip(texts, files["train"], strict=True):
        classes.setdefault(text, set()).update(label for label in labels_of(found.row) if isinstance(label, str))
    split = hash_split(classes, shares, settings.split_seed)
    for text, found in zip(texts, files["train"], strict=True):
        parts[split[text]].append(found)
    return parts


def _without_rare(
    parts: dict[str, list[IdentifiedRow]], least: int, counts: Counter[str]
) -> dict[str, list[IdentifiedRow]]:
    sizes = Counter(label for found in parts["train"] for label in labels_of(found.row))
    rare = {
        label for rows in parts.values() for found in rows for label in labels_of(found.row) if sizes[label] < least
    }
    common = {name: [found for found in rows if not rare & {*labels_of(found.row)}] for name, rows in parts.items()}
    counts["of a rare class"] += sum(map(len, parts.values())) - sum(map(len, common.values()))
    return common


def _subset(
    rows: Sequence[IdentifiedRow], settings: DataSettings, task: RowReader
) -> tuple[list[IdentifiedRow], list[IdentifiedRow]]:
    """The rows to train on and the rows left aside, both in their order."""
    if settings.train_rows is None:
        return list(rows), []
    seed = -1 - settings.split_seed
    places = [place(one_line(found.row[task.inputs[0]]), seed) for found in rows]
    chosen = set(sorted(range(len(rows)), key=places.__getitem__)[: settings.train_rows])
    return [r for i, r in enumerate(rows) if i in chosen], [r for i, r in enumerate(rows) if i not in chosen]
