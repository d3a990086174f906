"""A measurement in a fresh process: nothing of the one before is in its memory, its caches or its threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cases import Order

WORKER = Path(__file__).with_name("worker.py")


def ask(order: Order, environment: Mapping[str, str], first_step: bool = False) -> dict[str, Any]:
    """What a fresh process measures.

    Args:
        first_step: whether it is to tell when its first step ends, and no more.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        command = [sys.executable, str(WORKER), json.dumps(order.as_dict()), str(answer)]
        done = subprocess.run(
            [*command, "--first-step"] if first_step else command,
            env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{order.case} {order.contender} round {order.round}: {done.stderr.strip()[-3000:]}")
        return json.loads(answer.read_text("utf-8"))
