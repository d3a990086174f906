"""The process of a run: Accelerate and its trackers, signals and hardware."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pefttools import signals
from pefttools.device import Precision, device_name, half_type, precision_of
from pefttools.errors import UserError
from pefttools.recipe.recipe import Recipe
from pefttools.training.launch import is_single_by_mistake, num_processes
from pefttools.training.placement import refuse_alone
from pefttools.training.run import Run

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from pefttools.nn.output_layer import OutputLayer

REPEATED_SECONDS = 2.0
"""How long a launcher may take to repeat a signal."""


def accelerator_for(recipe: Recipe, run: Run, first_step: int) -> Accelerator:
    """Accelerate with the recipe's precision and trackers; TensorBoard drops its values from `first_step` on.

    Raises:
        UserError: a tracker is unknown, the device does not compute in the precision, weights would be shared with no
            other process or in fp16, or the launcher started more processes than Accelerate sees.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import ProjectConfiguration

    from pefttools.training.trackers import trackers

    refuse_alone(recipe.train)
    precision = precision_of(recipe.train.precision)
    if recipe.train.shard and precision == "fp16":
        raise UserError("train.shard: works in fp32 and bf16 only; set train.precision=fp32")
    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=not torch.accelerator.is_available(),
        log_with=trackers(recipe, run, first_step) or None,
        project_config=ProjectConfiguration(project_dir=str(run.path), logging_dir=str(run.path)),
    )
    if accelerator.num_processes != num_processes() or is_single_by_mistake():
        several = "several" if num_processes() == 1 else num_processes()  # --cpu does not hand the number on
        raise UserError(
            f"{several} processes were launched, but Accelerate runs {accelerator.num_processes}; on CPUs, launch with"
            " `torchrun --nproc-per-node N -m pefttools …` or"
            " `accelerate launch --multi_gpu --num_processes N -m pefttools …`"
        )
    return accelerator


def finish(accelerator: Accelerator) -> None:
    """End the trackers of a run.

    The processes stay connected until they exit, so that the same launch can train more runs.
    """
    for tracker in accelerator.trackers:
        tracker.finish()


def for_steps(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
    """The model and its optimizer in Accelerate's wrappers; processes that share weights exchange gradients by FSDP2,
    others by DDP."""
    from pefttools.nn.sharding import is_sharded

    if not is_sharded(model):
        return accelerator.prepare(model, optimizer)
    wrapped = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)  # only its precision
    return wrapped, accelerator.prepare_optimizer(optimizer, device_placement=False)


def forward(
    model: nn.Module, inputs: Mapping[str, Tensor], device: str, precision: Precision, layer: OutputLayer | None = None
) -> Any:
    """The outputs that the model gives under Accelerate: in 16 bits computed by autocast and converted to fp32.

    Args:
        layer: the output layer to leave out.
    """
    import torch
    from accelerate.utils import convert_to_fp32

    def run(**inputs: Tensor) -> Any:
        if precision == "fp32":
            return model(**inputs)
        with torch.autocast(device, half_type(precision)):
            return convert_to_fp32(model(**inputs))

    return layer.run(run, inputs) if layer else run(**inputs)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Make Ctrl-C and SIGTERM stop the loop after its step, and a second one at once.

    A launcher repeats the terminal's Ctrl-C for its processes, so signals in the first seconds count as one.

    Yields a function that returns whether a signal came. Signals that came earlier count too: Python drops an exception
    that is raised while it collects garbage.
    """
    seen = list(signals.came)
    first = 0.0

    def handle(number: int, frame: Any) -> None:
        nonlocal first
        now = time.monotonic()
        if seen and (num_processes() == 1 or now - first > REPEATED_SECONDS):
            signal.default_int_handler(number, frame)
        if not seen:
            first = now
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

    return {
        "kind": accelerator.device.type,
        "device": device_name(accelerator.device.type),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
