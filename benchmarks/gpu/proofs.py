"""Correctness on this machine, with tiny models: each function returns its values, or raises if something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import inputs
import torch
from parts import Skipped
from sizes import SMOKE, Sizes

from pefttools import extras
from pefttools.errors import Paused
from pefttools.exporters import driver as exporting
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import Reporter
from pefttools.training.driver import train

CASE, DECODER = SMOKE.cases["encoder"], SMOKE.cases["decoder-1.1b"]
TOLERANCE = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05}
"""Precision -> the largest difference of a loss from the recorded one, relative to it, averaged over a run's steps."""


EVIDENCE = ("merge_error", "rounding_error", "max_logit_error", "route", "routes")
"""Values of an export's manifest: how far the artifact is from the trained model."""


class Wrong(Exception):
    """A result is not as it must be."""


def golden(sizes: Sizes, shared: Path, own: Path) -> dict[str, Any]:
    """The losses of `benchmarks/golden.py`, computed here, against those that a CPU recorded in fp32.

    Only models without dropout are compared, because a GPU draws other masks.
    """
    del shared
    import golden as recorded

    from pefttools.device import precision_of

    precision = precision_of("auto")
    record = json.loads(recorded.FILE.read_text("utf-8"))
    found: dict[str, float] = {}
    differing: list[str] = []
    until = time.monotonic() + sizes.golden_seconds
    for name, words in recorded.cases(own, recipes=False):
        before = record["cases"].get(name, {})
        if sizes.golden_cases not in name or not before.get("losses") or (found and time.monotonic() > until):
            continue
        measured = recorded.measured([*words, "train.precision=auto"], own / "run")
        if "losses" not in measured:
            differing.append(f"{name}: exit code {measured['exit code']}")
            continue
        pairs = list(zip(measured["losses"], before["losses"], strict=True))
        found[name] = sum(abs(one - other) / abs(other) for one, other in pairs) / len(pairs)
    differing += [f"{name}: {value:.3g}" for name, value in found.items() if not value <= TOLERANCE[precision]]
    if differing or not found:
        raise Wrong(f"losses differ from the record in {precision}: {'; '.join(differing) or 'none was computed'}")
    worst = max(found, key=found.__getitem__)
    return {"precision": precision, "compared": len(found), "worst": worst, "difference": found[worst],
            "recorded_on": record["machine"]}  # fmt: skip


def ddp_of_one(sizes: Sizes, shared: Path, own: Path) -> dict[str, Any]:
    """A run under torchrun with one process against one without."""
    del sizes
    recipe = _recipe(shared, "train.log_every=1")
    train(recipe, own / "plain")
    file = own / "recipe.yaml"
    file.write_text((own / "plain" / "recipe.yaml").read_text("utf-8"), "utf-8")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "1",
        "-m",
        "pefttools",
    ]
    done = subprocess.run(
        [*command, "train", str(file), "--out", str(own / "ddp")], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Wrong(done.stderr[-1500:])
    difference = max(abs(a - b) for a, b in zip(losses(own / "plain"), losses(own / "ddp"), strict=True))
    if difference > 1e-3:
        raise Wrong(f"losses differ by {difference:.3g}")
    return {"largest_difference": difference}


def resume(sizes: Sizes, shared: Path, own: Path) -> dict[str, Any]:
    """A run that pauses twice and resumes has the weights of an uninterrupted one, bit for bit."""
    del sizes
    from golden import weights

    torch.use_deterministic_algorithms(True)
    recipe = _recipe(shared, "base.dropout=0.1", "train.epochs=3", "train.log_every=1")
    train(recipe, own / "whole")
    for steps in (3, 7):
        try:
            train(recipe, own / "paused", resume=True, stop_after=steps)
        except Paused:
            continue
        raise Wrong(f"the run did not pause after step {steps}")
    train(recipe, own / "paused", resume=True)
    if losses(own / "whole") != losses(own / "paused") or weights(own / "whole") != weights(own / "paused"):
        raise Wrong("the resumed run is not bit-equal to the uninterrupted one")
    return {"steps": len(losses(own / "whole"))}


def merge(sizes: Sizes, shared: Path, own: Path) -> dict[str, Any]:
    """The exporter's proof that a merged model predicts like the trained one."""
    del sizes
    train(_recipe(shared), own / "run")
    return _proven(exporting.export(own / "run", "merged"))


def qlora(sizes: Sizes, shared: Path, own: Path) -> dict[str, Any]:
    """LoRA on a base in 4 bits, merged into its dequantised weights and into the full-precision base."""
    del sizes
    if extras.missing(extras.EXTRAS["quantized"]):
        raise Skipped("bitsandbytes is not installed")
    recipe = inputs.recipe_of(DECODER, shared, "base.quantize=nf4")
    train(recipe, own / "run")
    return _proven(exporting.export(own / "run", "merged"))


def out_of_memory(sizes: Sizes, shared: Path, own: Path) -> dict[str, Any]:
    """A step that does not fit into memory is computed in smaller micro-batches, with the same losses."""
    del sizes
    recipe = _recipe(shared, "train.log_every=1")
    train(recipe, own / "plain")
    warnings: list[str] = []
    reporter = type("Listening", (Reporter,), {"warn": lambda _, text: warnings.append(text)})()
    with _little_memory():
        train(recipe, own / "halved", reporter=reporter)
    said = [text for text in warnings if "ran out of memory" in text]
    if not said:
        raise Wrong("the step did not run out of memory, so nothing was tested")
    difference = max(abs(a - b) for a, b in zip(losses(own / "plain"), losses(own / "halved"), strict=True))
    if difference > 0.02:
        raise Wrong(f"losses differ by {difference:.3g}")
    return {"message": said[0], "largest_difference": difference}


@contextmanager
def _little_memory() -> Iterator[None]:
    """Passes of more than four rows run out of memory: of the GPU, where there is one."""
    from pefttools.training.micro_batches import MicroBatches

    plain = MicroBatches.forward

    def forward(self: Any, rows: list[int]) -> Any:
        run = plain(self, rows)

        def limited(*args: Any, **more: Any) -> Any:
            if len(rows) > 4:
                if not torch.cuda.is_available():
                    raise torch.OutOfMemoryError("a pass of more than four rows")
                torch.empty(torch.cuda.get_device_properties(0).total_memory * 2, dtype=torch.uint8, device="cuda")
            return run(*args, **more)

        return limited

    MicroBatches.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        MicroBatches.forward = plain  # type: ignore[method-assign]


def _recipe(shared: Path, *overrides: str) -> Recipe:
    return inputs.recipe_of(CASE, shared, *overrides)


def _proven(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name in EVIDENCE}


def losses(run: Path) -> list[float]:
    """The losses of a run's steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]
