"""A recipe trained from beginning to end: before, the loop, the best on validation, then test, once.

The order matters: everything that can be refused is checked before the run folder appears, and every random
number is drawn after the seed is set, the head's start included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import atomic
from pefttools.augmentations.base import added_digest
from pefttools.bases import loading
from pefttools.bases.parameters import count_parameters
from pefttools.errors import UserError
from pefttools.objectives.base import need_plain_autograd, reuse_features
from pefttools.recipe.recipes import Recipe
from pefttools.reporter import SILENT, Reporter
from pefttools.training import checkpoint, evaluation, optimizer_setup, results, speedups
from pefttools.training.baseline import baseline_scores
from pefttools.training.checkpoint import Progress
from pefttools.training.feature_cache import CachedFeatures, load_or_compute
from pefttools.training.features import FeatureExtractor, Features
from pefttools.training.loop import Loop, num_steps
from pefttools.training.preparation import Prepared, prepare
from pefttools.training.process import accelerator_for, hardware, peak_bytes, stop_signals
from pefttools.training.run import Run

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(
    recipe: Recipe, out: Path, *, resume: bool = False, reporter: Reporter = SILENT, score_test: bool = True
) -> dict[str, Any]:
    """Train and answer `result.json`.

    Args:
        out: the run folder; new or empty, unless `resume`.
        resume: go on with the run that is there, or answer its result when it is finished.
        score_test: whether test rows are scored at the end; where not, what is told of them is told of validation rows.

    Raises:
        UserError: the recipe, its data or its base cannot work; nothing was written.
        Interrupted: the user stopped the run; it can be resumed.
    """
    run = Run(out.absolute())
    run.refuse_unless_free(recipe.digest, resume)
    if run.finished:
        reporter.note(f"{out} is finished; nothing to do")
        return run.result()
    loading.prepare_libraries()
    last = checkpoint.latest(run.checkpoints)
    if resume and last is None:
        reporter.note(f"{out} holds no checkpoint; starting from the beginning")
    accelerator = accelerator_for(recipe, run, checkpoint.step_of(last) + 1 if last else 0)
    ready = prepare(recipe, reporter, accelerator.device)
    with run.only_one() if accelerator.is_main_process else nullcontext():
        return _in_folder(ready, run, recipe.digest, accelerator, reporter, score_test)


def _in_folder(
    ready: Prepared, run: Run, digest: str, accelerator: Accelerator, reporter: Reporter, score_test: bool
) -> dict[str, Any]:
    """Make the folder and train in it; a run that fails before its first checkpoint leaves nothing."""
    from pefttools.training.trackers import hyperparameters

    if accelerator.is_main_process:
        run.create(ready.recipe)
    accelerator.wait_for_everyone()
    if not run.exists:
        raise UserError(f"--out: {run.path} is not the same folder for all processes; it must be on a shared disk")
    try:
        accelerator.init_trackers("pefttools", config={**hyperparameters(ready.recipe), "digest": digest})
        with stop_signals() as should_stop:
            return _run(ready, run, digest, accelerator, should_stop, reporter, score_test)
    except UserError:
        if accelerator.is_main_process and checkpoint.latest(run.checkpoints) is None:  # nothing of worth was made
            run.forget()
        raise
    finally:
        accelerator.end_training()


def _run(
    ready: Prepared,
    run: Run,
    digest: str,
    accelerator: Accelerator,
    should_stop: Any,
    reporter: Reporter,
    score_test: bool,
) -> dict[str, Any]:
    from accelerate.utils import set_seed

    recipe, model, task = ready.recipe, ready.model, ready.recipe.task

    def score(name: str, title: str, generate: bool = False, features: Features | None = None) -> evaluation.Scored:
        rows, encoded = getattr(ready.splits, name), ready.encoded[name]
        return evaluation.score(
            model, task, encoded, rows, ready.base.tokenizer, title, accelerator, reporter, generate, features
        )

    params = count_parameters(model, ready.base.head)
    last = checkpoint.latest(run.checkpoints)
    measured = "test" if ready.splits.test and score_test else "validation"
    simplest = task.majority_baseline(ready.splits.train, ready.splits.named()[measured])
    before = {} if last else baseline_scores(ready, measured, accelerator, reporter)
    set_seed(recipe.seed, device_specific=True)  # ranks draw their own dropout
    if recipe.strategy.trains:

        def validate(features: Features | None) -> dict[str, Any]:
            return score("validation", "validation", features=features).metrics

        progress = _fit(ready, run, last, before, validate, accelerator, should_stop, reporter)
    else:
        progress = Progress(before=before)
    validation = score("validation", "validation, best", measured == "validation")
    test = score("test", "test", True) if measured == "test" else None
    if accelerator.is_main_process:
        with atomic.new_folder(run.adapter) as part:
            recipe.strategy.save(model, part)
        run.save_rows(ready.splits, task)
        run.save_predictions(ready.splits, measured, task, (test or validation).predictions)
        epochs = progress.step * recipe.train.batch_size / len(ready.encoded["train"])
        result = {
            **results.of_outcome(run, recipe, digest, params, validation.metrics, test.metrics if test else None),
            **results.of_recipe(recipe),
            "base": {"id": ready.base.source, "sha256": ready.base.sha256},
            "data": {**results.of_rows(ready.splits), "augmented": sum(map(len, ready.added.values()))},
            "facts": recipe.strategy.facts(model),
            "before": {**progress.before, "majority": simplest, "measured_on": measured},
            "train": {
                **results.of_progress(progress, epochs),
                "peak_bytes": peak_bytes(),
                "precision": accelerator.mixed_precision.replace("no", "fp32"),
                "processes": accelerator.num_processes,
                "feature_cache": progress.features or None,
            },
            "versions": results.versions(),
            "hardware": hardware(accelerator),
        }
        results.write(run, result)
        if not recipe.train.keep_checkpoints:
            run.forget_checkpoints()
    accelerator.wait_for_everyone()
    return run.result()


def _fit(
    ready: Prepared,
    run: Run,
    last: Path | None,
    before: dict[str, Any],
    validate: Callable[[Features | None], dict[str, Any]],
    accelerator: Accelerator,
    should_stop: Any,
    reporter: Reporter,
) -> Progress:
    """Train from the last checkpoint, or from the beginning, and leave the model with its best weights."""
    recipe, model, strategy = ready.recipe, ready.model, ready.recipe.strategy
    prepared, optimizer = accelerator.prepare(model, optimizer_setup.build(model, strategy, recipe.train))
    conditions = {
        "data": ready.splits.digest,
        "augmented rows": added_digest(ready.added),
        "base": ready.base.sha256,
        "penalty rows": ready.penalties.digest,
        "labels": list(recipe.task.config_values().get("label2id", {})),
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
    }
    total = num_steps(recipe.train, len(ready.encoded["train"]))
    fresh = Progress(before=before, conditions=conditions)
    acting = ready.objectives
    progress = checkpoint.load(last, model, optimizer, strategy, acting, total, conditions) if last else fresh
    run.rewind(progress.step)
    bf16 = accelerator.mixed_precision == "bf16"
    device, plain = accelerator.device.type, need_plain_autograd(recipe.objectives)
    with ready.frozen.in_eval_mode(), speedups.steps(model, recipe.train, device, bf16, ready.last, plain):
        kept = _features(ready, progress, accelerator, reporter)
        loop = Loop(
            recipe, recipe.task, prepared, model, optimizer, ready.encoded["train"], ready.base.tokenizer, accelerator,
            run, lambda: validate(kept.sets.get("validation")), should_stop, reporter, ready.penalties, acting,
            progress, kept.sets.get("train"),
        )  # fmt: skip
        if last:
            checkpoint.load_random_states(last, accelerator.process_index)
        progress = loop.fit()
    checkpoint.load_best(run.checkpoints, progress.best_step, model)
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)  # what is reported is what ships: fp32, no autocast
    return progress


def _features(ready: Prepared, progress: Progress, accelerator: Accelerator, reporter: Reporter) -> CachedFeatures:
    """What frozen blocks make of the rows, as this run had it before if it was interrupted; the time is the loop's."""
    started = time.monotonic()
    if not reuse_features(ready.recipe.objectives):
        return CachedFeatures()
    recipe, wanted = ready.recipe, None if progress.features is None else progress.features.get("rows", ())
    extractor = FeatureExtractor(
        ready.model, ready.frozen, recipe.task, ready.base, accelerator.mixed_precision, ready.last
    )
    kept = load_or_compute(recipe.train, extractor, ready.encoded, reporter, wanted)
    progress.features = kept.facts
    progress.seconds += time.monotonic() - started
    return kept
