"""Recommend a strategy for a model and rows within a budget of time.

The `CANDIDATES` that work are timed on a few steps; then successive halving is planned, reported and run. All choices
are made on validation rows only. The finalists are compared row by row over their seeds. The one with the best mean is
recommended, written as a recipe, and scored on the test rows once; smaller ones that may be as good are listed.

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
from pefttools.bench.adviser import START, Adviser, Config, score
from pefttools.bench.challengers import challenged
from pefttools.bench.halving import Halving
from pefttools.bench.recommendation import MARGIN, Judgement, judge
from pefttools.bench.summary import judged, scores
from pefttools.data.splitting import load_splits
from pefttools.errors import UserError
from pefttools.inference.scoring import evaluate_run
from pefttools.recipe import recipes
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import SILENT, Reporter
from pefttools.training.run import MARK, write_recipe

CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    "head": {"name": "top_layers"},
    "last 2 blocks": {"name": "top_layers", "layers": 2},
    "bitfit": {"name": "bitfit"},
    "lora": {"name": "lora"},
    "adapter": {"name": "adapter"},
    "full": {"name": "full"},
    "low_rank": {"name": "low_rank"},
    "ia3": {"name": "ia3"},
}
"""The default candidates."""
EPOCHS = ((1000, 10.0), (10000, 5.0), (math.inf, 3.0))
"""(upper limit of training rows, epochs)."""


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
    start = _started(base, task, data, out, overrides)
    adviser = Adviser(start, out, clock, reporter)
    plan = adviser.plan(adviser.candidates(_wanted(strategies)))
    reporter.note(
        f"plan for about {budget.duration(plan.seconds)} of the {budget.duration(clock.left)} left: "
        + "; ".join(plan.sentences)
    )
    plan, finals = adviser.run(plan)
    return _advice(adviser, plan, challenged(adviser, plan, finals), margin)


def _wanted(names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    from pefttools.strategies import strategies

    if not names:
        return dict(CANDIDATES)
    for name in names:
        if name not in CANDIDATES:
            strategies.get(name)
    return {name: CANDIDATES.get(name, {"name": name}) for name in names}


def _started(base: str, task: str, data: str, out: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe that every trial varies, written to the folder."""
    file = out / START
    values: dict[str, Any] = {"name": "advise", "base": base, "data": {"train": data}, "task": task, "strategy": "lora"}
    atomic.refuse_unless_writable(out)
    resolved = recipes.from_values(values, overrides).recipe
    if not any(word.startswith("train.epochs") for word in overrides):
        rows = len(load_splits(resolved.data, resolved.task).train)
        resolved = recipes.from_values(values, [*overrides, f"train.epochs={_epochs(rows)}"]).recipe
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


def _advice(
    adviser: Adviser, plan: Halving, finals: Mapping[Config, list[dict[str, Any]]], margin: float
) -> dict[str, Any]:
    """Write the recommended recipe, and score it on the test rows; returns the content of advice.json."""
    if not finals:
        raise UserError(
            "--budget: the time was over before one finalist was trained; allow more time,"
            " or run the same command again to continue"
        )
    tables = {c.label: t for c, records in finals.items() if (t := scores(records)) is not None}
    task = adviser.start.task
    trainable = {c.label: c.candidate.trainable for c in finals}
    judgement = judge(tables, trainable, task.lower_is_better, margin, task.score_range)
    advice, tiers, means = judgement.recommendation, judgement.tiers, judgement.means
    sign = 1 if task.lower_is_better else -1
    ranked = sorted(finals, key=lambda c: (c.label != advice.method, tiers[c.label], sign * means[c.label]))
    best, others = ranked[0], ranked[1:]
    first = finals[best][0]
    chosen = adviser.recipe(best.candidate.strategy, adviser.values(best, plan.epochs, first["seed"]))
    title = f"# Recommended by pefttools advise: {best.label}"
    write_recipe(adviser.out / "recipe.yaml", chosen.model_copy(update={"name": "recommended"}), title)
    shutil.rmtree(adviser.out / "recommended", ignore_errors=True)
    shutil.copytree(adviser.out / "runs" / first["digest"][:16], adviser.out / "recommended")
    tested = evaluate_run(adviser.out / "recommended") if adviser.rows["test"] else None
    values = {
        **judged(judgement),
        "recommended": _finalist(best, finals[best], judgement),
        "test": tested, "recipe": str(adviser.out / "recipe.yaml"), "run": str(adviser.out / "recommended"),
        "runner_up": _finalist(others[0], finals[others[0]], judgement) if others else None,
        "finalists": [_finalist(c, finals[c], judgement) for c in ranked],
        "ruled_out": adviser.ruled_out, "plan": plan.sentences, "metric": adviser.start.task.primary,
        "rows": adviser.rows,
        "budget_seconds": adviser.clock.budget, "spent_seconds": adviser.clock.spent, "versions": trial.versions(),
    }  # fmt: skip
    atomic.write_json(adviser.out / "advice.json", values)
    return values


def _finalist(config: Config, records: Sequence[Mapping[str, Any]], judgement: Judgement) -> dict[str, Any]:
    mean = statistics.fmean(score(record) for record in records)
    low, high = judgement.intervals.get(config.label, (None, None))
    return {
        "label": config.label, "strategy": dict(config.candidate.strategy), "learning_rate": config.learning_rate,
        "trainable": config.candidate.trainable, "seeds": len(records), "validation": mean,
        "low": low, "high": high,
        "seconds": statistics.median(record["train"]["seconds"] for record in records),
        "peak_bytes": max(record["train"]["peak_bytes"] for record in records),
    }  # fmt: skip
