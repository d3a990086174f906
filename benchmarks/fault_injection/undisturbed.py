"""The setups, the run of each that nothing disturbs, and what a disturbed run must have in common with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pefttools.sources.pins import content_sha256

COMMON = ("question-type-lora", "data.train_rows=160", "data.validation_share=0.02", "data.test_share=0.02",
          "train.epochs=2", "train.batch_size=16", "train.log_every=1", "train.evaluate_every=0.5",
          "train.checkpoint_steps=2", "train.trackers=[]")  # fmt: skip
SETUPS = {
    "lora": (),
    "lora, freelb, l2": ("objectives=[freelb]", "regularizers=[l2]"),
    "full": ("strategy=full",),
    "full, sam, l2_sp": ("strategy=full", "objectives=[sam]", "regularizers=[l2_sp]"),
    "adapter": ("strategy=adapter",),
    "low_rank": ("strategy=low_rank",),
    "bitfit, r_drop": ("strategy=bitfit", "objectives=[r_drop]", "base.dropout=0.1"),
    "adalora": ("strategy=adalora",),
    "prefix": ("strategy=prefix",),
    "galore": ("strategy=galore",),
}
"""Name -> overrides."""


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pefttools", *words]


def outcome(run: Path) -> dict[str, Any]:
    """What must be equal: every loss and score of metrics.jsonl, the weights, and the test scores."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    result = json.loads((run / "result.json").read_text("utf-8"))
    return {
        "lines": [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines],
        "weights": content_sha256(run / "adapter"),
        "test": result["test"],
    }


def alone(out: Path, name: str) -> Path:
    """The run of this setup that nothing disturbs."""
    run = out / "alone" / name
    if not (run / "result.json").exists():
        shutil.rmtree(run, ignore_errors=True)
        subprocess.run(command("train", *COMMON, *SETUPS[name], "--out", str(run)), check=True, capture_output=True)
    return run
