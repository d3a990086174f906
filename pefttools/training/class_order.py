"""A task fitted to its rows, its classes in the order of a head that the base has already trained.

Where a base already tells our classes apart, its order of them is taken, and all of its classes are kept. Where its
classes are others, or have no names (LABEL_0), the last layer starts anew, with a warning.
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


def fitted(task: Task, settings: BaseSettings, splits: Splits, reporter: Reporter = SILENT) -> Task:
    """The task fitted to its rows, with its classes in the order of the base's head where that tells them apart.

    Raises:
        UserError: the rows cannot serve the task, or `base.trained_head=keep` lacks what it needs.
    """
    held = names(settings, task.auto_class, reporter)
    if not task.has_class_head:
        if len(held) > 1 and task.config_values().get("num_labels") == 1:
            reporter.warn(
                f"the head of {settings.source} has {len(held)} outputs ({listed(held)}), and {task.name} takes one:"
                " a new head is trained"
            )
        return task.fit(splits)
    given: tuple[str, ...] = task.labels  # type: ignore[attr-defined]
    if settings.trained_head == "keep":
        _refuse_unless_named(settings, given, held)
    found = task.fit(splits) if not given or not held else _with_given(task, given, held, splits)
    labels: tuple[str, ...] = found.labels  # type: ignore[attr-defined]
    if not held or given:
        if held and matched(given, held, settings) is None:
            _report_new(settings, given, held, reporter)
        return found
    known = matched(labels, held, settings)
    if known is None:
        _report_new(settings, labels, held, reporter)
        return found
    spelled = dict(zip(known, labels, strict=True))
    everything = [spelled.get(place, name) for place, name in enumerate(held)]
    chosen = found.with_classes(everything)
    _report_kept(settings, labels, chosen.labels, reporter)  # type: ignore[attr-defined]
    return chosen


def _with_given(task: Task, given: Sequence[str], held: Sequence[str], splits: Splits) -> Task:
    """The task fitted with the labels its recipe names, of which some may be known to the base alone."""
    free: Any = task.with_values(labels=()).fit(splits)
    if set(free.labels) <= set(given) and {*map(folded, set(given) - set(free.labels))} <= {*map(folded, held)}:
        return free.with_values(labels=tuple(given))
    return task.fit(splits)


def _refuse_unless_named(settings: BaseSettings, given: Sequence[str], held: Sequence[str]) -> None:
    if not held:
        raise UserError(f"base.trained_head: keep: {settings.source} has no trained head for this task; take it away")
    if given and len(given) != len(held):
        raise UserError(
            f"base.trained_head: keep: task.labels names {len(given)} classes, and the head of {settings.source} tells"
            f" {len(held)} apart: {listed(held)}"
        )
    if not given and is_nameless(held):
        raise UserError(
            f"base.trained_head: keep: the head of {settings.source} calls its classes {listed(held)};"
            " name the classes in this order in task.labels"
        )


def _report_new(settings: BaseSettings, labels: Sequence[str], held: Sequence[str], reporter: Reporter) -> None:
    start = f"the head of {settings.source} tells other classes apart ({listed(held)}) than the rows"
    if is_nameless(held):
        start = f"the head of {settings.source} has no names for its classes ({listed(held)})"
    cure = f"; if its outputs are {listed(labels)} in some order, name them in that order in task.labels and set"
    cure += " base.trained_head=keep"
    reporter.warn(f"{start}: a new head is trained{cure if len(labels) == len(held) else ''}")


def _report_kept(settings: BaseSettings, labels: Sequence[str], chosen: Sequence[str], reporter: Reporter) -> None:
    more = [name for name in chosen if name not in labels]
    if more:
        reporter.warn(
            f"the head of {settings.source} also tells apart {listed(more)}, of which there are no rows to train on:"
            f" all {len(chosen)} classes are kept; base.trained_head=new trains a head for the rows' classes alone"
        )
    elif list(chosen) != list(labels):
        reporter.note(f"the classes are in the order of the head of {settings.source}: {listed(chosen)}")
