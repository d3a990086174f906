"""The process of a run: Accelerate and its trackers, signals and hardware."""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pefttools import signals
from pefttools.device import computes_in_bf16
from pefttools.errors import UserError
from pefttools.recipe.recipe import Recipe
from pefttools.training.run import Run

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn


def accelerator_for(recipe: Recipe, run: Run, first_step: int) -> Accelerator:
    """Accelerate with the recipe's precision and trackers; TensorBoard drops its values from `first_step` on.

    Raises:
        UserError: a tracker is unknown, or the launcher started more processes than Accelerate sees.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import ProjectConfiguration

    from pefttools.training.trackers import trackers

    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    accelerator = Accelerator(
        mixed_precision="bf16" if computes_in_bf16(recipe.train.precision) else "no",
        cpu=not torch.accelerator.is_available(),
        log_with=trackers(recipe, run, first_step) or None,
        project_config=ProjectConfiguration(project_dir=str(run.path), logging_dir=str(run.path)),
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise UserError(
            f"{launched} processes were launched, but Accelerate runs {accelerator.num_processes}; on CPUs launch with"
            " `torchrun --nproc-per-node N -m pefttools …` or"
            " `accelerate launch --multi_gpu --num_processes N -m pefttools …`"
        )
    return accelerator


def forward(model: nn.Module, inputs: Mapping[str, Tensor], device: str, bf16: bool) -> Any:
    """The outputs that the model gives under Accelerate: with `bf16` computed by autocast and converted to fp32."""
    import torch
    from accelerate.utils import convert_outputs_to_fp32

    if not bf16:
        return model(**inputs)
    with torch.autocast(device, torch.bfloat16):
        return convert_outputs_to_fp32(model.forward)(**inputs)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Make Ctrl-C and SIGTERM stop the loop after its step, and a second Ctrl-C at once.

    Yields a function that returns whether a signal came. Signals that came earlier count too: Python drops an exception
    that is raised while it collects garbage.
    """
    seen = list(signals.came)

    def handle(number: int, frame: Any) -> None:
        if seen:
            signal.default_int_handler(number, frame)
        seen.append(number)

    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def hardware(accelerator: Accelerator) -> dict[str, Any]:
    """Kind and name of the device, cores, threads and system of this machine."""
    import torch

    name = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    return {
        "kind": accelerator.device.type,
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else str(name),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
