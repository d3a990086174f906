"""The summary of a sweep's records for the table, the plots and the report, as plain values for JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pefttools.bench import stats
from pefttools.bench.pool_summary import judged, pooled
from pefttools.bench.pooling import ScoredSet
from pefttools.bench.recommendation import Judgement, judge
from pefttools.errors import UserError

if TYPE_CHECKING:
    from pefttools.bench.suite import Cell
    from pefttools.bench.sweep import Sweep

Summary = dict[str, Any]


def summarise(sweep: Sweep) -> Summary:
    """`suite`, `problems` (each with its `methods`, best first, and their `comparisons`), `versions`, `hardware`.

    `pools` compare the methods over all test sets, for each setting of the other axes.
    """
    cells: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        cells.setdefault(cell.problem, []).append(cell)
    sets = {name: scored(sweep, name, of) for name, of in cells.items()}
    problems = {name: problem(sweep, sets[name], of) for name, of in cells.items()}
    settings: dict[str, list[str]] = {}
    for name, of in cells.items():
        settings.setdefault(of[0].setting, []).append(name)
    done = [record for record in sweep.records.values() if record["status"] == "done"]
    return {
        "suite": sweep.suite.name,
        "description": sweep.suite.description,
        "digest": sweep.suite.digest,
        "command": sweep.ran_by or sweep.command or f"pefttools bench {sweep.suite.name}",
        "seeds": list(sweep.suite.seeds),
        "learning_rates": sweep.suite.tuning.trials,
        "trials": {"all": sweep.total, "done": sweep.done},
        "pools": [
            values
            for setting, names in settings.items()
            if (values := pooled(setting, [sets[n] for n in names], [problems[n] for n in names], sweep.suite.margin))
        ],
        "problems": [*problems.values()],
        "versions": done[0]["versions"] if done else {},
        "hardware": done[0]["hardware"] if done else {},
    }


def scored(sweep: Sweep, name: str, cells: Sequence[Cell]) -> ScoredSet:
    """The test scores of one problem's methods."""
    finals = {cell.method: _finals(sweep, cell) for cell in cells}
    some = next((records[0] for records in finals.values() if records), None)
    tables = {method: table for method, records in finals.items() if (table := scores(records)) is not None}
    trainable = {method: records[0]["params"]["trainable"] for method, records in finals.items() if records}
    _refuse_other_rows(name, finals)
    lower = bool(some and some["lower_is_better"])
    return ScoredSet(name, some["metric"] if some else "", tables, trainable, score_range(some), lower)


def problem(sweep: Sweep, on: ScoredSet, cells: Sequence[Cell]) -> dict[str, Any]:
    """The summary of one problem: its methods, compared with each other on the same rows."""
    finals = {cell.method: _finals(sweep, cell) for cell in cells}
    some = next((records[0] for records in finals.values() if records), None)
    margin, lower = sweep.suite.margin, on.lower_is_better
    found = judge(on.tables, on.trainable, lower, margin, on.score_range) if on.tables else None
    methods = [method_row(sweep, cell, finals[cell.method], found) for cell in cells]
    order = {"done": 0, "unfinished": 1, "failed": 2}
    methods.sort(key=lambda row: (order[row["status"]], row["tier"] or 0, _rank(row, lower)))
    return {
        "name": on.name,
        "metric": some["metric"] if some else None,
        "lower_is_better": lower,
        "measured_on": some["measured_on"] if some else None,
        "rows": some["data"]["rows"] if some else None,
        "before": some["before"].get(some["metric"]) if some else None,
        "majority": some["before"]["majority"].get(some["metric"]) if some else None,
        "unit": some.get("unit") if some else None,
        "methods": methods,
        **judged(found),
    }


def score_range(record: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """The bounds of a record's metric; None where it has none."""
    if record is None:
        return None
    low, high = record["score_range"] or (None, None)
    return None if low is None or high is None else (low, high)


def method_row(
    sweep: Sweep, cell: Cell, records: Sequence[Mapping[str, Any]], found: Judgement | None
) -> dict[str, Any]:
    """The summary of a method on one problem: scores as means over seeds, costs as medians."""
    jobs = sweep.finals(cell)
    ended = [sweep.records.get(job.digest) for job in (*sweep.tried(cell), *jobs)]
    row: dict[str, Any] = {
        "method": cell.method,
        "labels": dict(cell.labels),
        "tier": found.tiers.get(cell.method) if found else None,
        "curve": _curve(sweep, cell),
        "command": jobs[0].command if jobs else cell.command(sweep.suite.seeds[0], None),
        "commands": [job.command for job in jobs],
        "failures": [r["reason"] for r in ended if r and r["status"] == "failed"],
    }
    finished = len(records) == len(sweep.suite.seeds)
    if not records:
        lost = row["failures"] and all(ended)
        return {
            **row,
            "status": "failed" if lost else "unfinished",
            "reason": "; ".join(dict.fromkeys(row["failures"])),
        }
    tested = _tested(records)
    mean = statistics.fmean(tested)
    low, high = found.intervals.get(cell.method, (None, None)) if found else (None, None)
    first = records[0]
    return {
        **row,
        "status": "done" if finished or row["failures"] else "unfinished",
        "reason": "; ".join(dict.fromkeys(row["failures"])),
        "learning_rate": first["learning_rate"],
        "seeds": [record["seed"] for record in records],
        "scores": tested,
        "mean": mean,
        "low": None if low is None else min(low, mean),  # the mean of pseudo-values is only close to the metric
        "high": None if high is None else max(high, mean),
        "validation": statistics.fmean(record["validation"][record["metric"]] for record in records),
        "params": first["params"],
        "merges": first["merges"],
        "adapter_bytes": first["files"]["adapter_bytes"],
        "seconds": statistics.median(map(seconds, records)),
        "tokens_per_second": statistics.median(map(_tokens_per_second, records)),
        "peak_bytes": statistics.median(r["train"]["peak_bytes"] for r in records),
        **_changes(records),
    }


def seconds(record: Mapping[str, Any]) -> float:
    """How long the training would take alone on the machine: on a processor its time there, shared by the threads."""
    used, hardware = record["train"].get("cpu_seconds"), record["hardware"]
    return used / hardware["threads"] if used and hardware.get("kind") == "cpu" else record["train"]["seconds"]


def _tokens_per_second(record: Mapping[str, Any]) -> float:
    alone = seconds(record)
    return record["train"]["tokens_per_second"] * (record["train"]["seconds"] / alone if alone else 1.0)


def scores(records: Sequence[Mapping[str, Any]]) -> stats.Array | None:
    """Every seed's score on every test row or block of rows, (seeds, units); None where there are no such scores."""
    rows = [record["units"] for record in records if record.get("units")]
    return np.asarray(rows, dtype=np.float64) if rows and len({len(row) for row in rows}) == 1 else None


def _refuse_other_rows(name: str, finals: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Raises UserError if trials of one problem have scores on different numbers of test rows."""
    numbers: dict[int, str] = {}
    for method, records in finals.items():
        for record in records:
            numbers.setdefault(len(record["units"]), f"{method} seed {record['seed']}")
    if len(numbers) > 1:
        shown = ", ".join(f"{of} has {number}" for number, of in sorted(numbers.items())[:3])
        raise UserError(
            f"results of the suite: {name}: trials have scores on different numbers of test rows ({shown}), so they"
            " cannot be compared; remove the records of one of them and run the suite again"
        )


def _finals(sweep: Sweep, cell: Cell) -> list[dict[str, Any]]:
    found = [sweep.records.get(job.digest) for job in sweep.finals(cell)]
    return [record for record in found if record and record["status"] == "done" and record["final"]]


def _tested(records: Sequence[Mapping[str, Any]]) -> list[float]:
    return [(record["test"] or record["validation"])[record["metric"]] for record in records]


def _rank(row: Mapping[str, Any], lower: bool) -> float:
    return row.get("mean", 0.0) * (1 if lower else -1)


def _curve(sweep: Sweep, cell: Cell) -> list[dict[str, Any]]:
    """Validation score by learning rate; None where the trial failed."""
    points = []
    for job in sweep.tried(cell):
        if record := sweep.records.get(job.digest):
            score = record["validation"][record["metric"]] if record["status"] == "done" else None
            points.append({"learning_rate": job.learning_rate, "score": score})
    return points


def _changes(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The change of the weights and forgetting, as means over seeds."""
    moves = [r["moved"] for r in records if "relative" in (r.get("moved") or {})]
    losses = [r["forgetting"] for r in records if "after" in (r.get("forgetting") or {})]
    ranks = [move["effective_rank"] for move in moves if move["effective_rank"] is not None]
    reasons = [r["forgetting"]["reason"] for r in records if "reason" in (r.get("forgetting") or {})]
    return {
        "moved": statistics.fmean(move["relative"] for move in moves) if moves else None,
        "moved_blocks": [statistics.fmean(b) for b in zip(*(move["blocks"] for move in moves), strict=True)],
        "effective_rank": statistics.fmean(ranks) if ranks else None,
        "forgetting": {k: statistics.fmean(loss[k] for loss in losses) for k in ("before", "after")}
        if losses
        else None,
        "no_forgetting": reasons[0] if reasons else None,
    }
