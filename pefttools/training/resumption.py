"""What a run that died can be resumed from, and what a fault of the disk leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pefttools.errors import EnvironmentFault, UserError
from pefttools.reporter import Reporter
from pefttools.training import checkpoint
from pefttools.training.run import Run

if TYPE_CHECKING:
    from accelerate import Accelerator


def newest_intact(run: Run) -> tuple[Path | None, dict[Path, str]]:
    """The newest intact checkpoint, None if there is none at all; and what is wrong with those after it.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    damaged = checkpoint.damaged(run.checkpoints)
    intact = [path for path in checkpoint.newest_first(run.checkpoints) if path not in damaged]
    if damaged and not intact:
        raise UserError(
            *(f"--resume: {path}: {problem}" for path, problem in damaged.items()),
            f"--resume: there is no intact checkpoint in {run.checkpoints}; restore one from a copy, or train"
            " anew with --overwrite instead of --resume",
        )
    return (intact[0] if intact else None), damaged


def set_aside(damaged: Mapping[Path, str], last: Path | None, accelerator: Accelerator, reporter: Reporter) -> None:
    """Rename the damaged checkpoints, so that training continues from the intact one before them."""
    accelerator.wait_for_everyone()  # every process has looked for damage
    if accelerator.is_main_process and last:
        for path, problem in damaged.items():
            aside = checkpoint.set_aside(path)
            reporter.warn(f"{path}: {problem}; it is now named {aside.name}, and training continues from {last.name}")
    accelerator.wait_for_everyone()


def disk_fault(run: Run, error: Exception, is_main_process: bool) -> EnvironmentFault:
    """The message for an error of the disk: what is kept of the run, and how to continue.

    A run that has no checkpoint yet removes its folder.
    """
    reason = f"{run.path} cannot be written: {' '.join(str(error).split())}"
    if last := checkpoint.latest(run.checkpoints):
        return EnvironmentFault(
            f"{reason}; {last.name} is kept. When there is room, continue with `{run.resume_command}`"
        )
    if is_main_process:
        with suppress(OSError):
            run.forget()
    return EnvironmentFault(f"{reason}; there was no checkpoint yet, so nothing is kept")
