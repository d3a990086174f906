"""Rows that occur more than once, compared by the inputs that the model sees: warnings, and their removal.

Rows repeat within a file, or in several of the training, validation and test splits. `data.deduplicate` decides which
of them are removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pefttools.data.keyed_rows import KeyedRows
from pefttools.data.rows import RowReader
from pefttools.data.settings import DataSettings
from pefttools.errors import UserError
from pefttools.reporter import Finding, Reporter

if TYPE_CHECKING:
    from numpy.typing import NDArray


def warn_of_contradictions(files: Mapping[str, KeyedRows], task: RowReader, dedup: str, reporter: Reporter) -> None:
    """Warn of rows that have the inputs of an earlier row of their file but other targets."""
    if task.generates:
        return  # several answers to one prompt do not contradict each other
    for name, file in files.items():
        first = _first_with_key(file)
        different = (file.targets[first] != file.targets).nonzero()[0]
        if not len(different):
            continue
        other = int(different[0])
        first_only = name == "train" and dedup in ("train", "all")
        reporter.warn(
            Finding(
                "conflicting duplicates",
                f"data.{name}: {len(different)} rows repeat the {task.inputs[0]} of an earlier row with another"
                f" {task.targets[0]}",
                f"{len(different)} of {len(file)} rows, for example row {file.ids[other]} that of row"
                f" {file.ids[int(first[other])]};"
                + (" training uses only the first of them" if first_only else " all of them are used"),
                f"pefttools train RECIPE data.{'deduplicate=train' if name == 'train' else f'{name}=OTHER_ROWS'}",
            )
        )


def _first_with_key(file: KeyedRows) -> NDArray[Any]:
    """For every row, the index of the first row with its key; shape (rows)."""
    import numpy

    _, first, numbers = numpy.unique(file.keys, return_index=True, return_inverse=True)
    return first[numbers]


def first_of_each(file: KeyedRows, counts: Counter[str]) -> KeyedRows:
    """The rows without those that repeat an earlier one."""
    import numpy

    first = numpy.unique(file.keys, return_index=True)[1]
    counts["repeated"] += len(file) - len(first)
    return file if len(first) == len(file) else file.take(numpy.sort(first))


def without_overlap(
    files: Mapping[str, KeyedRows], settings: DataSettings, task: RowReader, counts: Counter[str], reporter: Reporter
) -> dict[str, KeyedRows]:
    """The rows per file, with training rows that are in validation or test removed.

    Raises:
        UserError: no training row is left.
    """
    import numpy

    others = {name: file for name, file in files.items() if name != "train"}
    if len(others) == 2:
        _warn_of_shared(others["validation"], others["test"], reporter)
    train = files["train"]
    for name, other in reversed(others.items()):
        is_shared = numpy.isin(train.keys, other.keys)
        shared = int(is_shared.sum())
        if settings.deduplicate == "none":
            if shared:
                reporter.warn(
                    Finding(
                        "overlap of train and test",
                        f"data.train: {shared} of {len(train)} rows are in data.{name} too, so the evaluation includes"
                        " rows that were trained on",
                        f"{shared / len(train):.1%} of the rows, with data.deduplicate=none",
                        "pefttools train RECIPE data.deduplicate=overlap",
                    )
                )
            continue
        counts[f"also in {name}"] += shared
        if shared == len(train):
            raise UserError(_nothing_left(name, settings))
        if shared:
            train = train.take((~is_shared).nonzero()[0])
    if task.generates:
        _warn_of_prompts(train, others, task, reporter)
    return {**files, "train": train}


def _nothing_left(name: str, settings: DataSettings) -> str:
    same = settings.train.source == getattr(settings, name).source
    cure = f"leave out data.{name}, so that a share of the training rows takes its place" if same else "give other rows"
    return (
        f"data.train: every row of {settings.train.source} is in data.{name} too{', the same file' if same else ''};"
        f" rows of an evaluation are removed from training. {cure[0].upper()}{cure[1:]}, or set data.deduplicate=none"
        " to train on them as well"
    )


def _warn_of_shared(validation: KeyedRows, test: KeyedRows, reporter: Reporter) -> None:
    import numpy

    if shared := int(numpy.isin(validation.keys, test.keys).sum()):
        which = "all" if shared == len(validation) else f"{shared} of {len(validation)}"
        reporter.warn(
            Finding(
                "overlap of train and test",
                f"data.validation: {which} rows are in data.test too, which also choose the best model, so the test"
                " score is too optimistic",
                f"{shared / len(validation):.1%} of the validation rows",
                "pefttools train RECIPE data.validation=null",
            )
        )


def _warn_of_prompts(train: KeyedRows, others: Mapping[str, KeyedRows], task: RowReader, reporter: Reporter) -> None:
    """Warn of training rows that have the inputs of an evaluated row but other targets; they remain in training."""
    import numpy

    for name, other in others.items():
        if shared := int((numpy.isin(train.inputs, other.inputs) & ~numpy.isin(train.keys, other.keys)).sum()):
            reporter.warn(
                f"data.train: {shared} rows have the {task.inputs[0]} of a {name} row but a different answer;"
                " they remain in training"
            )
