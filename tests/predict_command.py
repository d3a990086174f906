"""`pefttools predict` in the process of a test."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pefttools import cli


class Predict:
    """Arguments of `pefttools predict` -> exit code, predictions and messages."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: object) -> tuple[int, list[Any], str]:
        code = cli.run(["predict", *map(str, words)])
        captured = self.capsys.readouterr()
        return code, [json.loads(line) for line in captured.out.splitlines()], captured.err
