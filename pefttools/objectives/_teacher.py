"""The teacher of distillation: a finished run, an exported folder, or any base that has the task's head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.bases import class_heads
from pefttools.bases.loading import BaseSettings, locate
from pefttools.errors import UserError
from pefttools.objectives.base import Context, Loaded
from pefttools.reporter import SILENT

if TYPE_CHECKING:
    from pefttools.bases.loading import Base
    from pefttools.data.encoding import Encoded
    from pefttools.tasks.base import Task

RECIPE = "recipe.yaml"
CONFIG = "config.json"


def load_teacher(source: str, context: Context, setting: str) -> Loaded:
    """The teacher on the run's device, with the run's classes.

    Args:
        source: the path of a finished run, or the source of a base.
        setting: the setting's key, for messages.

    Raises:
        UserError: there is no such model; it is of another task or of other classes; or its head is not trained.
    """
    folder, task = Path(source), context.task
    is_run = (folder / RECIPE).is_file() and not (folder / CONFIG).is_file()
    try:
        if is_run:
            assert context.load_run is not None
            teacher = context.load_run(source)
        else:
            base = _of_base(BaseSettings(source=source), task)
            teacher = Loaded(base.model.eval(), base.tokenizer, task, base, base.sha256)
    except UserError as error:
        raise UserError(*(f"{setting}: {problem.removeprefix('base: ')}" for problem in error.problems)) from error
    if teacher.task.name != task.name:
        raise UserError(f"{setting}: {source} does task={teacher.task.name}, but this run does task={task.name}")
    if sorted(teacher.task.class_names) != sorted(task.class_names):
        raise UserError(
            f"{setting}: {source} has the classes {_listed(teacher.task.class_names)}, but the rows have"
            f" {_listed(task.class_names)}"
        )
    device = next(context.model.parameters()).device
    for parameter in teacher.model.to(device).parameters():
        parameter.requires_grad_(False)
    return teacher


def refuse_another(name: str, key: str, state: Mapping[str, Any]) -> None:
    """Raises UserError when a resumed run had another teacher."""
    if state["teacher"] != key:
        raise UserError(f"--resume: objectives.{name}.teacher has other weights than when the run began")


def _of_base(settings: BaseSettings, task: Task) -> Base:
    """The base with a head for the task's classes. Raises UserError unless the head is trained."""
    locate(settings)
    labels = task.class_names if task.has_class_head else ()
    existing = class_heads.names(settings, task.auto_class) if labels else ()
    is_trained = class_heads.matched(labels, existing, settings) is not None if existing else not task.own_head
    if not is_trained:
        raise UserError(
            f"{settings.source} has no trained head for the classes {_listed(task.class_names)}; train it first, and"
            " name the run"
        )
    return task.load(settings, SILENT)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def refuse_other_targets(teacher: Loaded, encoded: Encoded, context: Context, setting: str) -> None:
    """Raises UserError unless the teacher's encoding of the rows has the same targets in the same order."""
    assert context.encoded is not None
    mine, theirs = context.encoded["num_targets"][:], encoded["num_targets"]
    if list(mine) != list(theirs):
        raise UserError(
            f"{setting}: the tokenizer of {teacher.base.source} gives these rows other targets than that of"
            f" {context.base.source}; take a teacher with the same tokenizer"
        )
    if not context.task.class_names and teacher.tokenizer.get_vocab() != context.base.tokenizer.get_vocab():
        raise UserError(
            f"{setting}: the vocabulary of {teacher.base.source} is not that of {context.base.source}, so their"
            " predictions of tokens cannot be compared; take a teacher with the same tokenizer"
        )
