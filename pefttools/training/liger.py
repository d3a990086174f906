"""Liger's Triton kernels for rotary positions, RMSNorm and gated MLPs (`train.liger`), active inside of a context.

Hsu et al. (2024), Liger Kernel: Efficient Triton Kernels for LLM Training. Each kernel fuses several operations, so
that intermediate results are neither stored nor read again. Results are the same up to rounding. Its losses are not
used: pefttools' tasks compute losses themselves, summed over the targets.

`liger-kernel` replaces functions of a model and classes of the module that defines the model; both are restored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def problem(model: Any, device: str) -> str | None:
    """The reason why the kernels cannot be used for this transformers model; None if they can."""
    if device != "cuda":
        return f"train.liger: its kernels need a CUDA GPU, but this machine computes on {device}; leave it out"
    known = _library().MODEL_TYPE_TO_APPLY_LIGER_FN
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in known:
        names = ", ".join(sorted(known))
        return f"train.liger: has no kernels for models of the type {kind}; leave it out. Known: {names}"
    return None


@contextmanager
def kernels(model: nn.Module) -> Iterator[None]:
    """While the context is open, the transformers model computes with the kernels; its weights keep their names."""
    places = [vars(sys.modules[type(model).__module__]), *map(vars, model.modules())]
    before = [dict(place) for place in places]
    _library()._apply_liger_kernel_to_instance(
        model=model, cross_entropy=False, fused_linear_cross_entropy=False
    )  # its other kernels are on by default
    replaced = [
        [name for name in place if name not in old or place[name] is not old[name]]
        for place, old in zip(places, before, strict=True)
    ]
    try:
        yield
    finally:
        for place, old, names in zip(places, before, replaced, strict=True):
            for name in names:
                if name in old:
                    place[name] = old[name]
                else:
                    del place[name]


def _library() -> Any:
    return import_module("liger_kernel.transformers.monkey_patch")
