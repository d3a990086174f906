"""Run a trained model and its export in float64, so that a difference in their outputs is no rounding error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from pefttools.strategies.base import is_quantised

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """While the context is open, `model` has float64 weights and computes in float64; then its dtypes are restored.

    A quantised model is left as it is; it computes in fp32.
    """
    import torch

    if is_quantised(model):
        yield
        return

    former = [(t, t.dtype) for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    for tensor, _ in former:
        tensor.data = tensor.data.to(torch.float64)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of tensors that are made in the pass, as by FourierFT
    try:
        with _wide():
            yield
    finally:
        torch.set_default_dtype(default)
        for tensor, dtype in former:
            tensor.data = tensor.data.to(dtype)


def _wide() -> AbstractContextManager[Any]:
    """While the context is open, casts to fp32, as in decoders' norms and softmaxes, give float64."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Wide(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            if func is torch.Tensor.float:
                return args[0].double()
            kwargs = {name: _widened(value) for name, value in (kwargs or {}).items()}
            return func(*map(_widened, args), **kwargs)

    return Wide()


def _widened(value: Any) -> Any:
    import torch

    return torch.float64 if value is torch.float32 else value
