"""Predicting: `predict_rows` on a finished run, compared with `transformers.pipeline` on the run's merged export.

Both get the same texts and load their model before the measurement starts; tokenising is part of the measurement.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memory
import yaml
from cases import Order, recipe_of

from pefttools.bases.loading import load_tokenizer
from pefttools.data.splitting import Row, load_splits
from pefttools.tasks.base import Task

BATCH, TO_WARM_UP = 32, 96


def measure(order: Order) -> dict[str, Any]:
    """Seconds and bytes of predicting, and the accuracy on the test rows."""
    run = finished_run(order)
    recipe = recipe_of(order)
    splits = load_splits(recipe.data, recipe.task)
    rows = [*splits.test, *splits.train, *splits.spare]
    rows = rows[: order.rows or len(rows)]
    predict = _ours if order.contender == "pefttools" else _pipeline
    measured, predictions = predict(order, run, rows)
    pairs = list(zip(predictions, splits.test, strict=False))
    right = sum(label == row["label"] for label, row in pairs)
    return {**measured, "rows": len(rows), "tokens": _tokens(rows, run, recipe.task), "score": right / len(pairs)}


def _tokens(rows: list[Row], run: Path, task: Task) -> int:
    """Number of tokens of all texts, with special tokens."""
    tokenizer = load_tokenizer(run / "export" / "merged", "the merged model")
    return sum(map(len, task.encode([{"text": row["text"]} for row in rows], tokenizer)["input_ids"]))


def finished_run(order: Order) -> Path:
    """A finished run of the case's recipe with its merged export; trains and exports if there is none."""
    run = Path(order.folder) / "predict" / "run"
    if not (run / "export" / "merged").exists():
        file = run.with_name("recipe.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        trained = recipe_of(Order(order.case, "pefttools", 0, order.folder, order.rows, order.epochs, order.smoke))
        file.write_text(yaml.safe_dump(trained.as_dict()), "utf-8")
        _pefttools("train", str(file), "--out", str(run), "--resume")
        _pefttools("export", str(run), "--to", "merged")
    return run


def _pefttools(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pefttools", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"pefttools {' '.join(arguments)}: {done.stderr.strip()}")


def _ours(order: Order, run: Path, rows: list[Row]) -> tuple[dict[str, Any], list[str]]:
    del order
    from pefttools.inference.prediction import predict_rows

    started: dict[str, float] = {}

    def timed(texts: list[Row]) -> Iterator[Row]:
        """The texts; starts the measurement when the first one is read, after the model has been loaded."""
        started["bytes"] = memory.begin()
        started["time"] = time.perf_counter()
        for row in texts:
            yield {"text": row["text"]}

    begun = 0.0
    predictions: list[Any] = []
    for texts in (rows[:TO_WARM_UP], rows):
        begun = time.perf_counter()
        predictions = [output["prediction"] for output in predict_rows(run, timed(texts))]
    ended = time.perf_counter()
    return {
        "seconds": ended - started["time"], "wall_seconds": ended - begun, "loaded_bytes": int(started["bytes"]),
        "peak_bytes": memory.peak(),
    }, predictions  # fmt: skip


def _pipeline(order: Order, run: Path, rows: list[Row]) -> tuple[dict[str, Any], list[str]]:
    import torch
    import transformers

    tuned = order.contender == "pipeline_tuned"
    begun = time.perf_counter()
    pipe: Any = transformers.pipeline(
        "text-classification",
        model=str(run / "export" / "merged"),
        dtype=torch.bfloat16 if tuned else torch.float32,
        device="cpu" if not torch.accelerator.is_available() else None,
    )
    settings = {"batch_size": BATCH, "truncation": True, "max_length": recipe_of(order).task.max_length}
    texts = [row["text"] for row in rows]
    loaded_seconds = time.perf_counter() - begun
    pipe(texts[:TO_WARM_UP], **settings)
    loaded = memory.begin()
    began = time.perf_counter()
    order_of = sorted(range(len(texts)), key=lambda i: len(texts[i])) if tuned else list(range(len(texts)))
    found = pipe([texts[i] for i in order_of], **settings)
    predictions = [""] * len(texts)
    for i, prediction in zip(order_of, found, strict=True):
        predictions[i] = prediction["label"]
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds, "wall_seconds": loaded_seconds + seconds, "loaded_bytes": loaded,
        "peak_bytes": memory.peak(),
    }, predictions  # fmt: skip
