"""The search behind `advise`: time the strategies, then plan and run successive halving on validation rows only."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pefttools.bases import loading
from pefttools.bench import budget, trial
from pefttools.bench.halving import Candidate, Halving, planned
from pefttools.bench.preflight import params_of
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
PILOT_ROWS = 256
PILOT_SHARE = 0.25
"""Upper limit of the share of the budget that timing may take."""


@dataclass(frozen=True)
class Config:
    """A candidate with a learning rate."""

    candidate: Candidate
    learning_rate: float

    @property
    def surprise(self) -> float:
        """The logarithmic distance of the learning rate from the strategy's default."""
        return abs(math.log(self.learning_rate / self.candidate.default_lr))

    @property
    def label(self) -> str:
        return f"{self.candidate.label}, lr {self.learning_rate:.2g}"


@dataclass
class Adviser:
    """The state of one search."""

    start: Recipe
    out: Path
    clock: budget.Clock
    reporter: Reporter
    ruled_out: dict[str, str] = field(default_factory=dict)
    threads: int = field(default_factory=trial.cores)
    rows: dict[str, int] = field(default_factory=dict)
    pilot_rows: int = PILOT_ROWS
    left_out: list[Candidate] = field(default_factory=list)
    """Candidates for which the plan has no time."""

    def candidates(self, wanted: Mapping[str, Mapping[str, Any]]) -> list[Candidate]:
        """The candidates that work, timed. Raises UserError when none works or the budget is too small."""
        loading.prepare_libraries()
        splits = load_splits(self.start.data, self.start.task, self.reporter)
        task = class_order.fitted(self.start.task, self.start.base, splits, self.reporter)
        self.rows = {name: len(rows) for name, rows in splits.named().items()}
        self.pilot_rows = min(self.rows["train"], max(PILOT_ROWS, 2 * len(getattr(task, "labels", ()))))
        found = []
        for label, strategy in wanted.items():
            try:
                params = params_of(self.recipe(strategy), task)
            except UserError as error:
                self.ruled_out[label] = "; ".join(error.problems)
                continue
            if params is not None and self._is_there(params["trainable"], strategy, found):
                self.ruled_out[label] = "is the same method as another candidate"
                continue
            if self.clock.spent > PILOT_SHARE * self.clock.budget and found:
                self.ruled_out[label] = "there is no time to try it"
                continue
            if candidate := self._timed(label, strategy, params):
                found.append(candidate)
        if not found:
            raise UserError(*(f"{label}: {reason}" for label, reason in self.ruled_out.items()))
        return found

    def _is_there(self, trainable: int, strategy: Mapping[str, Any], found: Sequence[Candidate]) -> bool:
        return any(c.trainable == trainable and c.strategy["name"] == strategy["name"] for c in found)

    def _timed(self, label: str, strategy: Mapping[str, Any], params: Mapping[str, int] | None) -> Candidate | None:
        """Measure the time of a candidate's steps and of the rest of a trial, by a short run."""
        batch = self.start.train.batch_size
        pilot = self.perform(
            {"strategy": dict(strategy), "data.train_rows": self.pilot_rows, "train.epochs": 1, "seed": 0}
        )
        if pilot is None:
            raise UserError(
                f"--budget: {budget.duration(self.clock.budget)} is too little: one trial of {label} on"
                f" {self.pilot_rows} rows takes longer; allow more time"
            )
        if pilot["status"] == "failed":
            self.ruled_out[label] = pilot["reason"]
            return None
        resolved = self.recipe(strategy)
        steps = max(1, pilot["train"]["steps"])
        step = pilot["train"]["step_seconds"] / steps * (batch / min(batch, self.pilot_rows))
        self.reporter.note(
            f"{label}: {1000 * step:.0f} ms for a step, {budget.duration(pilot['wall'])} for a short trial"
        )
        assert resolved.train.learning_rate is not None
        return Candidate(
            label, strategy, params["trainable"] if params else pilot["params"]["trainable"],
            resolved.train.learning_rate, resolved.strategy.lr_range, step,
            max(0.0, pilot["train"]["seconds"] - pilot["train"]["step_seconds"]), pilot["wall"] - steps * step,
        )  # fmt: skip

    def plan(self, candidates: Sequence[Candidate]) -> Halving:
        """The plan for the rest of the budget. Raises UserError when there is no time for a single trial."""
        steps = math.ceil(self.rows["train"] / self.start.train.batch_size)
        plan = planned(candidates, self.clock.left, self.start.train.epochs, steps)
        if plan is None:
            cheapest = min(candidates, key=lambda c: c.seconds(self.start.train.epochs, steps))
            needed = Halving((cheapest,), 1, 1, 1, self.start.train.epochs / 4, steps).seconds
            raise UserError(
                f"--budget: {budget.duration(self.clock.budget)} is too little: after timing the strategies"
                f" {budget.duration(max(0.0, self.clock.left))} are left, and the fastest training ({cheapest.label})"
                f" takes {budget.duration(needed)}; allow at least"
                f" {budget.duration(1.1 * (self.clock.spent + needed))}"
            )
        for candidate in candidates:
            if candidate not in plan.candidates:
                self.ruled_out[candidate.label] = "is too slow for this budget"
                self.left_out.append(candidate)
        return plan

    def recipe(self, strategy: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> Recipe:
        overrides = words({"strategy": dict(strategy), **(values or {})})
        return recipes.load(str(self.out / START), overrides).recipe

    def perform(self, values: Mapping[str, Any], final: bool = False) -> dict[str, Any] | None:
        """The record of a trial, which is run unless it exists; None when the budget ends first."""
        overrides = words({**values, "train.trackers": []})
        digest = recipes.load(str(self.out / START), overrides).recipe.digest
        order = Order(
            str(self.out / START), tuple(overrides), digest, self.out / "runs", self.out / "trials", final,
            threads=self.threads, score_test=False,
        )  # fmt: skip
        if order.record.is_file():
            return trial.read(order.record)
        try:
            return trial.perform(order, self._watch, 0.5)
        except Interrupted:
            if self.clock.is_over:
                return None
            raise
        finally:
            if not final:  # only the record is needed
                shutil.rmtree(order.folder, ignore_errors=True)

    def _watch(self) -> None:
        if self.clock.is_over:
            raise Interrupted("the budget is spent")

    def run(self, plan: Halving) -> tuple[Halving, dict[Config, list[dict[str, Any]]]]:
        """Run the plan; returns it with the epochs of the finals, and the finalists' records, one for each seed."""
        going = [Config(c, lr) for c in plan.candidates for lr in c.rates(plan.rates)]
        going.sort(key=lambda config: config.surprise)  # if time runs out, every default was tried
        for place, (epochs, number) in enumerate(plan.rungs):
            scored = self._rung(going[:number], epochs, plan)
            following = [*plan.rungs, (0, plan.finalists)][place + 1][1]
            going = self._best(scored, following, is_last=place + 1 == len(plan.rungs), epochs=epochs)
        finalists = going[: plan.finalists]
        plan = self._shortened(finalists[0].candidate, plan)
        return plan, self.finals(finalists, plan)

    def _shortened(self, candidate: Candidate, plan: Halving) -> Halving:
        """The plan with fewer epochs, if trials took longer than planned, so that the best finalist can finish."""
        epochs = plan.epochs
        while candidate.seconds(epochs, plan.steps_per_epoch) > self.clock.left and epochs > plan.epochs / 8:
            epochs /= 2
        if epochs < plan.epochs:
            self.reporter.note(f"trials took longer than planned: the finals train for {epochs:.2g} epochs")
        return replace(plan, epochs=epochs)

    def _rung(self, configs: Sequence[Config], epochs: float, plan: Halving) -> list[tuple[float, float, Config]]:
        """(badness, loss, config) of all that ran, best first; reserves the time for one seed of every finalist."""
        found = []
        for config in configs:
            needed = config.candidate.seconds(epochs, plan.steps_per_epoch) + replace(plan, seeds=1).finals_seconds
            if found and needed > self.clock.left:
                self.reporter.note(f"{config.label}, {epochs:.2g} epochs: left out, because the finals need the time")
                continue
            if record := self.short_trial(config, epochs):
                found.append((*badness(record), config))
        if not found:
            raise UserError("no candidate could be trained: " + "; ".join(self.ruled_out.values()))
        return sorted(found, key=lambda one: one[:2])

    def short_trial(self, config: Config, epochs: float) -> dict[str, Any] | None:
        """The record of a short trial; None if it failed, or if there was no time left for it."""
        record = self.perform(self.values(config, epochs, 0))
        if record and record["status"] == "failed":
            self.ruled_out[config.label] = record["reason"]
            return None
        if record:
            self.reporter.note(f"{config.label}, {epochs:.2g} epochs: {score_text(record)}")
        return record

    def _best(
        self, scored: Sequence[tuple[float, float, Config]], number: int, is_last: bool, epochs: float
    ) -> list[Config]:
        """The best configurations; only the best learning rate of a candidate reaches the finals."""
        best: list[Config] = []
        for _, _, config in scored:
            twice = is_last and any(config.candidate == other.candidate for other in best)
            if len(best) < number and not twice:
                best.append(config)
        going = {config.candidate.label for config in best}
        for badness, _, config in scored:
            label = config.candidate.label
            if label not in going and label not in self.ruled_out:
                self.ruled_out[label] = (
                    f"validation {self.start.task.primary} {abs(badness):.4f} after {epochs:.2g} epochs"
                )
        return best

    def finals(self, configs: Sequence[Config], plan: Halving) -> dict[Config, list[dict[str, Any]]]:
        """The records of as many seeds of each finalist as there is time for."""
        found: dict[Config, list[dict[str, Any]]] = {config: [] for config in configs}
        for seed in range(plan.seeds):
            for config in configs:
                needed = config.candidate.seconds(plan.epochs, plan.steps_per_epoch)
                if needed > self.clock.left and any(found.values()):
                    self.reporter.note(f"{config.label}, seed {seed}: left out, because the budget is spent")
                    continue
                record = self.perform(self.values(config, plan.epochs, seed), final=True)
                if record and record["status"] == "done":
                    found[config].append(record)
                    self.reporter.note(f"{config.label}, seed {seed}, {plan.epochs:.2g} epochs: {score_text(record)}")
                elif record:
                    self.ruled_out[config.label] = record["reason"]
        return {config: records for config, records in found.items() if records}

    def values(self, config: Config, epochs: float, seed: int) -> dict[str, Any]:
        return {
            "strategy": dict(config.candidate.strategy), "train.learning_rate": config.learning_rate,
            "train.epochs": round(epochs, 4), "seed": seed,
        }  # fmt: skip


def score(record: Mapping[str, Any]) -> float:
    """The task's primary metric on validation rows."""
    return record["validation"][record["metric"]]


def badness(record: Mapping[str, Any]) -> tuple[float, float]:
    """A sort key by which better records come first: the primary metric, then the loss, on validation rows."""
    return (1 if record["lower_is_better"] else -1) * score(record), record["validation"]["loss"]


def score_text(record: Mapping[str, Any]) -> str:
    """The score of a record for a message."""
    return f"validation {record['metric']} {score(record):.4f}"
