"""The only module that prints. Results go to stdout, everything else to stderr; rich formats tables."""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pefttools.cli import ledger_table, narrow_tables, support_table
from pefttools.cli.once import is_first
from pefttools.errors import EnvironmentFault
from pefttools.inference.prediction_files import json_line
from pefttools.progress import FIRST

if TYPE_CHECKING:
    from pefttools.inference.scoring import Sampled

BLOCK = 256
"""Number of JSON lines that are written at once."""


def accept_any_character() -> None:
    """Make stdout and stderr escape characters that their encoding lacks (α in cp1252) instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flushed() -> int:
    """Flush stdout; returns the exit code of a failure, otherwise 0."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()
    except OSError as error:
        _close_stdout()
        problems([_not_written(error)])
        return 3
    return 0


def _close_stdout() -> None:
    """Discard what is left in stdout's buffer, so that the interpreter does not fail on it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _not_written(error: OSError) -> str:
    return f"standard output cannot be written: {error.strerror}"


def _can_show(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _out(text: str) -> None:
    """Print on stdout, in the first process only. Raises EnvironmentFault when that fails."""
    if not FIRST:
        return
    try:
        print(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise EnvironmentFault(_not_written(error)) from error


def _err(message: str) -> None:
    """Print on stderr, in the first process only."""
    if FIRST:
        print(message, file=sys.stderr)


def _table(table: Table) -> None:
    console = Console(quiet=not FIRST)
    try:
        console.print(*narrow_tables.parts(table, console), sep="\n")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise EnvironmentFault(_not_written(error)) from error


def problems(messages: Iterable[str]) -> None:
    """Print errors, one line each; an error of several processes is printed by one of them."""
    for message in messages:
        if is_first(message):
            print(f"error: {message}", file=sys.stderr)


def warnings(messages: Iterable[str]) -> None:
    """Print warnings, one line each."""
    for message in messages:
        _err(f"warning: {message}")


def interrupted(message: str) -> None:
    _err(message)


def _escapes() -> bool:
    """Whether JSON must be written in ASCII, because stdout's encoding lacks characters."""
    return not _can_show("α😀")


def as_json(value: Any) -> None:
    """Print one JSON value."""
    _out(json.dumps(value, ensure_ascii=_escapes()))


def as_json_lines(values: Iterable[Any]) -> None:
    """Print one JSON value a line, in blocks of lines."""
    escape = _escapes()
    lines: list[str] = []
    try:
        for value in values:
            lines.append(json_line(value, escape))
            if len(lines) == BLOCK:
                _out("\n".join(lines))
                lines.clear()
    finally:  # also print the rows before one that raises an error
        if lines:
            _out("\n".join(lines))


def shown_now(text: str) -> None:
    """Print a part of a line at once, in characters that the terminal has."""
    if not FIRST:
        return
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)


def parts(shown: Iterable[str | Table | Text]) -> None:
    """Print lines, coloured lines and tables."""
    for part in shown:
        if isinstance(part, Text):
            Console(quiet=not FIRST).print(part)
        else:
            _out(part) if isinstance(part, str) else _table(part)


def names(listing: Mapping[str, Mapping[str, str]]) -> None:
    """Print a listing: kind -> name -> summary."""
    width = max(len(name) for entries in listing.values() for name in entries)
    for kind, entries in listing.items():
        _out(kind)
        for name, summary in entries.items():
            _out(f"  {name:<{width}}  {summary}")


def support(summaries: Mapping[str, str], matrix: Mapping[str, Any]) -> None:
    """Print the strategies, then the support matrix as a table for each task, with the reasons for failures."""
    names({"strategies": summaries})
    parts(support_table.shown(matrix, "✓" if _can_show("✓") else "yes"))


def explained(lines: Sequence[tuple[str, str, str]]) -> None:
    """Print YAML lines, each with a comment on its origin and help."""
    width = max(len(line) for line, _, _ in lines if len(line) < 60)
    for line, origin, help_text in lines:
        comment = f"  # {origin}" + (f": {help_text}" if help_text else "") if origin else ""
        _out(f"{line:<{width}}{comment}" if comment else line)


def result(values: Mapping[str, Any], folder: str) -> None:
    """Print a run's result: scores before and after training, then parameters and time."""
    before, after = values["before"], values["test"] or values["validation"]
    title = (
        f"{values['recipe']}: {values['task']} by {values['strategy']}; before is on the {before['measured_on']} rows"
    )
    table = Table(title=title, title_justify="left")
    columns = {
        "majority": before["majority"],
        "before": before,
        "validation": values["validation"],
        **({"test": values["test"]} if values["test"] else {}),
    }
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    for metric, value in after.items():
        if isinstance(value, (int, float)):
            table.add_row(metric, *(f"{c[metric]:.4f}" if metric in c else "" for c in columns.values()))
    _table(table)
    scores({name: table for name, table in after.items() if name != "per_class"})  # `evaluate` shows that one
    if values.get("ledger"):
        parts(ledger_table.shown(values["ledger"]))
    params, train = values["params"], values["train"]
    share = params["trainable"] / params["total"]
    _out(
        f"trained {params['trainable']:,} of {params['total']:,} parameters ({share:.2%}:"
        f" adapter {params['adapter']:,}, head {params['head']:,})"
        f" in {train['steps']} steps, {train['seconds']:.0f} s, {train['precision']}"
    )
    _out(f"run folder: {folder}")


def examination(values: Mapping[str, Any]) -> None:
    """Print what the checks found, each with its evidence and cure, and what was checked."""
    found = values["findings"]
    for number, finding in enumerate(found, 1):
        kind = finding["check"] if finding["is_fault"] else f"{finding['check']}, perhaps intended"
        _out(f"{number}. {kind}: {finding['what']}")
        _out(f"   evidence: {finding['evidence']}")
        _out(f"   to correct it: {finding['cure']}")
    faults = sum(finding["is_fault"] for finding in found)
    number = f"{faults} problem{'s' * (faults > 1)}" if faults else "no problem"
    _out(f"{values['target']}: {number} found")
    _out(f"checked: {', '.join(values['checked'])}")
    for name, reason in values["skipped"].items():
        _out(f"not checked: {name} ({reason})")
    warnings(values["warnings"])


def sample(rows: Iterable[Sampled]) -> None:
    """Print training rows as the model will see them, each followed by its copies."""
    number = 0
    for row in rows:
        number += row.augmentation is None
        _out(f"--- {number}{f', copied by {row.augmentation}' if row.augmentation else ''}\n{row.text}")


def scores(values: Mapping[str, Any]) -> None:
    """Print a table for each metric that has values for classes, entities or tags (`per_tag`)."""
    for metric, rows in values.items():
        if not isinstance(rows, Mapping) or not all(isinstance(row, Mapping) for row in rows.values()):
            continue
        table = Table()
        table.add_column(metric.removeprefix("per_"))
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        for name in columns:
            table.add_column(name, justify="right")
        for label, row in rows.items():
            cells = (row.get(name, "") for name in columns)
            table.add_row(label, *(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells))
        _table(table)


def metrics(values: Mapping[str, Any]) -> None:
    """Print metrics, one line each, and the tables of classes, entities and tags."""
    for name, value in values.items():
        if not isinstance(value, Mapping):
            _out(f"{name:<12} {value:.4f}" if isinstance(value, float) else f"{name:<12} {value}")
    scores(values)


def perturbed(values: Mapping[str, Any]) -> None:
    """Print the score against the strength of each perturbation, what it loses, and the number of rows that changed."""
    metric, points = values["metric"], values["in_points"]
    scale, digits = (100, 2) if points else (1, 4)
    title = f"{metric} on {values['rows']} {values['scored_on']} rows, seed {values['seed']}"
    table = Table(title=title, title_justify="left")
    table.add_column("perturbation")
    for name in ("strength", metric, "points lost" if points else "worse by", "95% interval", "changed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("none", "0", f"{values['score']:.4f}", "", "", "0")
    for name, group in itertools.groupby(values["perturbations"], lambda one: one["perturbation"]):
        table.add_section()
        for one in group:
            drop, low, high = (f"{scale * one[key]:.{digits}f}" for key in ("drop", "low", "high"))
            cells = (f"{one['strength']:g}", f"{one['score']:.4f}", drop, f"{low} to {high}", f"{one['changed_rows']}")
            table.add_row(name, *cells)
    _table(table)


def manifest(values: Mapping[str, Any], more: Iterable[str]) -> None:
    """Print the measurements of an export.

    Args:
        more: further lines of this exporter.
    """
    _out(f"{values['exporter']} in {values['dtype']} -> {values['folder']}")
    for sentence in more:
        _out(sentence)
    if "rounding_error" in values:
        _out(f"rounding to {values['dtype']} changes logits by up to {values['rounding_error']:.2g}")
    _out(
        f"checked in a new process on {values['compared_rows']} rows: the largest logit difference from the trained"
        f" model is {values['max_logit_error']:.2g}, from the model that was written {values['loaded_error']:.2g}"
        f" (allowed {values['tolerance']:.2g}); {values['metric']} on {values['scored_rows']} {values['scored_on']}"
        f" rows is {values['exported']:.4f}, the trained model's is {values['trained']:.4f}"
    )
