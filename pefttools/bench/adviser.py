"""What a race of `advise` runs on: its candidates, its trials in processes of their own, and its clock."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pefttools.bases import loading
from pefttools.bench import budget, priors, trial
from pefttools.bench.preflight import params_of
from pefttools.bench.race import SAFETY, Candidate, Entry
from pefttools.bench.suite import words
from pefttools.bench.trial import Order
from pefttools.data.splitting import load_splits
from pefttools.errors import Interrupted, UserError
from pefttools.recipe import recipes
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import Reporter
from pefttools.training import class_order

START = "start.yaml"
"""The recipe that every trial varies."""
FIRST_STEPS = 12
"""Steps of the reference after which its time is estimated."""
RESERVED_SECONDS, RESERVED_SHARE = 3.0, 0.02
"""Time for loading the recommended run and scoring it on test rows, and a share of the budget for it."""
RELATIVE_NOISE = 0.01
"""Standard deviation of an evaluation, as a share of the score, for metrics without bounds."""


@dataclass
class Adviser:
    """The trials of one race, in a folder."""

    start: Recipe
    out: Path
    clock: budget.Clock
    reporter: Reporter
    ruled_out: dict[str, str] = field(default_factory=dict)
    threads: int = field(default_factory=trial.cores)
    rows: dict[str, int] = field(default_factory=dict)
    expectations: str = ""
    """What the table of priors says about the candidates, as a line."""

    @property
    def seconds_left(self) -> float:
        """Time for trials; what comes after them, above all the test rows, has a reserve."""
        return self.clock.left - RESERVED_SECONDS - RESERVED_SHARE * self.clock.budget

    @property
    def num_steps(self) -> int:
        """Steps of every run."""
        settings = self.start.train
        return max(1, round(settings.epochs * math.ceil(self.rows["train"] / settings.batch_size)))

    def candidates(self, wanted: Mapping[str, Mapping[str, Any]]) -> list[Candidate]:
        """The candidates that work with the base and the task, in the order of `priors`.

        Raises:
            UserError: no candidate works.
        """
        loading.prepare_libraries()
        splits = load_splits(self.start.data, self.start.task, self.reporter)
        task = class_order.fitted(self.start.task, self.start.base, splits, self.reporter)
        self.rows = {name: len(rows) for name, rows in splits.named().items()}
        found: list[Candidate] = []
        size = self.rows["train"], num_classes(task)
        wanted = priors.ordered(wanted, *size)
        self.expectations = priors.told(wanted, *size)
        for label, strategy in wanted.items():
            try:
                recipe = self.recipe(strategy)
                params = params_of(recipe, task)
            except UserError as error:
                self.ruled_out[label] = "; ".join(error.problems)
                continue
            trainable = params["trainable"] if params else 0
            if params and any(c.trainable == trainable and c.strategy["name"] == strategy["name"] for c in found):
                self.ruled_out[label] = "is the same method as another candidate"
                continue
            assert recipe.train.learning_rate is not None
            found.append(Candidate(label, strategy, trainable, recipe.train.learning_rate, recipe.strategy.lr_range))
        if not found:
            raise UserError(*(f"{label}: {reason}" for label, reason in self.ruled_out.items()))
        return found

    def check_budget(self, reference: Candidate) -> None:
        """Raises UserError when the time is too short for one run of the reference, and says how long that takes."""
        entry, steps = Entry(reference, reference.default_lr), min(FIRST_STEPS, self.num_steps)
        record = self._perform(entry, 0, steps)
        if record is None:
            raise UserError(
                f"--budget: {budget.duration(self.clock.budget)} is too little: {reference.label} did not take {steps}"
                f" steps of {self.num_steps} in that time; allow more"
            )
        if record["status"] == "failed":
            raise UserError(f"{reference.label}: {record['reason']}")
        if record["status"] == "done":
            return
        needed = SAFETY * (self.num_steps - steps) * record["step_seconds"] / max(1, steps)
        self.reporter.note(
            f"{reference.label}: {1000 * record['step_seconds'] / steps:.0f} ms a step, about"
            f" {budget.duration(needed)} for {self.num_steps} steps"
        )
        if needed > self.seconds_left:
            raise UserError(
                f"--budget: {budget.duration(self.clock.budget)} is too little: one run of {reference.label} takes"
                f" about {budget.duration(needed)}; allow at least {budget.duration(1.2 * (self.clock.spent + needed))}"
            )

    def train(self, entry: Entry, progress: float, seed: int = 0) -> bool:
        """Train an entry until this progress; see `race.Runner`."""
        before = self.clock.spent
        stop_after = None if progress >= 1 else max(1, round(progress * self.num_steps))
        record = self._perform(entry, seed, stop_after)
        if record is None:
            return False
        if record["status"] == "failed":
            entry.dropped = record["reason"]
            return False
        if seed == 0:
            curve = record["curve"] or [{"progress": 1.0, "score": validation_score(record)}]  # nothing was trained
            entry.curve = [(one["progress"], self.badness(one["score"])) for one in curve]
            # a run that an earlier call of the command trained takes no time now
            entry.seconds = max(entry.seconds + self.clock.spent - before, record["wall"])
        if record["status"] == "done":
            entry.records.append(record)
        at = f"{entry.progress:.0%} of the steps" if seed == 0 else f"seed {seed}"
        score = record["curve"][-1]["score"] if record["status"] == "paused" else validation_score(record)
        self.reporter.note(f"{entry.label}, {at}: validation {record['metric']} {score:.4f}")
        return True

    def badness(self, score: float) -> float:
        """A score as a value that is better when it is lower."""
        task = self.start.task
        if task.lower_is_better:
            return score
        return (task.score_range[1] if task.score_range else 0.0) - score

    def noise(self, badness: float) -> float:
        """The standard deviation of an evaluation, from the number of validation rows."""
        if self.start.task.score_range is None:
            return RELATIVE_NOISE * abs(badness)
        low, high = self.start.task.score_range
        share = min(1.0, max(0.0, badness / (high - low)))
        number = self.rows["validation"]
        share = (share * number + 1) / (number + 2)  # no error at all is not certainty
        return (high - low) * math.sqrt(share * (1 - share) / number)

    def recipe(self, strategy: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> Recipe:
        overrides = words({"strategy": dict(strategy), **(values or {})})
        return recipes.load(str(self.out / START), overrides).recipe

    def values(self, entry: Entry, seed: int) -> dict[str, Any]:
        """The recipe keys of an entry's run."""
        return {
            "strategy": dict(entry.candidate.strategy),
            "train.learning_rate": entry.learning_rate,
            "seed": seed,
        }

    def _perform(self, entry: Entry, seed: int, stop_after: int | None) -> dict[str, Any] | None:
        """The record of a run, which goes on where it paused; None when the budget ends first."""
        overrides = words({**self.values(entry, seed), "train.trackers": []})
        digest = recipes.load(str(self.out / START), overrides).recipe.digest
        order = Order(
            str(self.out / START), tuple(overrides), digest, self.out / "runs", self.out / "trials", final=True,
            threads=self.threads, score_test=False, stop_after=stop_after,
        )  # fmt: skip
        if order.record.is_file():
            record = trial.read(order.record)
            if record["status"] != "paused" or (stop_after is not None and record["stopped_after"] >= stop_after):
                return record
        try:
            return trial.perform(order, self._watch, 0.5)
        except Interrupted:
            if self.seconds_left < 0:
                return None
            raise

    def _watch(self) -> None:
        if self.seconds_left < 0:
            raise Interrupted("the budget is spent")

    def remove_runs(self, keep: Sequence[str]) -> None:
        """Remove the run folders, except those of these digests and those with a traceback."""
        for folder in (self.out / "runs").glob("*"):
            if folder.name not in {digest[:16] for digest in keep} and not (folder / "error.txt").is_file():
                shutil.rmtree(folder, ignore_errors=True)


def num_classes(task: Any) -> int | None:
    """The number of classes or tags of a task that is fitted to its rows; None where it has none."""
    labels = task.config_values().get("id2label", {})
    return len(labels) if len(labels) > 1 else None


def validation_score(record: Mapping[str, Any]) -> float:
    """The task's primary metric on validation rows."""
    return record["validation"][record["metric"]]
