"""A finished run to an artifact that is proven before it appears.

The trained model, as it was trained, answers the rows that the run was scored on, which are in its folder. The artifact
is written beside its place, loaded in a fresh process and asked the same. Beyond tolerance it is thrown away.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import atomic, subprocesses
from pefttools.bases.loading import prepare_libraries
from pefttools.errors import UserError
from pefttools.exporters import card, exporters, verify, writing
from pefttools.exporters.base import EXACT, METRIC, ROUNDED_METRIC, Exporter, apart
from pefttools.exporters.proof import Proof
from pefttools.recipe.overrides import parsed
from pefttools.reporter import SILENT, Reporter
from pefttools.training.own_rows import own_rows
from pefttools.training.run import Run, load, write_recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.training.own_rows import ScoredRows
    from pefttools.training.run import Trained

MARK = "# What was trained, by pefttools; `pefttools predict` on this folder reads rows as this says."
PROVING = ("pefttools.exporters.proving",)
"""What the fresh process imports while this one still answers."""
LIBRARIES = ("pefttools", "torch", "transformers", "peft", "safetensors")


def export(
    path: Path, to: str, out: Path | None = None, reporter: Reporter = SILENT, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Write and prove an artifact of a run; the answer is its manifest.

    Args:
        path: a finished run.
        to: the exporter's name.
        out: the new folder; `export/NAME` inside the run when None.
        settings: KEY=VALUE of the exporter (`dtype=bfloat16`).

    Raises:
        UserError: the run is not finished, the exporter cannot do it, the folder is not empty, the disk is full, or the
            artifact does not answer like the trained model. Nothing is left behind.
    """
    exporter = configured(to, settings)
    run = Run.open(path)
    exporter.refuse(run.recipe())
    target = (out or run.path / "export" / to).absolute()
    atomic.refuse_unless_empty(target)
    subprocesses.begin(PROVING)
    prepare_libraries()
    try:
        with tempfile.TemporaryDirectory() as scratch, atomic.new_folder(target) as part:
            manifest = _written(run, exporter, part, Path(scratch, "case.json"), reporter)
    except Exception as error:
        if out is None:
            with suppress(OSError):
                target.parent.rmdir()  # the run's `export`, if nothing else is in it
        if not atomic.of_disk(error):
            raise
        raise UserError(f"export: {target} cannot be written: {error}; nothing is left of it") from error
    return {**manifest, "folder": str(target)}


def configured(to: str, settings: Sequence[str]) -> Exporter:
    """The exporter of that name with these settings. Raises UserError."""
    exporters.get(to)
    values, problems = parsed(settings)
    exporter, found = exporters.parse({**values, "name": to}, f"--to {to}")
    if exporter is None or problems:
        raise UserError(*problems, *found)
    return exporter


def _written(run: Run, exporter: Exporter, part: Path, case: Path, reporter: Reporter) -> dict[str, Any]:
    """Fill the folder and prove it; the manifest."""
    trained = load(run.path, reporter)
    result = run.result()
    scored = own_rows(run, trained.task, reporter)
    reporter.note(f"the trained model answers {len(scored.rows)} rows")
    proof = Proof.of(trained, scored.rows)
    _refuse_unless_loaded(proof, result[scored.split])
    said = verify.said_by(trained.model, trained.base.tokenizer, list(trained.task.config_values()))
    model, facts = exporter.prepare(trained, proof)
    expected, errors = _rounded(exporter, model, proof)
    texts = proof.texts if expected is proof.logits else proof.answers_in_text(model)
    settings = writing.settings_of(trained.task, model, proof.tokenizer)
    reporter.note(f"writing {exporter.name}")
    write_recipe(part / "recipe.yaml", trained.recipe, MARK)
    exporter.write(model, proof, part)
    if settings is not None:
        settings.save_pretrained(part)
    about = {"exporter": exporter.as_dict(), "said": said, "config": list(trained.task.config_values())}
    about |= {"asked": proof.asked, "texts": texts, "carried": writing.carried(proof.tokenizer, settings)}
    _state(case, {**about, "rows": proof.rows, "scored": proof.scored}, proof.logits, expected)
    reporter.note("a fresh process loads it and answers the same rows")
    answer = _fresh_process(case, part)
    tolerance = exporter.tolerance(proof.scale)
    _refuse_unless_equal(exporter, proof, answer, tolerance)
    manifest = _manifest(trained, exporter, proof, scored, answer) | {
        **errors,
        "answers_in_text": len(texts),
        "tolerance": tolerance,
        **facts,
    }
    atomic.write_json(part / "manifest.json", manifest)
    card.write(part, trained, exporter, result, manifest)
    return manifest


def _manifest(
    trained: Trained, exporter: Exporter, proof: Proof, scored: ScoredRows, answer: Mapping[str, Any]
) -> dict[str, Any]:
    """What the artifact is, and how it was compared with the trained model.

    Args:
        answer: the results of the fresh process that loaded the artifact.
    """
    return {
        "exporter": exporter.name,
        "settings": exporter.model_dump(mode="json"),
        "base": {"id": trained.base.source, "sha256": trained.base.sha256, "quantize": trained.recipe.base.quantize},
        "recipe": trained.recipe.name,
        "digest": trained.recipe.digest,
        "dtype": exporter.rounds_to,
        "compared_rows": len(proof.rows),
        "max_logit_error": answer["max_logit_error"],
        "loaded_error": answer["loaded_error"],
        "largest_logit": proof.largest,
        "scored_rows": len(scored.rows),
        "scored_on": scored.split,
        "metric": proof.metric,
        "trained": proof.metrics[proof.metric],
        "exported": answer["metrics"][proof.metric],
        **answer["facts"],
        "head": list(trained.base.new),
        "task": trained.task.as_dict(),
        "config": {**trained.task.config_values(), "pad_token_id": proof.pad_token_id},
        "versions": {name: metadata.version(name) for name in (*LIBRARIES, *exporter.libraries)},
    }


def _rounded(exporter: Exporter, model: nn.Module, proof: Proof) -> tuple[list[Tensor], dict[str, float]]:
    """The logits that the written artifact must give, and what merging and rounding cost; `model` comes out rounded.

    Raises:
        UserError: merging changed more than rounding in float64 can.
    """
    errors: dict[str, float] = {}
    expected = proof.logits
    if model is not proof.trained.model:
        answers = proof.answers(model)
        errors["merge_error"] = verify.gap(answers, proof.logits)
        quantised = proof.trained.recipe.base.quantize
        if not exporter.approximates and not quantised:
            _refuse_beyond(exporter, errors["merge_error"], EXACT * proof.scale)
        if exporter.approximates or quantised:
            expected = answers
    if exporter.rounds_to != "float32":
        exporter.round(model)
        before, expected = expected, proof.answers(model)
        errors["rounding_error"] = verify.gap(expected, before)
        allowed = exporter.roundings[exporter.rounds_to] * max(1.0, proof.largest)
        _refuse_beyond(exporter, errors["rounding_error"], allowed, "; a finer dtype rounds less")
    return expected, errors


def _refuse_beyond(exporter: Exporter, error: float, tolerance: float, cure: str = "") -> None:
    if not error <= tolerance:  # a NaN is refused too
        raise UserError(
            f"export: the {exporter.name} model's logits differ from the trained model's by up to {error:.3g};"
            f" allowed are {tolerance:.3g}",
            f"export: nothing was written{cure}",
        )


def _state(case: Path, about: dict[str, Any], trained: list[Tensor], written: list[Tensor]) -> None:
    """Write what the fresh process is asked, and the answers it is held to."""
    import torch

    torch.save({"trained": trained, "written": written}, case.with_suffix(".pt"))
    case.write_text(json.dumps({**about, "threads": torch.get_num_threads()}, ensure_ascii=False), "utf-8")


def _fresh_process(case: Path, folder: Path) -> dict[str, Any]:
    process = subprocesses.started(verify.main, case, folder)
    try:
        process.join()
    except BaseException:
        process.terminate()
        raise
    file = verify.answer_file(case)
    answer = json.loads(file.read_text("utf-8")) if file.is_file() else {"failed": f"exit code {process.exitcode}"}
    if "failed" in answer:
        raise UserError(f"export: the written folder does not load in a fresh process: {answer['failed']}")
    return answer


def _refuse_unless_loaded(proof: Proof, recorded: Mapping[str, Any]) -> None:
    """The model that was loaded must score what the run recorded when it was trained."""
    name, scored = proof.metric, proof.metrics[proof.metric]
    if not apart(proof.trained.task, scored, recorded[name]) <= METRIC:
        raise UserError(
            f"export: the run's own model scores {name} {scored:.4f}, but {recorded[name]:.4f} was recorded"
            " when it was trained; its adapter folder is damaged"
        )


def _refuse_unless_equal(exporter: Exporter, proof: Proof, answer: Mapping[str, Any], tolerance: float) -> None:
    name = proof.metric
    problems = [f"export: {problem}" for problem in answer["problems"]]
    if not answer["loaded_error"] <= tolerance:  # a NaN is refused too
        problems.append(
            f"export: the loaded {exporter.name} model's logits differ from what they must be by up to"
            f" {answer['loaded_error']:.3g}; allowed are {tolerance:.3g}"
        )
    rows = len(proof.scored)
    quantised = max(ROUNDED_METRIC, 1 / rows) if proof.trained.recipe.base.quantize else 0.0
    allowed = float("inf") if exporter.approximates else max(quantised, exporter.metric_tolerance(rows))
    if not apart(proof.trained.task, answer["metrics"][name], proof.metrics[name]) <= allowed:
        problems.append(
            f"export: {name} is {answer['metrics'][name]:.4f}, the trained model's {proof.metrics[name]:.4f}"
        )
    if problems:
        raise UserError(*problems, "export: the artifact was thrown away")
