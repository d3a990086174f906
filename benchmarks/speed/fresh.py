"""A measurement in a fresh process: nothing of the one before is in its memory, its caches or its threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import Order

WORKER = Path(__file__).with_name("worker.py")
LONGEST = 3000
"""Characters of what went wrong that are told, from the end."""


def ask(order: Order, environment: Mapping[str, str], first_step: bool = False) -> dict[str, Any]:
    """What a fresh process measures of one contender.

    Args:
        first_step: whether it is to tell when its first step ends, and no more.
    """
    command = [str(WORKER), "--order", json.dumps(order.as_dict())]
    return answer([*command, "--first-step"] if first_step else command, environment)


def answer(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What a script run by a fresh interpreter writes to the file that it is given as `--answer`.

    Raises:
        SystemExit: it failed; says how.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "answer.json")
        command = [sys.executable, *arguments, "--answer", str(file)]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}\n{done.stderr.strip()[-LONGEST:]}")
        return json.loads(file.read_text("utf-8"))
