"""Weights that processes share: each stores 1/N of every parameter, of its gradient and of the optimizer's state.

This is ZeRO's stage 3 (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models") as torch implements it, FSDP2's `fully_shard`. The weights of a block are gathered before the block computes
and freed after it; frozen weights are shared, too, but have no gradients.

All processes must run the same passes in the same order, because each pass gathers weights. A parameter's first
dimension is divided, so every process has the whole shape of it (`DTensor`) and stores some of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from pefttools.nn import module_paths


def shard(model: nn.Module, device: torch.device) -> None:
    """Replace every parameter of a model by this process's share of it, on the device.

    Attributes of the parameters stay. The model's `generate` gathers weights as its forward passes do.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    attributes = {name: dict(vars(parameter)) for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for path in unit_paths(model):
        fully_shard(model.get_submodule(path), mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for name, parameter in model.named_parameters():
        vars(parameter).update(attributes[name])
    if hasattr(model, "generate"):
        register_fsdp_forward_method(model, "generate")
    for module in model.modules():
        if hasattr(module, "generation_config"):  # then transformers' `generate` runs until all processes are done
            module._is_fsdp_managed_module = True  # type: ignore[assignment]


def unit_paths(model: nn.Module) -> list[str]:
    """Paths of the modules whose weights are gathered together; everything else is gathered for a whole pass."""
    try:
        return module_paths.blocks(model)
    except ValueError:  # then the whole model is one unit
        return []


def is_sharded(model: nn.Module) -> bool:
    """Whether processes share the model's weights."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False  # without a walk through all parameters, which takes half a millisecond a pass
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def without_gradients(model: nn.Module) -> AbstractContextManager[Any]:
    """A context of passes without gradients; weights gathered in torch's `inference_mode` could not be trained."""
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the shares of all processes, which must all call this; any other tensor is returned as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor, or the tensor itself where it is not shared."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def share_like(value: Tensor, target: Tensor) -> Tensor:
    """This process's share of a whole tensor, divided like `target`; the value itself if `target` is not divided."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(target, DTensor):
        return value
    mesh = target.device_mesh
    return distribute_tensor(value.to(target.device), mesh, target.placements, src_data_rank=None)


def gathered(value: Any, keep: bool) -> Any:
    """A tree of dictionaries, lists and tuples, in which every shared tensor is whole and on the CPU.

    All processes must call this. Tensors are gathered one at a time.

    Args:
        keep: whether this process needs the values; if not, shared tensors are empty.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.detach().cpu() if keep else full.new_empty(0)
    if isinstance(value, Mapping):
        return {key: gathered(one, keep) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(gathered(one, keep) for one in value)
    return value


def gather_trained(model: nn.Module, keep: bool) -> None:
    """Replace the trained parameters by whole ones on the CPU; afterwards the model can be saved but not run.

    All processes must call this; only those with `keep` get the parameters.
    """
    found: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            if parameter not in found:
                found[parameter] = nn.Parameter(gathered(parameter, keep))
            if keep:
                module._parameters[name] = found[parameter]


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the memory that this process's parameters are stored in; shared memory counts once."""
    return sum({s._cdata: s.nbytes() for s in _storages(model)}.values())


def _storages(model: nn.Module) -> Iterator[torch.UntypedStorage]:
    for parameter in model.parameters():
        yield local(parameter.detach()).untyped_storage()
