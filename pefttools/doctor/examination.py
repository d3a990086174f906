"""Run all checks that apply to a recipe or a run, and collect what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pefttools.bases.loading import prepare_libraries
from pefttools.checks import cheap
from pefttools.data.fields import listed
from pefttools.doctor import effect, head_order, known_test, near_duplicates, saved, saved_predictions, steps
from pefttools.doctor.saved import RunToCheck
from pefttools.errors import UserError
from pefttools.recipe import needed_packages, recipes
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import Bar, Finding, Reporter
from pefttools.training.preparation import Prepared, prepare
from pefttools.training.run import Run

S = TypeVar("S")


@dataclass(frozen=True)
class Check(Generic[S]):
    """A check of a prepared recipe or of a run."""

    name: str
    find: Callable[[S], Iterable[Finding]]
    why_not: Callable[[S], str | None] = lambda _: None
    """Returns the reason why the check does not apply, or None."""


WHILE_PREPARING = (
    "conflicting duplicates", "overlap of train and test", "truncated rows", "rows cut before their answer",
    "no supervised end token", "unknown tokens", "padding", *cheap.NAMES,
)  # fmt: skip
"""Checks that `train` makes as well, while it loads rows and model."""


def of_recipe(reporter: Reporter) -> tuple[Check[Prepared], ...]:
    """The checks of a prepared recipe that cost more; their order leaves the model as it is until the last two."""
    return (
        Check("ignored columns", unread),
        Check("near-duplicates", lambda prepared: near_duplicates.near_duplicates(prepared, reporter)),
        Check("labels that do not line up", lambda it: head_order.head_order(it, reporter), head_order.why_not),
        Check("base knows the test rows", lambda it: known_test.known_test(it, reporter), known_test.why_not),
        Check("dead gradients", lambda prepared: steps.dead_gradients(prepared, reporter), steps.why_not),
        Check("range of the learning rate", lambda it: steps.learning_rate(it, reporter), steps.why_not),
    )


OF_RUN: tuple[Check[RunToCheck], ...] = (
    Check("head missing", saved.missing_head),
    Check("tensors that never moved", saved.never_moved, saved.loads),
    Check("effect of the adapter", effect.effect, effect.why_not),
    Check("bf16 underflow", effect.bf16_underflow, effect.why_no_bf16),
    Check("labels that do not line up", saved_predictions.saved_predictions, saved_predictions.why_not),
)


@dataclass
class Examination:
    """What the checks found."""

    target: str
    """The recipe's name, or the run folder."""
    is_run: bool
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """Warnings of loading that belong to no check."""
    checked: list[str] = field(default_factory=list)
    """Names of the checks that ran."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Name of a check -> the reason why it did not run."""

    def run(self, checks: Sequence[Check[S]], subject: S) -> None:
        """Run the checks that apply to the subject."""
        for check in checks:
            if reason := check.why_not(subject):
                self.skipped[check.name] = reason
                continue
            self.findings += check.find(subject)
            self.checked.append(check.name)

    def as_dict(self) -> dict[str, Any]:
        """The content of `doctor --json`."""
        return {
            "target": self.target,
            "is_run": self.is_run,
            "findings": [{**finding.as_dict(), "cure": self.cure(finding)} for finding in self.findings],
            "warnings": self.warnings,
            "checked": self.checked,
            "skipped": self.skipped,
        }

    def cure(self, finding: Finding) -> str:
        """The finding's cure as a command for this recipe or run."""
        name = f"{Path(self.target) / 'recipe.yaml'}" if self.is_run else self.target
        return finding.cure.replace("RECIPE", name)


def check_up(target: str, overrides: Sequence[str], reporter: Reporter) -> Examination:
    """Examine a recipe by name or path, or the run in a folder.

    Raises:
        UserError: there is no such recipe or run, or the recipe cannot be trained.
    """
    if not Path(target).is_dir():
        return examine_recipe(target, recipes.load(target, overrides).recipe, reporter)
    if overrides:
        raise UserError(f"{overrides[0].partition('=')[0]}: a run is finished, so doctor accepts no overrides for it")
    return examine_run(Run.open(Path(target)), target, reporter)


def examine_recipe(target: str, recipe: Recipe, reporter: Reporter) -> Examination:
    """Examine a recipe: prepare it as `train` does, then run the checks that cost more. Raises UserError as `train`."""
    needed_packages.refuse_missing(recipe)
    prepare_libraries()
    made = Examination(target, is_run=False)
    collector = Collector(reporter)
    prepared = prepare(recipe, collector)
    made.findings += collector.findings
    made.warnings += collector.warnings
    made.checked += WHILE_PREPARING
    made.run(of_recipe(reporter), prepared)
    return made


def examine_run(run: Run, target: str, reporter: Reporter) -> Examination:
    """Examine a finished run from the files in its folder and its base. Raises UserError if the base is missing."""
    prepare_libraries()
    made = Examination(target, is_run=True)
    collector = Collector(reporter)
    made.run(OF_RUN, RunToCheck(run, collector))
    made.warnings += [*collector.findings, *collector.warnings]
    return made


def unread(prepared: Prepared) -> Iterable[Finding]:
    """A remark on columns that the task does not read."""
    for name, columns in prepared.splits.unread.items():
        yield Finding(
            "ignored columns",
            f"data.{name}: the model never sees some columns",
            f"{len(columns)} not read: {listed(list(columns))}",
            f"pefttools train RECIPE data.columns.{prepared.recipe.task.inputs[0]}=COLUMN",
            is_fault=False,
        )


class Collector(Reporter):
    """Keeps warnings for the end, and passes progress on."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.findings: list[Finding] = []
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        if isinstance(message, Finding):
            self.findings.append(message)
        else:
            self.warnings.append(message)

    def bar(self, title: str, total: float | None, unit: str, done: float = 0) -> AbstractContextManager[Bar]:
        return self.reporter.bar(title, total, unit, done)
