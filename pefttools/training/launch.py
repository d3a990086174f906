"""The processes of a launch by torchrun or Accelerate: their number, and what a process does when another one ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pefttools.errors import EnvironmentFault, UserError

if TYPE_CHECKING:
    from pefttools.training.run import Run

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Timed out")
"""Parts of gloo's errors when another process does not take part in an exchange; torch has no class for them."""


def num_processes() -> int:
    """Number of processes that the launcher started, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_single_by_mistake() -> bool:
    """Whether `accelerate launch --cpu --num_processes N` has started this process, and no other one."""
    return "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ


def launched(arguments: str) -> str:
    """A command of pefttools as it is launched on as many processes as this one."""
    number = num_processes()
    if number == 1:
        return f"pefttools {arguments}"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(number)))
    machines = "" if here == number else f"--nnodes {number // here} … "
    return f"torchrun {machines}--nproc-per-node {here} -m pefttools {arguments}"


def refuse_disagreement(facts: dict[str, Any]) -> None:
    """Compare facts of all processes, which must all call this.

    Raises:
        UserError: two processes have read other rows, another base or another recipe, so they would train in vain.
    """
    from accelerate.utils import gather_object

    found = gather_object([facts])
    first = found[0]
    for process, one in enumerate(found):
        if different := [name for name in {**first, **one} if one.get(name) != first.get(name)]:
            raise UserError(
                *(
                    f"the processes of this launch differ in {name}: it is {first.get(name)!r} on process 0, but"
                    f" {one.get(name)!r} on process {process}; use the same command and files on all machines"
                    for name in different
                )
            )


@contextmanager
def ending_with_others(run: Run) -> Iterator[None]:
    """Turn an error of an exchange with a process that has ended into one message.

    Raises:
        EnvironmentFault: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_another_process(error):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which torchrun ends the processes that are left
        raise EnvironmentFault(_message(run)) from error


def _is_of_another_process(error: RuntimeError) -> bool:
    from torch.distributed import DistBackendError, DistNetworkError

    text = str(error)
    is_of_gloo = "gloo" in text and any(part in text for part in LOST)
    return num_processes() > 1 and (is_of_gloo or isinstance(error, (DistBackendError, DistNetworkError)))


def _message(run: Run) -> str:
    from pefttools.training import checkpoint

    last = checkpoint.latest(run.checkpoints)
    kept = f"{last.name} is kept" if last else "there is no checkpoint yet, so training will start from the beginning"
    return (
        f"another process of this run has ended, so this one ends, too; {kept}. To continue, run `{run.resume_command}`"
    )
