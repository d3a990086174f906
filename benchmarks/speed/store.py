"""The store of measurements: a JSON line for each, in a folder for one set of settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pefttools
from pefttools import atomic

Measured = dict[str, Any]


class Store:
    """The measurements of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file, self.settings_file = folder / "measures.jsonl", folder / "settings.json"
        lines = self.file.read_text("utf-8").splitlines(keepends=True) if self.file.exists() else []
        self.measures: list[Measured] = [json.loads(line) for line in lines if line.endswith("\n")]

    @property
    def settings(self) -> dict[str, Any]:
        return json.loads(self.settings_file.read_text("utf-8")) if self.settings_file.exists() else {}

    def set_settings(self, settings: Mapping[str, Any]) -> None:
        """Set the folder's settings. Raises SystemExit if it has others, because measurements must not be mixed."""
        wanted = {**settings, "code": code()}
        if self.settings and self.settings != wanted:
            differing = [
                f"{key} was {self.settings.get(key)} and is {value} now"
                for key, value in wanted.items()
                if self.settings.get(key) != value
            ]
            raise SystemExit(
                f"--out: {self.folder} contains other measurements ({'; '.join(differing)}); name another folder"
            )
        atomic.write_json(self.settings_file, wanted)
        if self.file.exists():  # write it again without a line that was cut short
            atomic.write_text(self.file, "".join(json.dumps(measured) + "\n" for measured in self.measures))

    def has(self, identity: Mapping[str, Any]) -> bool:
        """Whether there is a measurement with this identity."""
        return any(all(measured[name] == value for name, value in identity.items()) for measured in self.measures)

    def add(self, measured: Measured) -> Measured:
        """Add a measurement, which includes its identity, to the file."""
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(measured) + "\n")
        self.measures.append(measured)
        return measured


def refuse_unequal(measures: Sequence[Measured]) -> None:
    """Raises SystemExit when contenders of a case train different numbers of parameters and so cannot be compared."""
    seen: dict[str, dict[int, str]] = {}
    for measured in measures:
        if "trainable" in measured:
            seen.setdefault(measured["case"], {}).setdefault(measured["trainable"], measured["contender"])
    if unequal := {case: numbers for case, numbers in seen.items() if len(numbers) > 1}:
        case, numbers = next(iter(unequal.items()))
        counts = ", ".join(f"{contender} {number:,}" for number, contender in numbers.items())
        raise SystemExit(f"{case}: the contenders train different numbers of parameters: {counts}")


def code() -> str:
    """The sha256 of pefttools' code, so that measurements of two versions are not mixed."""
    root = Path(pefttools.__file__).parent
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(root.rglob("*.py")))).hexdigest()
