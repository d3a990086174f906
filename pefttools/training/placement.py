"""Moving a model to the device of its run, or a share of it to each of the devices of a launch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pefttools.errors import UserError
from pefttools.training.launch import num_processes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pefttools.recipe.train_settings import TrainSettings


def place(model: nn.Module, settings: TrainSettings, device: torch.device) -> None:
    """Move a model to a device, or with `train.shard` each process's share of it to that process's device.

    Raises:
        UserError: there is only one process, the processes have other weights, or a weight is a single number.
    """
    if not settings.shard:
        model.to(device)
        return
    refuse_alone(settings)
    if scalars := [name for name, parameter in model.named_parameters() if not parameter.shape]:
        raise UserError(
            f"train.shard: the weights of this model cannot be divided, because {scalars[0]} is a single number; train"
            " without train.shard"
        )
    _refuse_different(model)
    from pefttools.nn.sharding import shard

    shard(model, device)


def refuse_alone(settings: TrainSettings) -> None:
    """Raises UserError when weights would be shared with no other process."""
    if settings.shard and num_processes() == 1:
        raise UserError(
            "train.shard: true shares the weights among the processes of a launch, but there is only one process;"
            " launch more with `torchrun --nproc-per-node N -m pefttools …`, or leave it out"
        )


def _refuse_different(model: nn.Module) -> None:
    """Raises UserError when another process has other weights, because the shares would not fit together."""
    from accelerate.utils import gather_object

    own = {name: (tuple(p.shape), p.detach().double().sum().item()) for name, p in model.named_parameters()}
    for process, other in enumerate(gather_object([own])):
        if different := [name for name in {**own, **other} if own.get(name) != other.get(name)]:
            raise UserError(
                f"train.shard: process {process} has other initial weights than this one ({', '.join(different[:3])});"
                " every process needs the same base, the same recipe and the same libraries"
            )
