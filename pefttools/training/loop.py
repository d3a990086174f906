"""The training loop, on Accelerate.

In every optimizer step the loss is summed over the targets (the tokens or rows with a label) and divided by their
number over all micro-batches and processes. So 32 rows give the same gradient, up to rounding and dropout, as one
batch, as four of 8, or as 16 on each of two processes. Every process has the indices of all the step's rows and counts
their targets itself, without communication.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pefttools.errors import Interrupted, UserError
from pefttools.nn.sharding import whole
from pefttools.objectives._composition import Composed
from pefttools.recipe import schedule
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import Bar, Reporter
from pefttools.strategies.base import trained
from pefttools.training import checkpoint, loss_checks
from pefttools.training.callbacks import Callbacks, Evaluation, Step
from pefttools.training.checkpoint import Progress
from pefttools.training.loss_scale import Backward
from pefttools.training.memory_guard import MemoryGuard
from pefttools.training.micro_batches import MicroBatches
from pefttools.training.penalties import Penalties
from pefttools.training.run import Run
from pefttools.training.selection import Selection
from pefttools.training.step import Update

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer


WATCHED_STEPS = 5
"""Number of steps within which every trained tensor must get a gradient."""

Validate = Callable[[], Mapping[str, Any]]


@dataclass
class Loop:
    """The training loop and its state, `progress`."""

    recipe: Recipe
    model: nn.Module
    """The model without Accelerate's wrapper."""
    optimizer: Optimizer
    batches: MicroBatches
    accelerator: Accelerator
    run: Run
    validate: Validate
    should_stop: Callable[[], bool]
    reporter: Reporter
    penalties: Penalties
    objectives: Composed
    progress: Progress = field(default_factory=Progress)
    callbacks: Callbacks = field(default_factory=Callbacks)

    def __post_init__(self) -> None:
        settings = self.recipe.train
        self.num_steps = self.batches.num_steps
        self.selection = Selection.of(self.recipe)
        self.eval_every = max(1, round(settings.evaluate_every * self.batches.steps_per_epoch))
        backward = Backward(self.accelerator, self.optimizer, list(trained(self.model).values()))
        self.update = Update(
            self.objectives, self.penalties, self.optimizer, backward.add,
            lambda: backward.clip(settings.max_grad_norm), backward.unscale, backward.of, self.watch_gradients,
            self.updated,
        )  # fmt: skip
        if self.progress.without_gradient is None:
            self.progress.without_gradient = [] if self.progress.step else [*trained(self.model)]
        self.watched = self.objectives.partial_steps + WATCHED_STEPS
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.grad_norm = 0.0
        self.evaluated = -1
        self.memory = MemoryGuard(
            self.run, self.batches, self.accelerator, self.objectives, self.optimizer, self.reporter
        )

    def step(self) -> None:
        """Update the weights once, with the next rows."""
        rows = self.batches.rows(self.progress.step)
        self.set_learning_rate()
        number = self.batches.num_targets(rows)
        self.pending.append(
            self.memory.run(
                lambda: self.update.step(lambda: self.batches.micro_batches(rows), number), rows, self.progress.step + 1
            )
        )
        self.progress.tokens += self.batches.num_tokens(rows)

    def updated(self) -> None:
        self.progress.step += 1
        self.recipe.strategy.updated(self.model, self.progress.step, self.num_steps)

    def fit(self) -> Progress:
        """Train until the end, an early stop, or an interruption; writes checkpoints, the last one before it returns.

        Raises:
            UserError: the loss is not finite or explodes, or a trained tensor never gets a gradient.
            Interrupted: the user stopped the run.
        """
        settings, progress = self.recipe.train, self.progress
        started = saved = time.monotonic()
        before, used = progress.seconds, progress.cpu_seconds - time.process_time()
        self.model.train()
        with self.reporter.bar("training", self.num_steps, "steps", progress.step) as bar:
            while progress.step < self.num_steps and not progress.stopped_early:
                begun = time.monotonic()
                self.step()
                bar.advance(1)
                now = time.monotonic()
                progress.step_seconds += now - begun
                progress.seconds, progress.cpu_seconds = before + now - started, used + time.process_time()
                is_end = progress.step == self.num_steps
                if self.callbacks:
                    self.settle_losses()
                    self.callbacks.on_step(self.last_step())
                if progress.step % settings.log_every == 0 or is_end:
                    self.log(progress.tokens / progress.step_seconds, bar)
                if progress.step % self.eval_every == 0 or is_end:
                    self.evaluate(bar)
                every = settings.checkpoint_steps
                is_due = now - saved >= settings.checkpoint_seconds or (every is not None and not progress.step % every)
                stop, due, enough = self.requested_by_any(self.should_stop(), is_due, self.callbacks.should_stop())
                if enough and not is_end:
                    self.end_early(bar)
                if stop or due or is_end or progress.stopped_early:
                    self.save()
                    saved = time.monotonic()
                if stop and not is_end:
                    where = f"stopped after step {progress.step} of {self.num_steps}"
                    raise Interrupted(f"{where}; to continue, run `{self.run.resume_command}`")
        return progress

    def last_step(self) -> Step:
        """The step that was just made; its loss is settled."""
        progress = self.progress
        return Step(progress.step, self.num_steps, progress.recent[-1], progress.recent_penalties[-1], self.grad_norm)

    def end_early(self, bar: Bar) -> None:
        """End training because a callback wants so; the weights of this step may be the best."""
        progress = self.progress
        if self.evaluated != progress.step:
            self.evaluate(bar)
        if progress.best_loss is None:  # a strategy that is not done has no best weights yet
            progress.best_step = progress.step
            checkpoint.save_best(self.run.checkpoints, progress.step, self.model, self.accelerator)
        progress.stopped_early = True

    def evaluate(self, bar: Bar) -> None:
        """Score the validation rows; save the weights if they are the best, else count towards `train.patience`."""
        progress = self.progress
        self.settle_losses()
        scores, self.evaluated = self.validate(), progress.step
        score, loss = scores.get(self.selection.metric), scores["loss"]  # a metric may have no value on these rows
        if score is not None:
            bar.show(**{self.selection.metric: score})
        if not self.recipe.strategy.is_done(progress.step, self.num_steps):
            self.log_scores(scores, is_best=False)
            return
        best, is_first = progress.best_score, progress.best_loss is None
        gained = score is not None and (best is None or self.selection.is_better(score, best))
        progress.evals_without_improvement = 0 if gained else progress.evals_without_improvement + 1
        patience = self.recipe.train.patience
        progress.stopped_early = patience is not None and progress.evals_without_improvement >= patience
        tied = is_first or (score == best and loss < progress.best_loss)  # ties go to the lower loss
        if gained or tied:
            progress.best_step, progress.best_score, progress.best_loss = progress.step, score, loss
            checkpoint.save_best(self.run.checkpoints, progress.step, self.model, self.accelerator)
        self.log_scores(scores, is_best=gained or tied)

    def log_scores(self, scores: Mapping[str, Any], is_best: bool) -> None:
        """Write an evaluation's scores to metrics.jsonl and the trackers, and hand them to the callbacks."""
        progress = self.progress
        plain = {name: value for name, value in scores.items() if isinstance(value, (int, float))}
        self.write({"step": progress.step, "progress": progress.step / self.num_steps, "validation": plain})
        self.accelerator.log({f"validation/{name}": value for name, value in plain.items()}, step=progress.step)
        self.callbacks.on_evaluation(Evaluation(progress.step, self.num_steps, plain, is_best))

    def log(self, tokens_per_second: float, bar: Bar) -> None:
        """Write a line of metrics.jsonl, with the loss averaged since the last one, and show it next to the bar."""
        self.settle_losses()
        progress = self.progress
        values = {
            "loss": sum(progress.recent) / len(progress.recent),
            "penalty": sum(progress.recent_penalties) / len(progress.recent_penalties),
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "grad_norm": self.grad_norm,
            "tokens_per_second": round(tokens_per_second, 1),
        }
        progress.recent.clear()
        progress.recent_penalties.clear()
        bar.show(loss=values["loss"], tokens_per_second=tokens_per_second)
        self.write({"step": progress.step, "progress": progress.step / self.num_steps, **values})
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=progress.step)

    def write(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.run.log(line)

    def save(self) -> None:
        self.settle_losses()
        strategy = self.recipe.strategy
        checkpoint.save(
            self.run.checkpoints, self.progress, self.model, self.optimizer, strategy, self.objectives,
            self.accelerator, self.recipe.train.last_checkpoints,
        )  # fmt: skip
        if self.callbacks and (written := checkpoint.latest(self.run.checkpoints)):
            self.callbacks.on_checkpoint(written)

    def settle_losses(self) -> None:
        """Fetch the last steps' losses over all processes, and their gradient norms.

        Raises:
            UserError: a value is not finite, or the loss has exploded.
        """
        if not self.pending:
            return
        losses, penalties, norms = (torch.stack(values) for values in zip(*self.pending, strict=True))
        self.pending.clear()
        losses = torch.as_tensor(self.accelerator.reduce(losses)).tolist()
        lines = list(zip(losses, penalties.tolist(), norms.tolist(), strict=True))
        loss_checks.check(lines, self.progress, self.batches, self.run, self.recipe.train.learning_rate)
        self.progress.recent += losses
        self.progress.recent_penalties += penalties.tolist()
        self.grad_norm = norms[-1].item()

    def set_learning_rate(self) -> None:
        settings = self.recipe.train
        assert settings.learning_rate is not None
        assert settings.warmup is not None
        progress = (self.progress.step + 0.5) / self.num_steps  # the middle of the step, so that no step has rate 0
        for group in self.optimizer.param_groups:
            peak = settings.learning_rate * group["lr_scale"]
            group["lr"] = peak * schedule.multiplier(progress, settings.schedule, settings.warmup)

    def watch_gradients(self) -> None:
        """Check in the first steps that every trained tensor gets a gradient. Raises UserError otherwise."""
        self.memory.in_passes = False
        if not self.progress.without_gradient:
            return
        parameters = trained(self.model)
        names = self.progress.without_gradient = [
            name
            for name in self.progress.without_gradient
            if (gradient := parameters[name].grad) is None or not whole(gradient).any()
        ]
        if names and self.progress.step + 1 == self.watched:
            raise UserError(
                f"strategy: {len(names)} trained tensors got no gradient in {WATCHED_STEPS} steps, so they would never"
                f" be trained: {', '.join(names[:5])}"
            )

    def requested_by_any(self, *requests: bool) -> list[bool]:
        """Whether any process makes each of these requests; the result is the same on all processes."""
        if self.accelerator.num_processes == 1:
            return list(requests)
        flags = torch.tensor(requests, dtype=torch.int64, device=self.accelerator.device)
        return [bool(flag) for flag in self.accelerator.reduce(flags)]  # type: ignore[union-attr]
