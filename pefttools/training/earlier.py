"""The trained model that a run goes on from: what it is, whether it fits the recipe, and its weights as the start.

Whatever it is, its classes keep their places in the head, and new ones come after them. A run's own parameters, or a
foreign adapter's, are trained further (`continue`), or merged into the base in memory and frozen (`stack`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.bases import class_heads
from pefttools.errors import UserError, damage_of
from pefttools.recipe import recipes
from pefttools.recipe.start import Found, find
from pefttools.reporter import SILENT, Reporter
from pefttools.strategies import strategies
from pefttools.strategies.base import CONFIG, read, trained
from pefttools.training import stack
from pefttools.training.run import Run
from pefttools.training.stack import Layer
from pefttools.training.start_checks import (
    refuse_other_base,
    refuse_other_base_settings,
    refuse_other_number,
    refuse_other_strategy,
    refuse_other_task,
    refuse_other_tokenizer,
)

if TYPE_CHECKING:
    from torch import nn

    from pefttools.bases.loading import Base
    from pefttools.recipe.recipe import Recipe
    from pefttools.tasks.base import Task

PLACEHOLDERS = tuple(f"class {i}" for i in range(17))
"""Classes of a head that is only looked at."""


@dataclass(frozen=True)
class Earlier:
    """The trained model that a run goes on from."""

    recipe: Recipe
    """The recipe of the new run."""
    found: Found
    below: tuple[Layer, ...]
    """The frozen adapters below its own."""
    own: Layer | None
    """Its adapter; None for a merged model, which is the recipe's base."""
    task: Task | None
    """The task that it was trained for, where that is known."""
    base_sha256: str | None
    """The sha256 of the base with the frozen adapters, where that is known."""

    @property
    def continues(self) -> bool:
        """Whether its own parameters are trained further."""
        return self.own is not None and self._start.adapter == "continue"

    @property
    def frozen(self) -> tuple[Layer, ...]:
        """The adapters that are merged into the base."""
        return self.below if self.continues or self.own is None else (*self.below, self.own)

    @property
    def run(self) -> Run | None:
        return Run(self.found.path) if self.found.kind == "run" else None

    @property
    def new_head(self) -> bool:
        """Whether its head is not used."""
        return self.recipe.base.trained_head == "new"

    @property
    def _start(self) -> Any:
        assert self.recipe.start is not None
        return self.recipe.start

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The classes of its head in their order; none where the task has no classes, or a new head is trained.

        Raises:
            UserError: the head has classes without names.
        """
        task = self.recipe.task
        if not task.has_class_head or self.new_head:
            return ()
        if self.task is not None:
            return tuple(self.task.labels)  # type: ignore[attr-defined]
        if self.own is None:
            names = class_heads.names(self.recipe.base, task.auto_class)
            number = len(names)
            found = () if class_heads.is_nameless(names) else names
        else:
            number, found = self._num_outputs(), _names_in(self.found.path)
        given = tuple(self._start.labels)
        if number == 0 or (found and not given):
            refuse_other_number(found, number, self.found.path)
            return found
        if not given:
            raise UserError(
                f"start.labels: the head of {self.found.path} has {number} outputs, whose classes have no names; name"
                f" them in the order of the outputs with start.labels=[…], or set base.trained_head=new to train a new"
                " head"
            )
        refuse_other_number(given, number, self.found.path, "start.labels")
        return given

    def _num_outputs(self) -> int:
        """The number of outputs of the adapter's head; 0 where it has none."""
        assert self.own is not None
        fake = self.recipe.task.with_values(labels=PLACEHOLDERS)
        base = fake.load(self.recipe.base.with_values(trained_head="new"), empty=True)
        path, tensors = stack.head_layer(base, len(PLACEHOLDERS)), read(self.own.folder)
        found = stack.key(tensors, f"{path}.weight") if path else None
        return len(tensors[found]) if found else 0

    def check(self, base: Base) -> None:
        """Raises UserError when the base, with its frozen adapters, or its tokenizer is not that of the training."""
        if self.base_sha256 not in (None, base.sha256):
            raise UserError(
                f"start.source: {self.found.path} was trained on another base than {base.source} (sha256"
                f" {str(self.base_sha256)[:12]}…, not {base.sha256[:12]}…); set base.source to its base"
            )
        if self.found.kind == "adapter":
            refuse_other_tokenizer(self.found.path, base)

    def wrapped(self, base: Base) -> nn.Module:
        """The base with its parameters as the start of training. Raises UserError when they do not fit."""
        assert self.own is not None
        with stack.grown(self.own.folder, base, self.new_head) as folder, stack.fitting(self.own.folder, base):
            return self.recipe.strategy.continued(base, folder)

    def mark(self, model: nn.Module, base: Base, labels: Sequence[str]) -> None:
        """Mark the trained parameters that were trained before; penalties pull them to their present values.

        Args:
            labels: the classes of its head.
        """
        saved = read(self.own.folder) if self.own else {}
        used = [path for path in base.head if self.own is None or any(f".{path}." in f".{name}" for name in saved)]
        number = getattr(base.model.config, "num_labels", 0)
        last = stack.head_layer(base, number) if labels and len(labels) < number else None
        for name, parameter in trained(model).items():
            bare = f".{stack.without_wrappers(name)}"
            inside = next((path for path in base.head if f".{path}." in bare), None)
            in_head = inside in used and not self.new_head
            parameter.trained_before = in_head if inside else self.continues  # type: ignore[attr-defined]
            if last and bare.rpartition(".")[0].endswith(f".{last}"):
                parameter.known_rows = len(labels)  # type: ignore[attr-defined]


def opened(recipe: Recipe, reporter: Reporter = SILENT) -> Earlier | None:
    """The trained model that a recipe goes on from; None for most recipes.

    Raises:
        UserError: it is damaged, was changed since the recipe was resolved, or does not fit the recipe.
    """
    start = recipe.start
    if start is None:
        return None
    found = find(start.source)
    if found.sha256 != start.sha256:
        raise UserError(
            f"start.source: {found.path} has changed: the sha256 of its weights is {found.sha256}, the recipe has"
            f" {start.sha256}; restore it, or start from it as it is now with --from {found.path} and another --out"
        )
    if found.kind == "merged":
        return Earlier(recipe, found, (), None, None, None)
    strategy, problems = strategies.parse(found.strategy(), "start.source")
    if strategy is None:
        raise UserError(*problems)
    own = Layer(strategy, found.weights)
    earlier = _of_run(recipe, found, own) if found.kind == "run" else _of_adapter(recipe, found, own, reporter)
    if earlier.continues:
        refuse_other_strategy(recipe.strategy, strategy, found.path)
    return earlier


def run_before(recipe: Recipe) -> Run | None:
    """The run that a recipe goes on from; None if there is none. Raises UserError like `opened`."""
    start = opened(recipe)
    return start.run if start else None


def taken_over(recipe: Recipe, earlier: Earlier | None) -> Recipe:
    """The recipe with the settings of its task that the earlier weights depend on."""
    if earlier is None:
        return recipe
    task, former = recipe.task, earlier.task
    values = {}
    for name in task.of_weights:
        was, now = getattr(former, name) if former else None, getattr(task, name)
        if former is None and name in ("label_mean", "label_scale") and earlier.own is not None:
            was = float(name == "label_scale")  # a foreign head predicts in the labels' own unit
        if now is None and was is not None:
            values[name] = was
        elif was is not None and now != was:
            raise UserError(f"task.{name}: is {now}, but {earlier.found.path} was trained with {was}; set the same")
    return recipe.model_copy(update={"task": task.with_values(**values)}) if values else recipe


def _of_run(recipe: Recipe, found: Found, own: Layer) -> Earlier:
    run = Run.open(found.path)
    former = run.recipe()
    refuse_other_task(recipe, former)
    refuse_other_base_settings(recipe, former)
    return Earlier(recipe, found, stack.of_run(found.path), own, former.task, run.result()["base"]["sha256"])


def _of_adapter(recipe: Recipe, found: Found, own: Layer, reporter: Reporter) -> Earlier:
    former = recipes.load(str(found.recipe_file)).recipe if found.recipe_file else None
    if former:
        refuse_other_task(recipe, former)
    manifest = found.path / "manifest.json"
    if manifest.is_file():
        with damage_of(manifest):
            sha256 = json.loads(manifest.read_text("utf-8"))["base"]["sha256"]
        return Earlier(recipe, found, (), own, former.task if former else None, sha256)
    with damage_of(found.path / CONFIG):
        config = json.loads((found.path / CONFIG).read_text("utf-8"))
        kind, base = config.get("task_type"), config.get("base_model_name_or_path")
    if kind not in (None, recipe.task.peft_type):
        raise UserError(
            f"start.source: the adapter in {found.path} is for peft's task {kind}, but {recipe.task.name} is"
            f" {recipe.task.peft_type}; choose the task that it was trained for"
        )
    refuse_other_base(found.path, base, recipe, reporter)
    return Earlier(recipe, found, (), own, former.task if former else None, None)


def _names_in(folder: Path) -> tuple[str, ...]:
    """The names of the classes in an adapter folder's config.json, where a foreign tool wrote one with names."""
    file = folder / "config.json"
    if not file.is_file():
        return ()
    with damage_of(file):
        names = json.loads(file.read_text("utf-8")).get("id2label") or {}
        found = tuple(str(names[i]) for i in sorted(names, key=int))
    return () if class_heads.is_nameless(found) else found
