"""A training run from beginning to end: baseline, training loop, best weights on validation, then test, once.

Everything that can be refused is checked before the run folder appears, and every random number, those of the head's
initial weights included, is drawn after the seed is set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import atomic, extras
from pefttools.augmentations.base import added_digest
from pefttools.bases import loading
from pefttools.bases.parameters import count_parameters
from pefttools.device import peak_bytes, precision_of
from pefttools.errors import Interrupted, Paused, UserError
from pefttools.objectives._composition import need_plain_autograd, reuse_features
from pefttools.recipe import needed_packages
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import SILENT, Reporter
from pefttools.training import checkpoint, launch, optimizer_setup, results, resumption, speedups, stack
from pefttools.training.backward_transfer import KEY as TESTS
from pefttools.training.backward_transfer import own_score
from pefttools.training.baseline import baseline_scores
from pefttools.training.callbacks import Callbacks
from pefttools.training.checkpoint import Progress
from pefttools.training.evaluation import Evaluator, Scored
from pefttools.training.feature_cache import load_or_compute
from pefttools.training.features import FeatureExtractor, Features
from pefttools.training.loop import Loop
from pefttools.training.micro_batches import MicroBatches, num_steps
from pefttools.training.preparation import Prepared, prepare
from pefttools.training.process import accelerator_for, finish, for_steps, hardware, stop_signals
from pefttools.training.run import Run
from pefttools.training.selection import Selection, needs_texts

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
    score_test: bool = True,
    stop_after: int | None = None,
    stop_when: Callable[[], bool] | None = None,
    callbacks: Sequence[object] = (),
) -> dict[str, Any]:
    """Train a recipe; returns the content of `result.json`.

    Args:
        out: the run folder; new or empty, unless `resume`.
        resume: continue the run in the folder, or return its result if it is finished.
        overwrite: remove a run that is in the folder, once everything that can be refused has been checked.
        score_test: whether to score the test rows at the end; if not, the result reports the validation rows instead.
        stop_after: the number of steps after which the run pauses; a later call resumes it.
        stop_when: called after every evaluation; the run pauses when it returns True.
        callbacks: objects with methods of `callbacks.Callback`, called while the run trains.

    Raises:
        UserError: something is wrong with the recipe, its data or its base; nothing was written.
        EnvironmentFault: memory ran out, the folder cannot be written, or another process has ended; a run with a
            checkpoint can be resumed.
        Interrupted: the user stopped the run; it can be resumed.
        Paused: the run was stopped by `stop_after` or `stop_when`.
    """
    run = Run(out.absolute())
    run.refuse_unless_free(recipe, resume, overwrite)
    if run.finished and not overwrite:
        reporter.note(f"the run in {out} is already finished; there is nothing to do")
        return Run.open(run.path).result()
    needed_packages.refuse_missing(recipe)
    if recipe.train.trackers is None and extras.missing(extras.EXTRAS["tensorboard"]):
        reporter.note(f"no log for TensorBoard is written; to have one, run `{extras.command(['tensorboard'])}`")
    loading.prepare_libraries()
    last, damaged = (None, {}) if overwrite else resumption.newest_intact(run)
    if resume and last is None:
        reporter.note(f"there is no checkpoint in {out}; training starts from the beginning")
    accelerator = accelerator_for(recipe, run, checkpoint.step_of(last) + 1 if last else 0)
    with launch.ending_with_others(run):
        prepared = prepare(recipe, reporter, accelerator.device)
        with run.only_one() if accelerator.is_main_process else nullcontext():
            resumption.set_aside(damaged, last, accelerator, reporter)
            if overwrite and accelerator.is_main_process:
                run.overwrite()
            training = Training(
                prepared, run, recipe.digest, accelerator, reporter, score_test, stop_after, stop_when,
                Callbacks(tuple(callbacks)),
            )  # fmt: skip
            return training.in_folder()


@dataclass(frozen=True)
class Training:
    """A prepared recipe and the run folder that it is trained in."""

    prepared: Prepared
    run: Run
    digest: str
    """Digest of the recipe as the user wrote it."""
    accelerator: Accelerator
    reporter: Reporter
    score_test: bool
    stop_after: int | None = None
    stop_when: Callable[[], bool] | None = None
    callbacks: Callbacks = field(default_factory=Callbacks)

    @property
    def measured_on(self) -> str:
        """The split on which the run's scores are reported."""
        return "test" if self.prepared.splits.test and self.score_test else "validation"

    def in_folder(self) -> dict[str, Any]:
        """Create the folder and train in it; a run that fails before its first checkpoint removes the folder again."""
        from pefttools.training.trackers import hyperparameters

        run, recipe, accelerator = self.run, self.prepared.recipe, self.accelerator
        if accelerator.num_processes > 1:  # machines may have their files in different folders
            settings = {k: v for k, v in hyperparameters(recipe).items() if not k.startswith(("data.", "base.source"))}
            launch.refuse_disagreement({**settings, **self._conditions()})
        if accelerator.is_main_process:
            run.create(recipe)
        accelerator.wait_for_everyone()
        if not run.exists:
            raise UserError(
                f"--out: {run.path} is not the same folder for all processes; name a folder on a disk that they share"
            )
        try:
            accelerator.init_trackers("pefttools", config={**hyperparameters(recipe), "digest": self.digest})
            with stop_signals() as should_stop:
                return self._train_and_score(should_stop)
        except UserError:
            if accelerator.is_main_process and checkpoint.latest(run.checkpoints) is None:  # there is nothing to resume
                run.forget()
            raise
        except Exception as error:
            if not atomic.of_disk(error):
                raise
            raise resumption.disk_fault(run, error, accelerator.is_main_process) from error
        finally:
            finish(accelerator)

    def _train_and_score(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        from accelerate.utils import gather_object, set_seed

        from pefttools.nn import sharding

        recipe, measured = self.prepared.recipe, self.measured_on
        params = count_parameters(self.prepared.model, self.prepared.base.head)
        last = checkpoint.latest(self.run.checkpoints)
        before = {} if last else baseline_scores(self.prepared, measured, self.accelerator, self.reporter)
        if recipe.train.best_metric and recipe.strategy.trains and not last:
            Selection.of(recipe).check(before, recipe.task.extra_metrics, self.reporter)
        tests = self.prepared.tests
        if tests.runs and not last:
            before[TESTS] = tests.scores(self.prepared, self.accelerator, self.reporter, "before")
        set_seed(recipe.seed, device_specific=True)  # each process draws its own dropout
        progress = self._fit(last, before, should_stop) if recipe.strategy.trains else Progress(before=before)
        validation = self._score("validation", "validation, best", generate=measured == "validation")
        test = self._score("test", "test", generate=True) if measured == "test" else None
        after = tests.scores(self.prepared, self.accelerator, self.reporter, "after") if tests.runs else {}
        weight_bytes = gather_object([sharding.stored_bytes(self.prepared.model)])
        if recipe.train.shard:
            sharding.gather_trained(self.prepared.model, keep=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            ledger = self._ledger(progress.before.pop(TESTS, {}), after, test or validation) if tests.runs else None
            self._write(progress, params, weight_bytes, validation, test, ledger)
        self.accelerator.wait_for_everyone()
        return self.run.result()

    def _ledger(self, before: dict[str, Any], after: dict[str, Any], scored: Scored) -> dict[str, Any]:
        """The scores of the earlier runs' test rows before and after training, and this run's own."""
        prepared = self.prepared
        rows = prepared.splits.named()[self.measured_on]
        own = own_score(prepared.recipe.task, scored.metrics, scored.predictions, rows)
        return prepared.tests.ledger(prepared.recipe.task, before, after, own, self.reporter)

    def _score(self, name: str, title: str, generate: bool = False, features: Features | None = None) -> Scored:
        """Evaluate the model with its present weights on a split."""
        prepared = self.prepared
        evaluator = Evaluator(
            prepared.model, prepared.recipe.task, prepared.base.tokenizer, self.accelerator, self.reporter,
            prepared.layer,
        )  # fmt: skip
        return evaluator.score(prepared.encoded[name], prepared.splits.named()[name], title, generate, features)

    def _fit(self, last: Path | None, before: dict[str, Any], should_stop: Callable[[], bool]) -> Progress:
        """Train from the last checkpoint, or from the beginning; at the end the model has its best weights."""
        prepared, run, accelerator = self.prepared, self.run, self.accelerator
        recipe, model, strategy, acting = prepared.recipe, prepared.model, prepared.recipe.strategy, prepared.objectives
        optimizer = optimizer_setup.build(model, strategy, recipe.train)
        wrapped, optimizer = for_steps(accelerator, model, optimizer)
        conditions = self._conditions()
        total = num_steps(recipe.train, len(prepared.encoded["train"]))
        start = Progress(before=before, conditions=conditions)
        scaler, progress = accelerator.scaler, start
        if last:
            progress = checkpoint.load(last, model, optimizer, strategy, acting, total, conditions, scaler)
        run.rewind(progress.step)
        precision = precision_of(recipe.train.precision)
        device, plain = accelerator.device.type, need_plain_autograd(recipe.objectives)
        with (
            prepared.frozen.in_eval_mode(),
            speedups.steps(model, recipe.train, device, precision, prepared.last, plain),
        ):
            features, generate = self._features(progress), needs_texts(recipe)
            evaluated: set[int] = set()

            def must_pause() -> bool:
                is_after = self.stop_after is not None and progress.step >= self.stop_after
                return is_after or (self.stop_when is not None and progress.step in evaluated and self.stop_when())

            def validate() -> dict[str, Any]:
                evaluated.add(progress.step)
                return self._score("validation", "validation", generate, features.get("validation")).metrics

            encoded, tokenizer = prepared.encoded["train"], prepared.base.tokenizer
            batches = MicroBatches(
                recipe, wrapped, model, encoded, tokenizer, accelerator, features.get("train"), prepared.layer
            )
            loop = Loop(
                recipe, model, optimizer, batches, accelerator, run, validate, lambda: should_stop() or must_pause(),
                self.reporter, prepared.penalties, acting, progress, self.callbacks,
            )  # fmt: skip
            if last:
                checkpoint.load_random_states(last, accelerator.process_index)
            try:
                loop.fit()
            except Interrupted as error:
                raise (Paused(str(error), progress.step_seconds) if must_pause() else error) from None
        checkpoint.load_best(run.checkpoints, progress.best_step, model)
        # final scores are those of the saved model: in fp32, without autocast
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        return progress

    def _conditions(self) -> dict[str, Any]:
        """Facts that must not change between the start of a run and its resumption."""
        prepared = self.prepared
        return {
            "data": prepared.splits.digest,
            "augmented rows": added_digest(prepared.added),
            **({"replayed rows": added_digest(prepared.replayed)} if prepared.replayed else {}),
            "base": prepared.base.sha256,
            "penalty rows": prepared.penalties.digest,
            "labels": list(prepared.recipe.task.config_values().get("label2id", {})),
            "precision": self.accelerator.mixed_precision,
            "processes": self.accelerator.num_processes,
            "train.shard": prepared.recipe.train.shard,
        }

    def _features(self, progress: Progress) -> Mapping[str, Features]:
        """Cached outputs of the frozen blocks by split; a resumed run caches the splits that it cached before.

        The time counts as training time.
        """
        started, used = time.monotonic(), time.process_time()
        prepared, recipe = self.prepared, self.prepared.recipe
        if not reuse_features(recipe.objectives) or recipe.train.shard:
            return {}
        wanted = None if progress.features is None else progress.features.get("rows", ())
        precision = self.accelerator.mixed_precision
        extractor = FeatureExtractor(
            prepared.model, prepared.frozen, recipe.task, prepared.base, precision, prepared.last
        )
        cached = load_or_compute(recipe.train, extractor, prepared.encoded, self.reporter, wanted)
        progress.features = cached.facts
        progress.seconds += time.monotonic() - started
        progress.cpu_seconds += time.process_time() - used
        return cached.sets

    def _write(
        self,
        progress: Progress,
        params: dict[str, int],
        weight_bytes: list[int],
        validation: Scored,
        test: Scored | None,
        ledger: dict[str, Any] | None,
    ) -> None:
        """Write the adapter, rows, predictions and finally result.json."""
        prepared, run, accelerator, measured = self.prepared, self.run, self.accelerator, self.measured_on
        recipe, model, splits = prepared.recipe, prepared.model, prepared.splits
        with atomic.new_folder(run.adapter) as part:
            recipe.strategy.save(model, part)
        stack.save(prepared.earlier.frozen if prepared.earlier else (), run.path)
        run.save_rows(splits, recipe.task)
        run.save_predictions(splits, measured, recipe.task, (test or validation).predictions)
        majority = recipe.task.majority_baseline(splits.train, splits.named()[measured])
        epochs = progress.step * recipe.train.batch_size / len(prepared.encoded["train"])
        replayed = {path: len(rows) for path, rows in prepared.replayed.items()}
        added = {"augmented": sum(map(len, prepared.added.values())), **({"replayed": replayed} if replayed else {})}
        result = {
            **results.of_outcome(run, recipe, self.digest, params, validation.metrics, test.metrics if test else None),
            **results.of_recipe(recipe),
            "base": {"id": prepared.base.source, "sha256": prepared.base.sha256},
            "data": {**results.of_rows(splits), **added},
            "facts": recipe.strategy.facts(model),
            "before": {**progress.before, "majority": majority, "measured_on": measured},
            "train": {
                **results.of_progress(progress, epochs),
                "peak_bytes": peak_bytes(),
                "precision": accelerator.mixed_precision.replace("no", "fp32"),
                "processes": accelerator.num_processes,
                "weight_bytes": weight_bytes,
                "feature_cache": progress.features or None,
            },
            **({"ledger": ledger} if ledger else {}),
            "versions": results.versions(),
            "hardware": hardware(accelerator),
        }
        results.write(run, result)
        if not recipe.train.keep_checkpoints:
            run.forget_checkpoints()
