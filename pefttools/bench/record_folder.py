"""The records of trials in a folder: one file for each in `trials/`, and those of `records.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pefttools.bench import archive, trial
from pefttools.errors import UserError


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest -> record. Raises UserError when one is damaged, or was written by other versions."""
    found = {}
    trials = map(trial.read, sorted((folder / "trials").glob("[!.]*.json")))
    for record in (*archive.read(folder), *trials):
        _refuse_other_versions(record, folder)
        found[record["digest"]] = record
    return found


def _refuse_other_versions(record: Mapping[str, Any], folder: Path) -> None:
    if record.get("format") != trial.FORMAT:
        raise UserError(f"--out: {folder} has records that this version cannot read; choose another folder")
    now = trial.versions()
    if other := [f"{n} {v}" for n, v in record["versions"].items() if now.get(n) != v]:
        raise UserError(
            f"--out: {folder} contains results of {', '.join(other)}, which cannot be compared with those of"
            f" {', '.join(f'{n} {v}' for n, v in now.items())}; choose another folder"
        )
