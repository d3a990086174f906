"""The rows of a task in three splits: those of given files, or of the training file by a seeded hash of the text.

Every row of a given validation or test file is scored, so that figures can be compared. What training shares with them
leaves training (`data.deduplicate`), and what validation shares with test is scored in both, with a warning. Rows are
repeats when their inputs are the same, and where a task generates, their answers too (`rows.key`). They are split by
their first input alone: no prompt is on both sides, whatever its answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pefttools.data import repeats
from pefttools.data.fields import listed
from pefttools.data.hash_split import hash_split, place
from pefttools.data.loading import Loaded, load_file, load_rows
from pefttools.data.rows import NAMES, Found, LeftOut, Row, RowReader, Splits, key, labels_of, one_line
from pefttools.data.settings import DataSettings
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter

__all__ = ["LeftOut", "Row", "Splits", "load_rows", "load_splits"]

REPEATED = {"none": (), "overlap": (), "train": ("train",), "all": NAMES}
"""`data.deduplicate` -> the splits of whose repeated rows the first stays, where they come from the training file."""


def load_splits(settings: DataSettings, task: RowReader, reporter: Reporter = SILENT) -> Splits:
    """Read, check, and split.

    Raises:
        UserError: a file that cannot be read, a missing column, rows the task cannot use, too few rows.
    """
    counts: Counter[str] = Counter()
    loaded = {
        name: load_file(name, settings, task, counts, reporter) for name in NAMES if getattr(settings, name) is not None
    }
    _warn_of_labels_without_rows(loaded.values(), settings, task, reporter)
    given = {name: file.rows for name, file in loaded.items()}
    repeats.warn_of_contradictions(given, task, settings.deduplicate, reporter)
    given = repeats.without_overlap(given, settings, task, counts, reporter)
    parts = _split(given, settings, task, reporter)
    for name in (name for name in REPEATED[settings.deduplicate] if name == "train" or name not in given):
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
    """Warn of names in `data.labels` that no row has: they may be written otherwise in the file."""
    written = frozenset[str]().union(*(file.labels for file in loaded))
    if "label" in task.targets and (missing := [name for name in settings.labels if name not in written]):
        reporter.warn(f"data.labels: no row has the label {listed(missing)}; rows have {listed(sorted(written))}")


def _checked(splits: Splits, settings: DataSettings, reporter: Reporter) -> Splits:
    """The splits, if there is something to train on and to choose by. Raises UserError."""
    if not splits.train:
        reasons = "".join(f"; {number} left out: {reason}" for reason, number in splits.left_out.items())
        raise UserError(f"data.train: no rows are left to train on{reasons}")
    number = len(splits.train) + len(splits.spare)
    if not splits.validation:
        raise UserError(
            f"data.train: its {number} rows are too few to train on and to choose by: training needs a row of every"
            " class, and validation one more; give more rows, or a file as data.validation"
        )
    if not splits.test and settings.test is None and settings.test_share:
        reporter.warn(
            f"data.train: its {number + len(splits.validation)} rows are too few for a test split;"
            " the final score is on validation rows"
        )
    return splits


def _split(
    given: Mapping[str, list[Found]], settings: DataSettings, task: RowReader, reporter: Reporter
) -> dict[str, list[Found]]:
    """Given files as they are, and the training file's rows by the hash of their first input."""
    shares = {"test": settings.test_share, "validation": settings.validation_share}
    shares = {name: share for name, share in shares.items() if share and name not in given}
    parts = {name: list(given.get(name, [])) if name != "train" else [] for name in NAMES}
    texts = [one_line(found.row[task.inputs[0]]) for found in given["train"]]
    if len(set(texts)) <= len(shares) < len({key(found.row, task) for found in given["train"]}):
        reporter.warn(
            f"data.train: its {len(texts)} rows have {len(set(texts))} different {task.inputs[0]}s, too few to split"
            f" by; validation and test rows share them with training rows"
        )
        texts = ["\n".join(key(found.row, task)) for found in given["train"]]
    classes: dict[str, set[str]] = {}
    for text, found in zip(texts, given["train"], strict=True):
        classes.setdefault(text, set()).update(label for label in labels_of(found.row) if isinstance(label, str))
    split = hash_split(classes, shares, settings.split_seed)
    for text, found in zip(texts, given["train"], strict=True):
        parts[split[text]].append(found)
    return parts


def _without_rare(parts: dict[str, list[Found]], least: int, counts: Counter[str]) -> dict[str, list[Found]]:
    sizes = Counter(label for found in parts["train"] for label in labels_of(found.row))
    rare = {
        label for rows in parts.values() for found in rows for label in labels_of(found.row) if sizes[label] < least
    }
    common = {name: [found for found in rows if not rare & {*labels_of(found.row)}] for name, rows in parts.items()}
    counts["of a rare class"] += sum(map(len, parts.values())) - sum(map(len, common.values()))
    return common


def _subset(rows: Sequence[Found], settings: DataSettings, task: RowReader) -> tuple[list[Found], list[Found]]:
    """The rows to train on and those left aside, both in their order."""
    if settings.train_rows is None:
        return list(rows), []
    seed = -1 - settings.split_seed
    places = [place(one_line(found.row[task.inputs[0]]), seed) for found in rows]
    chosen = set(sorted(range(len(rows)), key=places.__getitem__)[: settings.train_rows])
    return [r for i, r in enumerate(rows) if i in chosen], [r for i, r in enumerate(rows) if i not in chosen]
