"""Recommend a strategy for a model and rows within a budget of time.

LoRA with its defaults is trained to its end first: the answer to beat. The other `CANDIDATES` that work race against it
(see `race`), all on the same rows, steps and schedule, by validation rows only. The finalists are compared row by row
over equally many seeds; a smaller one is recommended if it is shown to be as good within a margin, else the best mean.
It is written as a recipe, and scored on the test rows once.

    OUT/start.yaml  recipe.yaml  recommended/  advice.json  trials/  runs/
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pefttools import atomic
from pefttools.bench import budget, trial
from pefttools.bench.adviser import START, Adviser, validation_score
from pefttools.bench.race import Entry, Race
from pefttools.bench.recommendation import MARGIN, Judgement, judge
from pefttools.bench.summary import judged, scores
from pefttools.data.splitting import load_splits
from pefttools.errors import UserError
from pefttools.inference.scoring import evaluate_run
from pefttools.recipe import recipes
from pefttools.recipe.needed_packages import refuse_missing
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import SILENT, Reporter
from pefttools.training.run import MARK, write_recipe

CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    "lora": {"name": "lora"},
    "full": {"name": "full"},
    "last 2 blocks": {"name": "top_layers", "layers": 2},
    "adapter": {"name": "adapter"},
    "bitfit": {"name": "bitfit"},
    "low_rank": {"name": "low_rank"},
    "ia3": {"name": "ia3"},
    "head": {"name": "top_layers"},
}
"""The default candidates; LoRA is the answer to beat, and `priors` decides the order of the others."""
EPOCHS = ((1000, 10.0), (10000, 5.0), (math.inf, 3.0))
"""(upper limit of training rows, epochs)."""
EVALUATIONS = 8
"""Evaluations of a run, at least; learning curves are made of them."""


def advise(
    base: str, task: str, data: str, seconds: float, out: Path, overrides: Sequence[str] = (),
    strategies: Sequence[str] = (), reporter: Reporter = SILENT, margin: float = MARGIN,
) -> dict[str, Any]:  # fmt: skip
    """Recommend a recipe.

    Args:
        overrides: overrides of recipe keys for every trial (`data.columns.text=question`).
        strategies: only these candidates, by name in `CANDIDATES` or in the registry; all `CANDIDATES` by default.
        margin: a smaller method is recommended if it is shown to be at most this much worse.

    Raises:
        UserError: the margin is not above 0; the data, the base or the task do not work; or the budget is too small
            for one trial.
        Interrupted: the user stopped it; the same command continues.
    """
    if not margin > 0:
        raise UserError(f"--margin: must be above 0, not {margin:g}; 0.01 is one point")
    clock = budget.Clock(seconds)
    out = out.absolute()
    refuse_missing(recipes.from_values(_values(base, task, data), overrides).recipe)
    start = _started(base, task, data, out, overrides)
    adviser = Adviser(start, out, clock, reporter)
    candidates = adviser.candidates(_wanted(strategies))
    if adviser.expectations:
        reporter.note(f"against LoRA, on sets like this (this decides the order only): {adviser.expectations}")
    adviser.check_budget(candidates[0])
    race = Race(adviser, candidates)
    return _advice(adviser, race, race.run(), margin)


def _wanted(names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    from pefttools.strategies import strategies

    if not names:
        return dict(CANDIDATES)
    for name in names:
        if name not in CANDIDATES:
            strategies.get(name)
    return {name: CANDIDATES.get(name, {"name": name}) for name in names}


def _values(base: str, task: str, data: str) -> dict[str, Any]:
    return {"name": "advise", "base": base, "data": {"train": data}, "task": task, "strategy": "lora"}


def _started(base: str, task: str, data: str, out: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe that every trial varies, written to the folder."""
    file = out / START
    values = _values(base, task, data)
    atomic.refuse_unless_writable(out)
    resolved = recipes.from_values(values, overrides).recipe
    given = {word.partition("=")[0] for word in overrides}
    more = []
    if "train.epochs" not in given:
        more.append(f"train.epochs={_epochs(len(load_splits(resolved.data, resolved.task).train))}")
        resolved = recipes.from_values(values, [*overrides, *more]).recipe
    if "train.evaluate_every" not in given:
        more.append(f"train.evaluate_every={min(1.0, resolved.train.epochs / EVALUATIONS):.4g}")
        resolved = recipes.from_values(values, [*overrides, *more]).recipe
    text = resolved.as_dict()
    for key in ("learning_rate", "warmup", "head_lr_scale"):  # each strategy's own
        del text["train"][key]
    body = f"{MARK}\n# pefttools advise\n" + yaml.safe_dump(text, sort_keys=False, allow_unicode=True)
    if file.is_file() and file.read_text("utf-8") != body:
        raise UserError(f"--out: {out} contains advice for other settings; choose another folder")
    if not file.is_file() and out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out: {out} is not empty; choose another folder")
    atomic.write_text(file, body)
    return resolved


def _epochs(rows: int) -> float:
    return next(epochs for most, epochs in EPOCHS if rows <= most)


def _advice(adviser: Adviser, race: Race, finalists: Sequence[Entry], margin: float) -> dict[str, Any]:
    """Write the recommended recipe, and score it on the test rows; returns the content of advice.json."""
    if not finalists:
        reason = race.reference.dropped or "the time was over; run the same command again to continue"
        raise UserError(f"--budget: {race.reference.label} has no result: {reason}")
    tables = {one.label: table for one in finalists if (table := scores(one.records)) is not None}
    task = adviser.start.task
    trainable = {one.label: one.candidate.trainable for one in finalists}
    judgement = judge(tables, trainable, task.lower_is_better, margin, task.score_range)
    chosen = judgement.recommendation.method
    ranked = sorted(finalists, key=lambda one: (one.label != chosen, adviser.badness(judgement.means[one.label])))
    best, first = ranked[0], ranked[0].records[0]
    recipe = adviser.recipe(best.candidate.strategy, adviser.values(best, first["seed"]))
    title = f"# Recommended by pefttools advise: {best.label}"
    write_recipe(adviser.out / "recipe.yaml", recipe.model_copy(update={"name": "recommended"}), title)
    shutil.rmtree(adviser.out / "recommended", ignore_errors=True)
    shutil.copytree(adviser.out / "runs" / first["digest"][:16], adviser.out / "recommended")
    tested = evaluate_run(adviser.out / "recommended", split="test") if adviser.rows["test"] else None
    adviser.remove_runs([record["digest"] for one in race.finished for record in one.records])
    values = {
        **judged(judgement),
        "recommended": _finalist(best, judgement), "test": tested, "recipe": str(adviser.out / "recipe.yaml"),
        "run": str(adviser.out / "recommended"), "runner_up": _finalist(ranked[1], judgement) if ranked[1:] else None,
        "finalists": [_finalist(one, judgement) for one in ranked], "regret": _regret(judgement),
        "priors": adviser.expectations, "ruled_out": adviser.ruled_out | _others(race, finalists),
        "metric": task.primary, "rows": adviser.rows,
        "steps": adviser.num_steps, "budget_seconds": adviser.clock.budget, "spent_seconds": adviser.clock.spent,
        "versions": trial.versions(),
    }  # fmt: skip
    atomic.write_json(adviser.out / "advice.json", values)
    return values


def _regret(judgement: Judgement) -> float | None:
    """By how much another finalist may be better, at 95%; None on one seed."""
    return judgement.largest_regret if judgement.recommendation.is_supported else None


def _others(race: Race, finalists: Sequence[Entry]) -> dict[str, str]:
    """Label -> why an entry is no finalist."""
    found = {}
    for entry in race.entries:
        if entry in finalists:
            continue
        if entry.dropped:
            found[entry.label] = entry.dropped
        else:
            found[entry.label] = f"finished; validation {validation_score(entry.records[0]):.4f} on one seed"
    return found


def _finalist(entry: Entry, judgement: Judgement) -> dict[str, Any]:
    low, high = judgement.intervals.get(entry.label, (None, None))
    return {
        "label": entry.label, "strategy": dict(entry.candidate.strategy), "learning_rate": entry.learning_rate,
        "trainable": entry.candidate.trainable, "seeds": len(entry.records),
        "validation": statistics.fmean(validation_score(record) for record in entry.records), "low": low, "high": high,
        "seconds": statistics.median(record["train"]["seconds"] for record in entry.records),
        "peak_bytes": max(record["train"]["peak_bytes"] for record in entry.records),
    }  # fmt: skip
