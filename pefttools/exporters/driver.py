"""Exporting a finished run as an artifact that is verified before its folder appears.

The trained model predicts the rows that the run was scored on, which are in its folder. The artifact is written to a
temporary folder, and a new process loads it and predicts the same rows. If the differences exceed the tolerance, the
artifact is deleted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import atomic, hashes, subprocesses
from pefttools.bases.loading import prepare_libraries
from pefttools.errors import UserError
from pefttools.exporters import card, exporters, verify, writing
from pefttools.exporters.base import EXACT, METRIC, ROUNDED_METRIC, Exporter, apart
from pefttools.exporters.proof import Proof
from pefttools.recipe.overrides import parsed
from pefttools.reporter import SILENT, Reporter
from pefttools.training import calibrated
from pefttools.training.own_rows import own_rows
from pefttools.training.run import Run, load, write_recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.training.own_rows import ScoredRows
    from pefttools.training.run import Trained

MARK = "# The recipe of the trained model; `pefttools predict` on this folder reads rows by it."
PROVING = ("pefttools.exporters.proving",)
"""Modules that the verifying process imports while this one still computes."""
MANIFEST = "manifest.json"
LIBRARIES = ("pefttools", "torch", "transformers", "peft", "safetensors")


def export(
    path: Path,
    to: str,
    out: Path | None = None,
    reporter: Reporter = SILENT,
    settings: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write and verify an artifact of a run; returns its manifest.

    Args:
        path: a finished run.
        to: the exporter's name.
        out: the new folder; `export/NAME` inside the run when None.
        settings: KEY=VALUE of the exporter (`dtype=bfloat16`).
        overwrite: replace an artifact that is in the folder, once the new one is verified.

    Raises:
        UserError: the run is not finished, the exporter does not support it, the folder is not empty, the disk is full,
            or the artifact's outputs are not those of the trained model. Nothing is left behind.
    """
    exporter = configured(to, settings)
    run = Run.open(path)
    exporter.refuse(run.recipe())
    target = (out or run.path / "export" / to).absolute()
    if not (target / MANIFEST).is_file():
        atomic.refuse_unless_empty(target)
    elif not overwrite:
        raise UserError(f"--out: {target} is not empty: it has an artifact; name another folder, or add --overwrite")
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
        raise UserError(f"export: {target} cannot be written: {error}; its files were removed") from error
    return {**manifest, "folder": str(target)}


def configured(to: str, settings: Sequence[str]) -> Exporter:
    """The exporter of that name with these settings. Raises UserError when the name or a setting is invalid."""
    exporters.get(to)
    values, problems = parsed(settings)
    exporter, found = exporters.parse({**values, "name": to}, f"--to {to}")
    if exporter is None or problems:
        raise UserError(*problems, *found)
    return exporter


def _written(run: Run, exporter: Exporter, part: Path, case: Path, reporter: Reporter) -> dict[str, Any]:
    """Write the artifact into the folder `part` and verify it; returns the manifest."""
    trained = load(run.path, reporter)
    result = run.result()
    scored = own_rows(run, trained.task, reporter)
    reporter.note(f"the trained model predicts {len(scored.rows)} rows")
    proof = Proof.of(trained, scored.rows)
    _refuse_unless_loaded(run, proof, result[scored.split])
    loaded_facts = verify.loaded_facts(trained.model, trained.base.tokenizer, list(trained.task.config_values()))
    model, facts = exporter.prepare(trained, proof)
    expected, errors = _rounded(exporter, model, proof)
    texts = proof.texts if expected is proof.logits else proof.texts_of(model)
    settings = writing.settings_of(trained.task, model, proof.tokenizer)
    reporter.note(f"writing {exporter.name}")
    write_recipe(part / "recipe.yaml", trained.recipe, MARK)
    exporter.write(model, proof, part)
    if settings is not None:
        settings.save_pretrained(part)
    about = {"exporter": exporter.as_dict(), "facts": loaded_facts, "config": list(trained.task.config_values())}
    about |= {"text_rows": proof.text_rows, "texts": texts}
    about["text_settings"] = writing.text_settings(proof.tokenizer, settings)
    _write_case(case, {**about, "rows": proof.rows, "scored": proof.scored}, proof.logits, expected)
    reporter.note("a new process loads it and predicts the same rows")
    found = _verified(case, part)
    tolerance = exporter.tolerance(proof.scale)
    _refuse_unless_equal(exporter, proof, found, tolerance)
    manifest = _manifest(trained, exporter, proof, scored, found) | {
        **errors,
        "answers_in_text": len(texts),
        "tolerance": tolerance,
        **facts,
    }
    if calibration := calibrated.read(run.path, run.adapter):
        calibration.of_artifact.write(part, None)
        manifest |= {"temperature": calibration.temperature}
    atomic.write_json(part / MANIFEST, manifest)
    hashes.write(part, [file for file in part.rglob("*") if file.is_file()])
    card.write(part, trained, exporter, result, manifest)
    return manifest


def _manifest(
    trained: Trained, exporter: Exporter, proof: Proof, scored: ScoredRows, found: Mapping[str, Any]
) -> dict[str, Any]:
    """The description of the artifact and the results of its comparison with the trained model.

    Args:
        found: the results of the process that loaded the artifact.
    """
    return {
        "exporter": exporter.name,
        "settings": exporter.model_dump(mode="json"),
        "base": {
            "id": trained.base.source,
            "sha256": trained.base.source_sha256 or trained.base.sha256,
            "quantize": trained.recipe.base.quantize,
        },
        "recipe": trained.recipe.name,
        "digest": trained.recipe.digest,
        "dtype": exporter.rounds_to,
        "compared_rows": len(proof.rows),
        "max_logit_error": found["max_logit_error"],
        "loaded_error": found["loaded_error"],
        "largest_logit": proof.largest,
        "scored_rows": len(scored.rows),
        "scored_on": scored.split,
        "metric": proof.metric,
        "trained": proof.metrics[proof.metric],
        "exported": found["metrics"][proof.metric],
        **found["facts"],
        "head": list(trained.base.new),
        "task": trained.task.as_dict(),
        "config": {**trained.task.config_values(), "pad_token_id": proof.pad_token_id},
        "versions": {name: metadata.version(name) for name in (*LIBRARIES, *exporter.libraries)},
    }


def _rounded(exporter: Exporter, model: nn.Module, proof: Proof) -> tuple[list[Tensor], dict[str, float]]:
    """The expected logits of the artifact, and the errors of merging and rounding; rounds `model` in place.

    Raises:
        UserError: merging or rounding changes the logits by more than the tolerance.
    """
    errors: dict[str, float] = {}
    expected = proof.logits
    if model is not proof.trained.model:
        merged = proof.logits_of(model)
        errors["merge_error"] = verify.gap(merged, proof.logits)
        quantised = proof.trained.recipe.base.quantize
        if not exporter.approximates and not quantised:
            _refuse_beyond(exporter, errors["merge_error"], EXACT * proof.scale)
        if exporter.approximates or quantised:
            expected = merged
    if exporter.rounds_to != "float32":
        exporter.round(model)
        before, expected = expected, proof.logits_of(model)
        errors["rounding_error"] = verify.gap(expected, before)
        allowed = exporter.roundings[exporter.rounds_to] * max(1.0, proof.largest)
        _refuse_beyond(exporter, errors["rounding_error"], allowed, "; choose a more precise dtype")
    return expected, errors


def _refuse_beyond(exporter: Exporter, error: float, tolerance: float, advice: str = "") -> None:
    if not error <= tolerance:  # a NaN is refused too
        raise UserError(
            f"export: the {exporter.name} model's logits differ from the trained model's by up to {error:.3g};"
            f" at most {tolerance:.3g} is allowed",
            f"export: nothing was written{advice}",
        )


def _write_case(case: Path, about: dict[str, Any], trained: list[Tensor], written: list[Tensor]) -> None:
    """Write the inputs and the expected outputs for the verifying process."""
    import torch

    torch.save({"trained": trained, "written": written}, case.with_suffix(".pt"))
    case.write_text(json.dumps({**about, "threads": torch.get_num_threads()}, ensure_ascii=False), "utf-8")


def _verified(case: Path, folder: Path) -> dict[str, Any]:
    """Run the verifying process; returns its results. Raises UserError when it fails."""
    process = subprocesses.started(verify.main, case, folder)
    try:
        process.join()
    except BaseException:
        process.terminate()
        raise
    file = verify.answer_file(case)
    found = json.loads(file.read_text("utf-8")) if file.is_file() else {"failed": f"exit code {process.exitcode}"}
    if "failed" in found:
        raise UserError(f"export: a new process cannot load the artifact: {found['failed']}; nothing was written")
    return found


def _refuse_unless_loaded(run: Run, proof: Proof, recorded: Mapping[str, Any]) -> None:
    """Raises UserError when the run's model, without its calibration, does not have the score that the run recorded."""
    name, scored = proof.metric, proof.metrics[proof.metric]
    if (calibration := calibrated.read(run.path, run.adapter)) and calibration.changes_predictions:
        plain = load(run.path, is_calibrated=False)
        scored = verify.scores(plain.model, plain.task, proof.scored, plain.base.tokenizer)[name]
    if not apart(proof.trained.task, scored, recorded[name]) <= METRIC:
        raise UserError(
            f"export: {name} of the run's model is {scored:.4f}, but the run recorded {recorded[name]:.4f}; its adapter"
            " folder is damaged, so train it again"
        )


def _refuse_unless_equal(exporter: Exporter, proof: Proof, found: Mapping[str, Any], tolerance: float) -> None:
    name = proof.metric
    problems = [f"export: {problem}" for problem in found["problems"]]
    if not found["loaded_error"] <= tolerance:  # a NaN is refused too
        problems.append(
            f"export: the loaded {exporter.name} model's logits differ from the expected ones by up to"
            f" {found['loaded_error']:.3g}; at most {tolerance:.3g} is allowed"
        )
    rows = len(proof.scored)
    quantised = max(ROUNDED_METRIC, 1 / rows) if proof.trained.recipe.base.quantize else 0.0
    allowed = float("inf") if exporter.approximates else max(quantised, exporter.metric_tolerance(rows))
    if not apart(proof.trained.task, found["metrics"][name], proof.metrics[name]) <= allowed:
        problems.append(
            f"export: {name} of the artifact is {found['metrics'][name]:.4f}, that of the trained model is"
            f" {proof.metrics[name]:.4f}"
        )
    if problems:
        raise UserError(*problems, "export: the artifact was deleted")
