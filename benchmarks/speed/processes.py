"""Measurements in new processes, so that memory, caches and threads of earlier ones have no influence."""

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
"""Number of last characters of an error message that are shown."""


def measure_in_process(order: Order, environment: Mapping[str, str], first_step: bool = False) -> dict[str, Any]:
    """Measure one contender in a new process; returns its measurements.

    Args:
        first_step: measure only when the first step ends.
    """
    command = [str(WORKER), "--order", json.dumps(order.as_dict())]
    return run_script([*command, "--first-step"] if first_step else command, environment)


def run_script(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a script in a new interpreter; returns the JSON that it writes to the file of its option `--answer`.

    Raises:
        SystemExit: the script failed; the message contains its last error output.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "answer.json")
        command = [sys.executable, *arguments, "--answer", str(file)]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}\n{done.stderr.strip()[-LONGEST:]}")
        return json.loads(file.read_text("utf-8"))
