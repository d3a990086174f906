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
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pefttools.data import repeats
from pefttools.data.fields import listed
from pefttools.data.hash_split import RANGE, hash_split, position
from pefttools.data.keyed_rows import KeyedRows
from pefttools.data.loading import Loaded, load_file, load_rows
from pefttools.data.rows import NAMES, LeftOut, Row, RowReader, Splits, key, labels_of, one_line
from pefttools.data.settings import DataSettings
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    files = {name: KeyedRows.of(file.rows, file.ids, task) for name, file in loaded.items()}
    repeats.warn_of_contradictions(files, task, settings.deduplicate, reporter)
    files = repeats.without_overlap(files, settings, task, counts, reporter)
    parts = _split(files, settings, task, reporter)
    for name in (name for name in REPEATED[settings.deduplicate] if name == "train" or name not in files):
        parts[name] = repeats.first_of_each(parts[name], counts)
    if settings.min_class_rows > 1:
        parts = _without_rare(parts, settings.min_class_rows, counts)
    train, spare = _subset(parts["train"], settings, task)
    parts["train"] = train
    return _checked(
        Splits(
            **{name: found.rows for name, found in parts.items()},
            left_out={reason: number for reason, number in counts.items() if number},
            spare=spare.rows,
            ids={name: found.ids for name, found in parts.items()},
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
    files: Mapping[str, KeyedRows], settings: DataSettings, task: RowReader, reporter: Reporter
) -> dict[str, KeyedRows]:
    """The rows of files as they are, and the training file's rows split by the hash of their first input."""
    import numpy

    shares = {"test": settings.test_share, "validation": settings.validation_share}
    others = {*files} - {"train"}
    shares = {name: share for name, share in shares.items() if share and name not in others}
    train, seed = files["train"], settings.split_seed
    positions = _positions((one_line(row[task.inputs[0]]) for row in train.rows), len(train), seed)
    number = len(numpy.unique(positions))
    if number <= len(shares) < len(numpy.unique(train.keys)):
        reporter.warn(
            f"data.train: its {len(train)} rows have {number} different {task.inputs[0]}s, too few to"
            f" split by; validation, test and training rows share them"
        )
        positions = _positions(("\n".join(key(row, task)) for row in train.rows), len(train), seed)
    labels = ([label for label in labels_of(row) if isinstance(label, str)] for row in train.rows)
    indices = hash_split(positions, labels, shares)
    nothing = numpy.arange(0)
    return {name: files[name] if name in others else train.take(indices.get(name, nothing)) for name in NAMES}


def _positions(texts: Iterable[str], number: int, seed: int) -> NDArray[Any]:
    """The positions of the hashes of texts; shape (rows), uint64."""
    import numpy

    return numpy.fromiter((position(text, seed) for text in texts), numpy.uint64, number)


def _without_rare(parts: dict[str, KeyedRows], least: int, counts: Counter[str]) -> dict[str, KeyedRows]:
    import numpy

    sizes = Counter(label for row in parts["train"].rows for label in labels_of(row))
    common = {}
    for name, file in parts.items():
        is_common = [all(sizes[label] >= least for label in labels_of(row)) for row in file.rows]
        common[name] = file.take(numpy.flatnonzero(is_common))
    counts["of a rare class"] += sum(map(len, parts.values())) - sum(map(len, common.values()))
    return common


def _subset(file: KeyedRows, settings: DataSettings, task: RowReader) -> tuple[KeyedRows, KeyedRows]:
    """The rows to train on and the rows left aside, both in their order."""
    import numpy

    is_chosen = numpy.ones(len(file), bool)
    if settings.train_rows is not None:
        texts = (one_line(row[task.inputs[0]]) for row in file.rows)
        places = _positions(texts, len(file), -1 - settings.split_seed).astype(float) / RANGE
        is_chosen[numpy.argsort(places, kind="stable")[settings.train_rows :]] = False
    return file.take(is_chosen.nonzero()[0]), file.take((~is_chosen).nonzero()[0])
