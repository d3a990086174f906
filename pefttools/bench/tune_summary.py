"""The summary of a search and of the comparison with the defaults, as plain values for JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pefttools.bench import trial
from pefttools.bench.pool_summary import judged
from pefttools.bench.proposals import ATTEMPTS, Proposal, frozen
from pefttools.bench.recommendation import judge
from pefttools.bench.search import Search, Seeds
from pefttools.bench.space import Point
from pefttools.bench.summary import score_range, scores, seconds

DEFAULTS, TUNED = "the defaults", "tuned"
"""Names of the two methods that are compared."""
FEWEST = 4
"""Finished trials from which on importances are computed."""
ENDED = ("done", "pruned", "failed")

Values = dict[str, Any]


def summarise(
    search: Search, seeds: Seeds, points: Mapping[str, Point], best: Proposal, rows: Mapping[str, int]
) -> Values:
    """The content of tune.json, without what the caller knows about the command.

    Args:
        points: method -> its point; `DEFAULTS`, and `TUNED` unless the defaults are the best.
        rows: split -> number of rows.
    """
    defaults, trials = search.space.defaults, [_row(search, one) for one in search.proposals]
    row = trials[best.number]
    counts = {name: sum(one["status"] == name for one in trials) for name in ENDED}
    importance, reason = importances(search)
    return {
        "recipe": search.space.start, "overrides": [*search.space.overrides], "search": search.space.as_dict(),
        "sampler": search.sampler, "pruner": search.pruner, "metric": defaults.task.primary,
        "lower_is_better": defaults.task.lower_is_better, "rows": dict(rows),
        "counts": {"all": len(trials), **counts}, "failures": failures(search), "refused": dict(search.refused),
        "ended": _why_ended(search), "trials": trials, "best": {**row, "is_default": TUNED not in points},
        "importances": importance, "no_importances": reason,
        **_comparison(seeds, points, rows),
        "seconds": sum(one["seconds"] or 0.0 for one in trials), "versions": trial.versions(),
    }  # fmt: skip


def failures(search: Search) -> list[Values]:
    """The trials that failed: `number`, `point`, `kind` and `reason`."""
    found = []
    for one in search.proposals:
        record = search.records.get(one.digest)
        if record and record["status"] == "failed":
            name = Point(search.space, one.texts).name
            found.append({"number": one.number, "point": name, **_failure(record)})
    return found


def _failure(record: Mapping[str, Any]) -> Values:
    return {"kind": kind_of(record["reason"]), "reason": record["reason"]}


def kind_of(reason: str) -> str:
    """What went wrong, in two words: out of memory, diverged, or an error."""
    text = reason.lower()
    if "memory" in text:
        return "out of memory"
    values = ("nan", "inf", "-inf")
    if "loss has exploded" in text or any(f" is {value};" in text for value in values):
        return "diverged"
    return "error"


def _row(search: Search, one: Proposal) -> Values:
    """A trial of the search."""
    record, point = search.records.get(one.digest), Point(search.space, one.texts)
    row: Values = {
        "number": one.number, "point": point.name, "values": dict(one.texts), "digest": one.digest,
        "status": record["status"] if record else "unfinished", "score": None, "loss": None, "progress": None,
        "seconds": None, "reason": None, "command": point.command(search.space.seed),
    }  # fmt: skip
    if record is None:
        return row
    if record["status"] == "failed":
        return row | {"reason": record["reason"]}
    if record["status"] == "done":
        found = record["validation"]
        return row | {
            "score": found[record["metric"]], "loss": found["loss"], "progress": 1.0, "seconds": seconds(record),
            "trainable": record["params"]["trainable"],
        }  # fmt: skip
    last = record["curve"][-1]
    return row | {
        "score": last["score"], "loss": last["loss"], "progress": last["progress"], "seconds": record["step_seconds"]
    }  # fmt: skip


def _why_ended(search: Search) -> str:
    """Why there were fewer trials than allowed; empty otherwise."""
    if len(search.proposals) >= search.trials:
        return ""
    if search.is_exhausted:
        if search.space.points() is None:
            return f"{ATTEMPTS} draws gave no new point after {len(search.proposals)} trials"
        return f"there are no other points: all {len(search.proposals)} were tried"
    return f"the time was over after {len(search.proposals)} trials"


def _comparison(seeds: Seeds, points: Mapping[str, Point], rows: Mapping[str, int]) -> Values:
    """The defaults and the best point on the test rows, over seeds."""
    records = {name: seeds.of(point) for name, point in points.items()}
    done = {name: [one for one in found if one["status"] == "done"] for name, found in records.items()}
    tables = {name: table for name, found in done.items() if (table := scores(found)) is not None}
    some = next((found[0] for found in done.values() if found), None)
    failed = [
        {"point": name, "seed": job.seed, **_failure(record)}
        for name, point in points.items()
        for job in seeds.jobs
        if job.cell == point and (record := seeds.records.get(job.digest)) and record["status"] == "failed"
    ]
    about: Values = {
        "seeds": [*seeds.seeds], "measured_on": some["measured_on"] if some else None, "seed_failures": failed,
    }  # fmt: skip
    if some is None or not tables:
        return about | {"methods": [], **judged(None), "verdict": "nothing to compare: no seed was trained to its end"}
    lower, trainable = some["lower_is_better"], {name: done[name][0]["params"]["trainable"] for name in tables}
    found = judge(tables, trainable, lower, score_range=score_range(some), incumbent=DEFAULTS)
    values = judged(found)
    if not rows["test"]:
        values["verdict"] += "; there are no test rows, and the validation rows favour the one that they chose"
    methods = [_method(name, done[name], points[name], seeds) for name in tables]
    for row in methods:
        row["low"], row["high"] = found.intervals.get(row["method"], (None, None))
    return about | {"methods": methods, **values}


def _method(name: str, records: Sequence[Mapping[str, Any]], point: Point, seeds: Seeds) -> Values:
    tested = [(one["test"] or one["validation"])[one["metric"]] for one in records]
    return {
        "method": name, "point": Point(point.space, point.texts).name, "mean": statistics.fmean(tested),
        "scores": tested, "seeds": [one["seed"] for one in records],
        "validation": statistics.fmean(one["validation"][one["metric"]] for one in records),
        "trainable": records[0]["params"]["trainable"], "learning_rate": records[0]["learning_rate"],
        "seconds": statistics.median(map(seconds, records)),
        "commands": [job.command for job in seeds.jobs if job.cell == point],
    }  # fmt: skip


def importances(search: Search) -> tuple[dict[str, float], str]:
    """Key -> its share of the variance of the scores (fANOVA, Hutter et al. 2014), or nothing and the reason.

    Keys that do not apply to every trial have none.
    """
    import optuna

    trials = [
        frozen(search.space, one, record)
        for one in search.proposals
        if (record := search.records.get(one.digest)) and record["status"] == "done"
    ]
    if len(trials) < FEWEST:
        return {}, f"only {len(trials)} trials were trained to their ends"
    if len({one.value for one in trials}) == 1:
        return {}, "all trials have the same score"
    study = optuna.create_study()
    study.add_trials(trials)
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    shared = set.intersection(*(set(one.params) for one in trials))
    if not shared:
        return {}, "no key applies to every trial"
    return {name: float(share) for name, share in found.items()}, ""
