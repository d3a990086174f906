"""Tensors without data, and a record of the storages that computing with them allocates and releases."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pefttools.planning.heap import Event


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of all storages alive, and records every allocation and release.

    Args:
        device: the type of device whose storages count; main memory has others where a GPU computes.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.bytes = self.peak = self.made = 0
        self.numbers: dict[int, int] = {}
        self.events: list[Event] = []

    def track(self, tensor: Tensor) -> None:
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.numbers:
            return
        self.made += 1
        self.numbers[key] = self.made
        self.events.append((self.made, size))
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.events.append((self.numbers.pop(key), 0))
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype is torch.bool or 0  # there is no value: conditions are true, counts are 0
        outputs = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                self.track(leaf)
        return outputs


MARKS = ("pretrained", "trained_before", "known_rows")
"""Marks of parameters that penalties read."""


def without_data(model: nn.Module, device: str) -> nn.Module:
    """The model, with every tensor replaced by one of the same shape without data; tied tensors stay tied."""
    made: dict[int, Any] = {}

    def replaced(tensor: Tensor) -> Any:
        if id(tensor) not in made:
            empty: Any = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, tensor.requires_grad)
            vars(empty).update({k: v for k, v in vars(tensor).items() if k in MARKS})
            made[id(tensor)] = (empty, tensor)  # keeping the old one keeps its id
        return made[id(tensor)][0]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers, vars(module)):
            for name, value in list(tensors.items()):
                if isinstance(value, Tensor):
                    tensors[name] = replaced(value)  # type: ignore[index]
    return model
