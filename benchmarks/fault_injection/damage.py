"""Five damages of every file of a finished run and of a checkpoint."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_injection.undisturbed import COMMON, alone, command, outcome

from pefttools import atomic, cli


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit flipped": _flip,
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "removed": Path.unlink,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


def damage(out: Path) -> None:
    """Damage every file of a finished run before `predict`, and of the last checkpoint before `--resume`."""
    whole, found = alone(out, "lora"), {}
    died = out / "died"
    if not list(died.glob("checkpoints/step-*")):
        with_fault_and_kept(died)
    for kind, source in (("run", whole), ("checkpoint", died)):
        folder = source if kind == "run" else max(source.glob("checkpoints/step-*"))
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and "export" not in path.parts):
            name = file.relative_to(source).as_posix()
            for label, harm in DAMAGES.items():
                found[f"{kind}: {file.relative_to(folder)}: {label}"] = damaged(out, source, name, harm, kind, whole)
                print(name, label, found[f"{kind}: {file.relative_to(folder)}: {label}"], flush=True)
    atomic.write_json(out / "damage.json", found)


def with_fault_and_kept(died: Path) -> None:
    """A run that crashed while it wrote a checkpoint, so that it has earlier ones."""
    words = ["train", *COMMON, "--out", str(died)]
    process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(died.glob("checkpoints/step-*"))) < 2:
        time.sleep(0.01)
    process.kill()
    process.wait()


def damaged(
    out: Path, source: Path, name: str, harm: Callable[[Path], Any], kind: str, whole: Path
) -> dict[str, Any]:  # fmt: skip
    run = out / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(source, run)
    harm(run / name)
    words = ["predict", "--run", str(run), "--text", "Who wrote it ?"]
    if kind == "checkpoint":
        words = ["train", *COMMON, "--out", str(run), "--resume"]
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()) as printed:
        code = cli.run(words)
    lines = [line.strip() for line in told.getvalue().splitlines() if "has changed" in line or "missing" in line]
    if kind == "run":
        expected = io.StringIO()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(expected):
            cli.run([word if word != str(run) else str(whole) for word in words])
        wrong = code == 0 and printed.getvalue() != expected.getvalue()
    else:
        wrong = code == 0 and outcome(run) != outcome(whole)
    return {"code": code, "told": bool(lines), "wrong": wrong}
