"""A step that runs out of memory is computed again in smaller micro-batches.

The step has the same rows and the same number of targets, so its gradient is the same up to rounding and dropout. A
process that the system kills for its memory (a container's limit) cannot do this; its run can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pefttools.device import is_out_of_memory, release_memory
from pefttools.errors import EnvironmentFault
from pefttools.objectives._composition import Composed
from pefttools.reporter import Reporter
from pefttools.training import checkpoint
from pefttools.training.micro_batches import MicroBatches
from pefttools.training.run import Run
from pefttools.training.step import Losses

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer


@dataclass
class MemoryGuard:
    """Repeats the passes of a step when they run out of memory."""

    run_folder: Run
    batches: MicroBatches
    accelerator: Accelerator
    objectives: Composed
    optimizer: Optimizer
    reporter: Reporter
    in_passes: bool = False
    """Whether a step has begun and no weight has changed yet; the loop sets it to False when the passes are over."""

    def run(self, compute: Callable[[], Losses], rows: list[int], step: int) -> Losses:
        """What `compute` returns.

        Args:
            rows: those of the step, over all processes.
            step: its number, for messages.

        Raises:
            EnvironmentFault: micro-batches cannot be smaller, other processes wait for this one, or the weights have
                begun to change.
        """
        while True:
            self.in_passes = True
            try:
                return compute()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
            self._halve(rows, step, reason)  # after the error, which holds the tensors of the pass

    def _halve(self, rows: list[int], step: int, reason: str) -> None:
        is_first = self.batches.divisor == 1
        can_repeat = self.in_passes and self.accelerator.num_processes == 1
        most = self.batches.halve(rows) if can_repeat else None
        if most is None:
            raise EnvironmentFault(self._too_large(step, reason, can_repeat))
        self.optimizer.zero_grad()
        self.objectives.abandon_step()
        release_memory()
        if is_first:
            self.reporter.warn(
                f"step {step} ran out of memory; from now on steps are computed in micro-batches of at most {most} rows"
                " (or fewer, if need be), and train.batch_size stays the same"
            )

    def _too_large(self, step: int, reason: str, in_single_rows: bool) -> str:
        resume = f", and continue with `{self.run_folder.resume_command}`"
        return (
            f"step {step} ran out of memory{' even with one row at a time' if in_single_rows else ''} ({reason}); use"
            " less of it with train.gradient_checkpointing=true, train.micro_batch_tokens, task.max_length or"
            f" base.quantize=nf4{resume if checkpoint.latest(self.run_folder.checkpoints) else ''}"
        )
