"""SIGKILL at random moments of training and of exports."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fault_injection.undisturbed import COMMON, SETUPS, alone, command, outcome

from pefttools import atomic, hashes

UNMERGEABLE = ("adapter", "prefix")
"""Setups that can be exported as adapters only."""


def kills(out: Path, number: int) -> None:
    """Kill runs in turn until there are `number` kills; each setup's export is killed, too, now and then."""
    file = out / "kills.json"
    done: list[dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.exists() else []
    draw = random.Random(len(done))
    names = list(SETUPS)
    while (count := sum(case["kills"] for case in done)) < number:
        name = names[len(done) % len(names)]
        whole = alone(out, name)
        exports = len(done) % 11 == 10  # another setup in every round of setups
        case = killed_export(out, name, whole, draw) if exports else killed_training(out, name, whole, draw)
        done.append({"setup": name, **case})
        atomic.write_json(file, done)
        print(f"{count + case['kills']} of {number} kills: {done[-1]}", flush=True)


def killed_training(out: Path, name: str, whole: Path, draw: random.Random) -> dict[str, Any]:
    """Train with up to four kills, then to the end."""
    run, moments = out / "killed", Counter[str]()
    shutil.rmtree(run, ignore_errors=True)
    words = command("train", *COMMON, *SETUPS[name], "--out", str(run), "--resume")
    for _ in range(4):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not (run / "metrics.jsonl").exists():
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, 6))
        if process.poll() is not None:
            break
        moments[moment(run)] += 1
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = subprocess.run(words, check=False, capture_output=True, text=True)
    if found.returncode:
        return {"kills": moments.total(), "moments": moments, "lost": True, "why": found.stderr[-500:]}
    wrong = [key for key, value in outcome(whole).items() if outcome(run)[key] != value]
    return {"kills": moments.total(), "moments": moments, "lost": False, "wrong": wrong}


def moment(run: Path) -> str:
    """What a run is doing, as far as its folder shows."""
    if list(run.glob("checkpoints/.*.part")) or list(run.glob(".*.part")):
        return "while writing"
    return "in a step or an evaluation" if list(run.glob("checkpoints/step-*")) else "before the first checkpoint"


def killed_export(out: Path, name: str, whole: Path, draw: random.Random) -> dict[str, Any]:
    """Kill an export once; the folder must be absent or complete, and the next export must succeed."""
    folder = out / "exported"
    shutil.rmtree(folder, ignore_errors=True)
    to = "adapter" if name in UNMERGEABLE else "merged"
    words = command("export", str(whole), "--to", to, "--out", str(folder))
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(draw.uniform(4, 14))
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if folder.exists():
        wrong = ["half an artifact"] if hashes.damage(folder) else []
        return {"kills": int(killed), "moments": {"in an export": int(killed)}, "lost": False, "wrong": wrong}
    found = subprocess.run(words, check=False, capture_output=True, text=True)
    about = {
        "kills": int(killed),
        "moments": {"in an export": int(killed)},
        "lost": bool(found.returncode),
        "wrong": [],
    }
    return about | ({"why": found.stderr[-500:]} if found.returncode else {})
