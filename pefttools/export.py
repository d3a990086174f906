"""A finished run to an artifact that is proven before it appears.

The trained model, as it was trained, answers real validation and test rows. The artifact is written beside its
place, loaded in a fresh process and asked the same. Beyond tolerance it is thrown away.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import atomic
from pefttools.data.splitting import load_splits
from pefttools.errors import UserError
from pefttools.exporters import exporters, verify
from pefttools.models import prepare_libraries
from pefttools.reporter import SILENT, Reporter
from pefttools.run import Run, Trained, load

if TYPE_CHECKING:
    from pefttools.data.splitting import Row

COMPARED_ROWS = 256
"""Validation rows whose logits are compared, at most."""
LOGIT_TOLERANCE = 1e-5
"""Largest difference of a logit, both models computing in float64: then it is of weights, and not of rounding.

A language model's is times its largest logit, where that is above 1: decoders' norms compute in fp32 all the same."""
COMPARED_VALUES = 30_000_000
"""Logits that are compared, at most; a language model has one a token and word of its vocabulary."""
METRIC_TOLERANCE = 1e-3
"""Largest difference of the task's metric, a fraction."""


def export(path: Path, to: str, out: Path | None = None, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Write and prove an artifact of a run; the answer is its manifest.

    Args:
        path: a finished run.
        to: the exporter's name.
        out: the new folder; `export/NAME` inside the run when None.

    Raises:
        UserError: the run is not finished, the exporter cannot do it, the folder is not empty, or the artifact
            does not answer like the trained model. Nothing is left behind.
    """
    exporter = exporters.get(to)()
    run = Run.open(path)
    exporter.refuse(run.recipe())
    target = (out or run.path / "export" / to).absolute()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"--out: {target} is not empty")
    prepare_libraries()
    trained = load(run.path, reporter)
    splits = load_splits(trained.recipe.data, trained.task, reporter)
    result = run.result()
    scored_on = "test" if result["test"] else "validation"
    if splits.digest != result["data"]["digest"]:
        raise UserError(f"export: the data of {path} has changed since it was trained; the proof needs its rows")
    scored = splits.named()[scored_on]
    with tempfile.TemporaryDirectory() as scratch, atomic.new_folder(target) as part:
        reporter.note(f"the trained model answers {len(scored)} rows")
        case = Path(scratch, "case.json")
        compared = _compared(trained, splits.validation)
        before, largest = _ask(trained, compared, scored, exporter.loader(trained), case)
        tolerance = LOGIT_TOLERANCE * (1.0 if trained.task.own_head else max(1.0, largest))
        _refuse_unless_loaded(before, result[scored_on], trained)
        reporter.note(f"writing {to}")
        exporter.write(trained, part)
        reporter.note("a fresh process loads it and answers the same rows")
        answer = _fresh_process(case, part)
        _refuse_unless_equal(to, before, answer, trained, tolerance)
        manifest = {
            "exporter": to,
            "base": {"id": trained.base.source, "sha256": trained.base.sha256},
            "recipe": trained.recipe.name,
            "digest": trained.recipe.digest,
            "dtype": "float32",
            "compared_rows": len(compared),
            "max_logit_error": answer["max_error"],
            "largest_logit": largest,
            "tolerance": tolerance,
            "scored_rows": len(scored),
            "scored_on": scored_on,
            "metric": trained.task.primary,
            "trained": before[trained.task.primary],
            "exported": answer["metrics"][trained.task.primary],
            "versions": {n: metadata.version(n) for n in ("pefttools", "torch", "transformers", "peft", "safetensors")},
        }
        atomic.write_json(part / "manifest.json", manifest)
    return {**manifest, "folder": str(target)}


def _compared(trained: Trained, rows: list[Row]) -> list[Row]:
    """As many of the rows as have no more logits than can be kept."""
    (first, *_), _ = verify.answers(trained.model, trained.task, rows[:1], trained.base.tokenizer)
    return rows[: min(COMPARED_ROWS, max(4, COMPARED_VALUES // first.numel()))]


def _ask(
    trained: Trained, rows: list[Row], scored: list[Row], loader: Mapping[str, str], case: Path
) -> tuple[dict[str, Any], float]:
    """Write the case: rows and the trained model's logits on them.

    Answers its metrics on the scored rows, and its largest logit.
    """
    import torch

    logits = verify.exact_logits(trained.model, trained.task, rows, trained.base.tokenizer)
    torch.save([row.clone() for row in logits], case.with_suffix(".pt"))
    _, said = verify.answers(trained.model, trained.task, scored, trained.base.tokenizer, keep=False)
    about = {
        "task": trained.task.as_dict(),
        "loader": dict(loader),
        "config": json.loads(json.dumps(trained.task.config_values())),
        "rows": rows,
        "scored": scored,
        "threads": torch.get_num_threads(),
    }
    case.write_text(json.dumps(about, ensure_ascii=False), "utf-8")
    largest = max(float(row.abs().max()) for row in logits)
    return trained.task.metrics(said, [trained.task.reference(row) for row in scored]), largest


def _fresh_process(case: Path, folder: Path) -> dict[str, Any]:
    answer = case.with_name("answer.json")
    command = [sys.executable, "-m", verify.__name__, str(case), str(folder), str(answer)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"export: the written folder does not load in a fresh process: {reason}")
    return json.loads(answer.read_text("utf-8"))


def _refuse_unless_loaded(before: Mapping[str, Any], recorded: Mapping[str, Any], trained: Trained) -> None:
    """The model that was loaded must score what the run recorded when it was trained."""
    name = trained.task.primary
    if not abs(before[name] - recorded[name]) <= METRIC_TOLERANCE:
        raise UserError(
            f"export: the run's own model scores {name} {before[name]:.4f}, but {recorded[name]:.4f} was recorded"
            " when it was trained; its adapter folder is damaged"
        )


def _refuse_unless_equal(
    to: str, before: Mapping[str, Any], answer: Mapping[str, Any], trained: Trained, tolerance: float
) -> None:
    name = trained.task.primary
    problems = [f"export: {problem}" for problem in answer["problems"]]
    if not answer["max_error"] <= tolerance:  # a NaN is refused too
        problems.append(
            f"export: the {to} model's logits differ from the trained model's by up to {answer['max_error']:.3g};"
            f" allowed are {tolerance:g}"
        )
    if not abs(answer["metrics"][name] - before[name]) <= METRIC_TOLERANCE:
        problems.append(f"export: {name} is {answer['metrics'][name]:.4f}, the trained model's {before[name]:.4f}")
    if problems:
        raise UserError(*problems, "export: the artifact was thrown away")
