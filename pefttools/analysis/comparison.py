"""Runs of one task side by side, on the test rows that all were scored on.

Each pair has a paired test of the primary metric (bootstrap over rows, `bench.stats`) and, where predictions are right
or wrong, McNemar's exact test. Both judge these trained models on new rows like these; they do not know how much the
scores would change with another seed, which is what `pefttools bench` measures.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pefttools.analysis import intervals, sentences
from pefttools.analysis.curves import curve
from pefttools.analysis.mistakes import has_class_targets
from pefttools.analysis.scored_run import ScoredRun
from pefttools.analysis.shared_rows import on_shared_rows, open_runs
from pefttools.bench import stats
from pefttools.bench.row_texts import input_text, shown
from pefttools.bench.units import paired
from pefttools.reporter import SILENT, Reporter

LISTED = 100
"""Upper limit of rows that are listed for one pair and kind."""
MANY = 6
"""With more pairs than this, sentences and rows are shown only for pairs with the best run."""
PER_CLASS = {"per_class": "class", "entities": "entity type", "per_tag": "tag"}
"""The metrics that are a table -> what its rows are; the first that a task has is shown."""


def compare(paths: Sequence[Path], reporter: Reporter = SILENT, texts: bool = True) -> dict[str, Any]:
    """The comparison as plain values for JSON: `runs`, `settings` that differ, `pairs`, `classes` and the rows.

    Args:
        texts: whether rows have their texts; without them they have ids only.

    Raises:
        UserError: a run cannot be read, or the runs cannot be compared.
    """
    own = open_runs(paths, reporter)
    runs, notes = on_shared_rows(own)
    task, first = runs[0].task, runs[0].scored
    common = [name for name in first.scores if all(name in one.scored.scores for one in runs)]
    if left := sorted({name for one in runs for name in one.scored.scores} - {*common}):
        notes.append(f"not compared, because not every run has them: {', '.join(left)}")
    for note in notes:
        reporter.warn(note)
    entries = []
    with reporter.bar("intervals of the scores", len(runs), "runs") as bar:
        for one, before in zip(runs, own, strict=True):
            entries.append(_run(one, before, common))
            bar.advance(1)
    values = {
        "task": task.name,
        "metric": task.primary,
        "metrics": common,
        "lower_is_better": task.lower_is_better,
        "in_points": task.score_range == (0.0, 1.0),
        "rows": len(first.rows),
        "notes": notes,
        "runs": entries,
        "settings": _settings(runs),
        "pairs": _pairs(runs, texts),
        "classes": class_tables(runs),
        "same_hardware": len({_machine(one.result) for one in runs}) == 1,
    }
    best = (min if task.lower_is_better else max)(runs, key=lambda one: one.scored.primary).name
    for pair in values["pairs"]:
        pair["verdict"] = sentences.of_pair(pair, values)
        pair["is_shown"] = len(values["pairs"]) <= MANY or best in (pair["first"], pair["second"])
    return values


def _run(shared: ScoredRun, own: ScoredRun, names: Sequence[str]) -> dict[str, Any]:
    result, found = shared.result, intervals.of_metrics(shared.scored, names)
    train = result["train"]
    return {
        "name": shared.name,
        "folder": str(shared.run.path),
        "recipe": result["recipe"],
        "strategy": result["strategy"],
        "seed": result["seed"],
        "scored_on": shared.scored_on,
        "own_rows": len(own.scored.rows),
        "own_score": own.scored.primary,
        "scores": {n: {"value": shared.scored.scores[n], **_bounds(found[n])} for n in names},
        "params": result["params"],
        "seconds": train.get("seconds"),
        "peak_bytes": train.get("peak_bytes"),
        "tokens_per_second": train.get("tokens_per_second"),
        "epochs": train.get("epochs"),
        "steps": train.get("steps"),
        "adapter_bytes": result["files"]["adapter_bytes"],
        "device": result.get("hardware", {}).get("device"),
        "curve": curve(shared.run, shared.task.primary),
    }


def _bounds(interval: intervals.Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"low": low, "high": high}


def _machine(result: Mapping[str, Any]) -> tuple[Any, Any]:
    hardware = result.get("hardware", {})
    return hardware.get("device"), hardware.get("threads")


def _settings(runs: Sequence[ScoredRun]) -> dict[str, dict[str, Any]]:
    """Setting -> run -> its value, for the settings that differ; a run without the setting has no value."""
    values = {one.name: one.run.recipe().settings() for one in runs}
    values = {one.name: {**values[one.name], **_facts(one)} for one in runs}
    found = {}
    for key in dict.fromkeys(key for settings in values.values() for key in settings):
        of_runs = {name: settings[key] for name, settings in values.items() if key in settings}
        if len(of_runs) < len(runs) or any(value != next(iter(of_runs.values())) for value in of_runs.values()):
            found[key] = of_runs
    if "base.source" in found:  # another base has other weights, which is no news
        found.pop("base sha256", None)
    sections = list(type(runs[0].run.recipe()).model_fields)
    return dict(sorted(found.items(), key=lambda one: _place(sections, one[0])))


def _place(sections: Sequence[str], key: str) -> int:
    section = re.split(r"[. ]", key)[0]
    return sections.index(section) if section in sections else len(sections)


def _facts(run: ScoredRun) -> dict[str, Any]:
    """What is not a setting but changes the result: the base's weights, the rows and the precision."""
    result = run.result
    return {
        "base sha256": result["base"].get("sha256", "")[:12],
        "data digest": result["data"].get("digest", "")[:12],
        "trained in": result["train"].get("precision"),
    }


def _pairs(runs: Sequence[ScoredRun], texts: bool) -> list[dict[str, Any]]:
    """The tests of every pair of runs, and the rows on which it disagrees."""
    task = runs[0].task
    scored = {r.name: (r.scored.predictions, r.scored.references, r.scored.primary) for r in runs}
    units, by_row = paired(task, scored)
    tables = {name: np.array([values]) for name, values in units.items()}
    differences = stats.differences(tables) if len(next(iter(units.values()))) > 1 else {}
    tests = {(c.first, c.second): c for c in stats.compare_differences(differences)}
    right = {one.name: one.scored.right() for one in runs}
    names = list(itertools.combinations([one.name for one in runs], 2))
    exact = {pair: _mcnemar(right[pair[0]], right[pair[1]]) for pair in names}
    corrected = iter(stats.holm([found["p"] for found in exact.values() if found]))
    by_name = {one.name: one for one in runs}
    pairs = []
    for pair in names:
        first, second = (by_name[name] for name in pair)
        value = first.scored.primary - second.scored.primary
        test, mcnemar = tests.get(pair), exact[pair]
        half = (test.high - test.low) / 2 if test else None
        pairs.append(
            {
                "first": pair[0], "second": pair[1], "difference": value,
                "low": None if half is None else value - half, "high": None if half is None else value + half,
                "p": test.p if test else None, "p_holm": test.p_holm if test else None,
                "differs": bool(test and test.differs), "unit": "row" if by_row else "block of rows",
                "mcnemar": {**mcnemar, "p_holm": next(corrected)} if mcnemar else None,
                **_disagreements(first, second, runs, right, texts),
            }
        )  # fmt: skip
    return pairs


def _mcnemar(first: Sequence[bool | None], second: Sequence[bool | None]) -> dict[str, Any] | None:
    """The numbers of rows that only one run predicts correctly, and p; None if rows are not right or wrong."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return None
    only_first, only_second = sum(a and not b for a, b in both), sum(b and not a for a, b in both)
    p = stats.exact_mcnemar(only_first, only_second)
    return {"only_first": only_first, "only_second": only_second, "rows": len(both), "p": p}


def _disagreements(
    first: ScoredRun,
    second: ScoredRun,
    runs: Sequence[ScoredRun],
    right: Mapping[str, Sequence[bool | None]],
    texts: bool,
) -> dict[str, Any]:
    """`first_right` and `second_right`: rows that only this run predicts correctly; or, where rows are not right or
    wrong, rows whose errors differ most."""
    one, two = right[first.name], right[second.name]
    if any(value is not None for value in one):
        places = range(len(one))
        sides = {
            "first_right": [i for i in places if one[i] and two[i] is False],
            "second_right": [i for i in places if two[i] and one[i] is False],
        }
    else:
        gaps = [
            (b - a, i)
            for i, (a, b) in enumerate(zip(first.scored.errors(), second.scored.errors(), strict=True))
            if a is not None and b is not None
        ]
        sides = {
            "first_right": [i for gap, i in sorted(gaps, key=lambda g: -g[0]) if gap > 0],
            "second_right": [i for gap, i in sorted(gaps, key=lambda g: g[0]) if gap < 0],
        }
    return {
        "are_right_or_wrong": any(value is not None for value in one),
        **{side: [_row(runs, i, texts) for i in found[:LISTED]] for side, found in sides.items()},
        **{f"{side}_count": len(found) for side, found in sides.items()},
    }


def _row(runs: Sequence[ScoredRun], place: int, texts: bool) -> dict[str, Any]:
    scored = runs[0].scored
    return {
        "id": scored.ids[place],
        "text": input_text(scored.rows[place], scored.task) if texts else None,
        "reference": shown(scored.references[place]) if texts or has_class_targets(scored) else "",
        "predictions": {one.name: _predicted(one, place, texts) for one in runs},
    }


def _predicted(run: ScoredRun, place: int, texts: bool) -> str:
    prediction = run.scored.predictions[place]
    if "prediction" in prediction:
        return shown(prediction["prediction"]) if texts or has_class_targets(run.scored) else ""
    error = run.task.row_error(prediction, run.scored.references[place])
    return "" if error is None else f"loss of a token {error:.3f}"


def class_tables(runs: Sequence[ScoredRun]) -> dict[str, Any] | None:
    """The F1 of each class, entity type or tag by run, largest differences first; None if there are no classes."""
    kind = next((k for k in PER_CLASS if all(isinstance(r.scored.metrics.get(k), Mapping) for r in runs)), None)
    if kind is None:
        return None
    tables = {one.name: one.scored.metrics[kind] for one in runs}
    rows = []
    for name in dict.fromkeys(name for table in tables.values() for name in table):
        support = max(table[name]["support"] for table in tables.values() if name in table)
        of_runs = {
            score: {run: table[name][score] if name in table else 0.0 for run, table in tables.items()}
            for score in ("precision", "recall", "f1")
        }
        spread = max(of_runs["f1"].values()) - min(of_runs["f1"].values())
        rows.append({"class": name, "support": support, **of_runs, "spread": spread})
    return {"kind": PER_CLASS[kind], "rows": sorted(rows, key=lambda row: -row["spread"])}
