"""Shared by the tests of `doctor`: run the command and read its findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pefttools import cli


def examine(capsys: pytest.CaptureFixture[str], target: Path, *overrides: str) -> dict[str, dict[str, Any]]:
    """Check -> the first that `pefttools doctor` found with it in a recipe or a run."""
    assert cli.run(["doctor", str(target), *overrides, "--json"]) == 0, capsys.readouterr().err
    values = json.loads(capsys.readouterr().out)
    for finding in values["findings"]:
        assert finding["cure"].startswith("pefttools ")
        assert any(character.isdigit() for character in finding["evidence"])
    return {finding["check"]: finding for finding in reversed(values["findings"])}
