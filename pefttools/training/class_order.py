"""A task fitted to its rows, with its classes in the order of the base's trained head.

Where the base's head already has the rows' classes, its order is used, and all of its classes are kept. Where its
classes are others, or have no names (LABEL_0), a new head is trained, with a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pefttools.bases.class_heads import folded, is_nameless, matched, names
from pefttools.data.fields import listed
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from pefttools.bases.loading import BaseSettings
    from pefttools.data.rows import Splits
    from pefttools.tasks.base import Task


def fitted(
    task: Task, settings: BaseSettings, splits: Splits, reporter: Reporter = SILENT, known: Sequence[str] = ()
) -> Task:
    """The task fitted to its rows, with its classes in the order of the base's head where that has them.

    Args:
        known: the classes of the model that training goes on from; they stay, and new ones come after them.

    Raises:
        UserError: the rows do not fit the task, or `base.trained_head=keep` is impossible.
    """
    if known:
        return _grown(task, known, splits, reporter)
    existing = names(settings, task.auto_class, reporter)
    if not task.has_class_head:
        if len(existing) > 1 and task.config_values().get("num_labels") == 1:
            reporter.warn(
                f"the head of {settings.source} has {len(existing)} outputs ({listed(existing)}), but {task.name} needs"
                " one; a new head is trained"
            )
        return task.fit(splits)
    wanted: tuple[str, ...] = task.labels  # type: ignore[attr-defined]
    if settings.trained_head == "keep":
        _refuse_unless_named(settings, wanted, existing)
    found = task.fit(splits) if not wanted or not existing else _with_given(task, wanted, existing, splits)
    labels: tuple[str, ...] = found.labels  # type: ignore[attr-defined]
    if not existing or wanted:
        if existing and matched(wanted, existing, settings) is None:
            _report_new(settings, wanted, existing, reporter)
        return found
    places = matched(labels, existing, settings)
    if places is None:
        _report_new(settings, labels, existing, reporter)
        return found
    spelled = dict(zip(places, labels, strict=True))
    everything = [spelled.get(place, name) for place, name in enumerate(existing)]
    chosen = found.with_classes(everything)
    _report_kept(settings, labels, chosen.labels, reporter)  # type: ignore[attr-defined]
    return chosen


def _grown(task: Task, known: Sequence[str], splits: Splits, reporter: Reporter) -> Task:
    """The fitted task with these classes, followed by those that only the rows have."""
    given: tuple[str, ...] = task.labels  # type: ignore[attr-defined]
    free: Any = task.with_values(labels=()).fit(splits)
    found = free.with_classes([*known, *(name for name in free.labels if name not in known)])
    labels: tuple[str, ...] = found.labels
    if given and list(given) != list(labels):
        raise UserError(
            f"task.labels: are {listed(given)}, but the model that training goes on from has {listed(known)}, and new"
            " classes come after them; remove task.labels"
        )
    for new in labels[len(known) :]:
        if near := [name for name in known if folded(name) == folded(new)]:
            reporter.warn(
                f"the class {new!r} is new, although the model that training goes on from has {near[0]!r}, which"
                f" differs only in case, spaces or hyphens; if they are one class, set data.labels.{new}={near[0]}"
            )
    if more := labels[len(known) :]:
        reporter.note(f"the head grows from {len(known)} to {len(labels)} classes; new: {listed(more)}")
    return found


def _with_given(task: Task, wanted: Sequence[str], existing: Sequence[str], splits: Splits) -> Task:
    """The task fitted with the recipe's labels; the base's head may have labels that no row has."""
    free: Any = task.with_values(labels=()).fit(splits)
    if set(free.labels) <= set(wanted) and {*map(folded, set(wanted) - set(free.labels))} <= {*map(folded, existing)}:
        return free.with_values(labels=tuple(wanted))
    return task.fit(splits)


def _refuse_unless_named(settings: BaseSettings, wanted: Sequence[str], existing: Sequence[str]) -> None:
    if not existing:
        raise UserError(
            f"base.trained_head: keep: {settings.source} has no trained head for this task; remove this setting"
        )
    if wanted and len(wanted) != len(existing):
        raise UserError(
            f"base.trained_head: keep: task.labels names {len(wanted)} classes, but the head of {settings.source} has"
            f" {len(existing)}: {listed(existing)}"
        )
    if not wanted and is_nameless(existing):
        raise UserError(
            f"base.trained_head: keep: the classes of the head of {settings.source} have no names ({listed(existing)});"
            " name them in this order in task.labels"
        )


def _report_new(settings: BaseSettings, labels: Sequence[str], existing: Sequence[str], reporter: Reporter) -> None:
    start = f"the head of {settings.source} has other classes ({listed(existing)}) than the rows"
    if is_nameless(existing):
        start = f"the head of {settings.source} has no names for its classes ({listed(existing)})"
    advice = f"; if its outputs are {listed(labels)} in some order, name them in that order in task.labels and set"
    advice += " base.trained_head=keep"
    reporter.warn(f"{start}; a new head is trained{advice if len(labels) == len(existing) else ''}")


def _report_kept(settings: BaseSettings, labels: Sequence[str], chosen: Sequence[str], reporter: Reporter) -> None:
    more = [name for name in chosen if name not in labels]
    if more:
        reporter.warn(
            f"the head of {settings.source} also has the classes {listed(more)}, which no training row has; all"
            f" {len(chosen)} classes are kept. To train a head for the rows' classes only, set base.trained_head=new"
        )
    elif list(chosen) != list(labels):
        reporter.note(f"the classes are in the order of the head of {settings.source}: {listed(chosen)}")
