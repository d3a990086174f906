"""An error, a short write or a crash at every write of a checkpoint."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_injection.undisturbed import COMMON, alone, command, outcome

from pefttools import atomic, cli

KINDS = ("error", "short write", "crash")
CHILD = "import sys; from fault_injection import writes; writes.with_fault(sys.argv[1], int(sys.argv[2]), sys.argv[3:])"


def writes(out: Path) -> None:
    """Inject each kind of fault at every write of the second checkpoint, until a fault comes after the last one."""
    file = out / "writes.json"
    done: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    whole = alone(out, "lora")
    for kind in KINDS:
        for number in range(1000):
            key = f"{kind} {number}"
            if key not in done:
                done[key] = with_fault_and_resumed(out, whole, kind, number)
                atomic.write_json(file, done)
                print(key, done[key], flush=True)
            if done[key]["reached"] is False:
                break


def with_fault_and_resumed(out: Path, whole: Path, kind: str, number: int) -> dict[str, Any]:
    run = out / "faulty"
    shutil.rmtree(run, ignore_errors=True)
    words = ["train", *COMMON, "--out", str(run), "--resume"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    first = subprocess.run(
        [sys.executable, "-c", CHILD, kind, str(number), *words], check=False, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    place = next((line[7:] for line in first.stderr.splitlines() if line.startswith("FAULT: ")), None)
    kept = sorted(path.name for path in run.glob("checkpoints/step-*"))
    again = subprocess.run(command(*words), check=False, capture_output=True, text=True)
    wrong = [] if again.returncode else [key for key, value in outcome(whole).items() if outcome(run)[key] != value]
    told = [line for line in first.stderr.splitlines() if "cannot be written" in line or "Traceback" in line]
    return {
        "reached": place is not None, "at": place, "code": first.returncode, "told": told[:1], "kept": kept,
        "lost": bool(again.returncode), "wrong": wrong,
    }  # fmt: skip


def with_fault(kind: str, number: int, words: list[str]) -> None:
    """Run a command whose `number`th write of the second checkpoint fails; called in a process of its own."""
    from pefttools.training import checkpoint

    plain, state = checkpoint.save, {"saves": 0, "writes": -1}

    def save(*values: Any) -> None:
        state["saves"] += 1
        state["writes"] = 0 if state["saves"] == 2 else -1
        plain(*values)
        state["writes"] = -1

    def faulty(function: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            if state["writes"] < 0:
                return function(*values, **named)
            state["writes"] += 1
            if state["writes"] - 1 != number:
                return function(*values, **named)
            print(f"FAULT: {label}", file=sys.stderr, flush=True)
            if kind == "error":
                raise OSError(errno.ENOSPC, "No space left on device")
            if kind == "short write" and label == "write":
                function(*values, **named)
                target = Path(values[1] if hasattr(values[0], "keys") else values[0])
                target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
            os._exit(9)

        return call

    import safetensors.torch

    safetensors.torch.save_file = faulty(safetensors.torch.save_file, "write")
    Path.write_text = faulty(Path.write_text, "write")  # type: ignore[method-assign]
    os.fsync = faulty(os.fsync, "fsync")
    Path.rename = faulty(Path.rename, "rename")  # type: ignore[method-assign]
    Path.replace = faulty(Path.replace, "replace")  # type: ignore[method-assign]
    checkpoint.save = save
    sys.exit(cli.run(words))
