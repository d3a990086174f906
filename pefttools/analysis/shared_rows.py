"""The rows on which several runs were scored, and whether the runs can be compared at all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pefttools.analysis.scored_run import ROUNDING, ScoredRun, open_run, with_distinct_names
from pefttools.data.fields import listed
from pefttools.data.rows import content_hash, key_hash
from pefttools.errors import UserError
from pefttools.reporter import Reporter


def open_runs(paths: Sequence[Path], reporter: Reporter) -> list[ScoredRun]:
    """Two or more finished runs of one task, with distinct names.

    Raises:
        UserError: there are fewer, a run is named twice or cannot be read, or their tasks or classes differ.
    """
    if len(paths) < 2:
        named = f"only {paths[0]} is named" if paths else "none is named"
        raise UserError(f"compare: needs two or more runs, but {named}; for a single run, use `pefttools report RUN`")
    places = [path.resolve() for path in paths]
    if twice := [str(path) for path, place in zip(paths, places, strict=True) if places.count(place) > 1]:
        raise UserError(f"compare: {twice[0]} is named twice; name two or more different runs")
    runs = with_distinct_names([open_run(path, reporter) for path in paths])
    tasks = {one.name: one.task.name for one in runs}
    if len({*tasks.values()}) > 1:
        listing = ", ".join(f"{name} is {task}" for name, task in tasks.items())
        raise UserError(f"compare: the runs have different tasks: {listing}; compare runs of one task")
    _refuse_other_classes(runs)
    return runs


def _refuse_other_classes(runs: Sequence[ScoredRun]) -> None:
    first = runs[0]
    for other in runs[1:]:
        one, two = (_classes(run) for run in (first, other))
        if one != two:
            raise UserError(
                f"compare: {first.name} and {other.name} have different classes:"
                f" {_only(first.name, one - two)}, {_only(other.name, two - one)}; train both with the same classes"
                " (task.labels, data.labels, data.min_class_rows)"
            )


def _classes(run: ScoredRun) -> set[str]:
    return {*run.task.class_names} or {*map(str, run.task.config_values().get("label2id", {}))}


def _only(name: str, classes: set[str]) -> str:
    return f"only {name} has {listed(sorted(classes))}" if classes else f"{name} has no class of its own"


def on_shared_rows(runs: Sequence[ScoredRun]) -> tuple[list[ScoredRun], list[str]]:
    """The runs with only the rows that all were scored on, in one order, and the metrics of these rows; and notes.

    The notes say where the runs' rows differ.

    Raises:
        UserError: there are no such rows, or the runs score them against other targets or by other metrics.
    """
    places = _matched([[content_hash(row) for row in one.scored.rows] for one in runs])
    if not places[0]:
        raise UserError(f"compare: {_without_overlap(runs)}")
    notes = []
    if any(len(of_run) < len(one.scored.rows) for of_run, one in zip(places, runs, strict=True)):
        counts = ", ".join(f"{one.name} on {len(one.scored.rows)} {one.scored_on} rows" for one in runs)
        alike = _same_inputs(runs) - len(places[0])
        other = f" ({alike} more have the same inputs but other targets)" if alike > 0 else ""
        notes.append(
            f"the runs were scored on different rows: {counts}; they are compared on the {len(places[0])} rows that"
            f" they share{other}"
        )
    if any(one.scored_on == "validation" for one in runs):
        names = ", ".join(one.name for one in runs if one.scored_on == "validation")
        notes.append(f"{names}: scored on validation rows, which also chose the checkpoint; the score is optimistic")
    shared = [replace(one, scored=one.scored.at(p)) for one, p in zip(runs, places, strict=True)]
    for other in shared[1:]:
        _refuse_other_scoring(shared[0], other)
    return shared, notes


def _matched(hashes: Sequence[Sequence[bytes]]) -> list[list[int]]:
    """For each run the places of the shared rows; copies of a row are matched in their order."""
    tables: list[dict[tuple[bytes, int], int]] = []
    for of_run in hashes:
        seen: Counter[bytes] = Counter()
        table = {}
        for place, one in enumerate(of_run):
            table[one, seen[one]] = place
            seen[one] += 1
        tables.append(table)
    shared = [key for key in tables[0] if all(key in table for table in tables[1:])]
    return [[table[key] for key in shared] for table in tables]


def _same_inputs(runs: Sequence[ScoredRun]) -> int:
    """Number of rows whose inputs all runs were scored on, whatever their targets."""
    return len(_matched([[key_hash(row, one.task) for row in one.scored.rows] for one in runs])[0])


def _without_overlap(runs: Sequence[ScoredRun]) -> str:
    """The sentence for runs that share no rows, with the likely reason."""
    listing = ", ".join(f"{one.name} on {len(one.scored.rows)}" for one in runs)
    found = f"no row was scored by all of the runs ({listing})"
    if alike := _same_inputs(runs):
        how = "; ".join(_differing_settings(runs[0], other, ("task", "data")) for other in runs[1:])
        return f"{found}; {alike} rows have the same inputs but other targets: {how}"
    return f"{found}; train the runs on the same data.test, or with the same data.split_seed"


def _differing_settings(first: ScoredRun, other: ScoredRun, sections: Sequence[str]) -> str:
    one, two = (run.run.recipe().settings() for run in (first, other))
    names = [n for n in {**one, **two} if n.split(".")[0] in sections and one.get(n) != two.get(n)]
    if not names:
        return f"{first.name} and {other.name} have the same settings"
    return ", ".join(f"{n} is {one.get(n)!r} for {first.name} and {two.get(n)!r} for {other.name}" for n in names[:4])


def _refuse_other_scoring(first: ScoredRun, other: ScoredRun) -> None:
    """Raises UserError when the second run's rows have other targets or metrics than the first's."""
    one, two = first.scored, other.scored
    how = _differing_settings(first, other, ("task", "data"))
    if list(one.references) != list(two.references):
        raise UserError(f"compare: {first.name} and {other.name} score the same rows against other targets: {how}")
    names = [name for name in one.scores if name in two.scores]
    if one.task.primary not in names:
        raise UserError(f"compare: {first.name} and {other.name} have no {one.task.primary} in common: {how}")
    again: dict[str, Any] = one.task.all_metrics(two.predictions, two.references)
    for name in names:
        if not math.isclose(again.get(name, math.nan), two.scores[name], rel_tol=ROUNDING, abs_tol=ROUNDING):
            raise UserError(
                f"compare: {first.name} and {other.name} measure {name} in different ways: {how}; train both with the"
                " same settings of the task"
            )
