"""frobenius: (λ/2)Σ‖W − W₀‖²_F, the distance of each matrix from the pretrained one.

W is the matrix that the model computes with, so the penalty depends on the function, not on its parameters: for a
matrix that is trained itself, w − w⁰; for LoRA sBA, s²·tr(AAᵀ·BᵀB), which never builds BA; for a low-rank projection
tr(UᵀU·VᵀV) − 2tr(UᵀW₀V) + ‖W₀‖², which never builds UVᵀ; for DoRA m⊙(W₀+sBA)/‖W₀+sBA‖ − W₀, with the gradient through
the norm (peft treats it as constant in its forward pass); for other methods of peft their `get_delta_weight`.
Biases, norms and the new head are not penalized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.errors import UserError
from pefttools.regularizers.base import (
    Affected,
    Penalty,
    Regularizer,
    RowLosses,
    Weighted,
    low_rank_modules,
    pretrained_and_new,
    product_square,
    square,
    square_from,
    start_of,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.nn.low_rank import LowRankLinear

EDITING_STARTS = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Values of peft's `init_lora_weights` that move a part of the base into BA, so that BA is not the change."""


class Frobenius(Regularizer):
    """Strength of the penalty."""

    needs_start: ClassVar[bool] = True
    affects: ClassVar[Affected] = "changed matrices"

    weight: float = Field(default=0.01, gt=0)
    """λ, on half the squared Frobenius norm of every matrix's change."""

    def bind(self, model: nn.Module, head: Sequence[str], row_losses: RowLosses) -> Penalty:  # noqa: ARG002
        pretrained, _ = pretrained_and_new(model, head)
        projections = low_rank_modules(model)
        factors = {id(f) for m in projections.values() for f in (m.U, m.V)}
        terms: list[Callable[[], Tensor]] = [
            partial(square_from, p, start_of(p)) for p in pretrained.values() if p.ndim == 2 and id(p) not in factors
        ]
        terms += [_projection(path, module) for path, module in projections.items()]
        terms += self._added(model)
        if not terms:
            raise self.refusal("pretrained matrix, low-rank projection or product like LoRA's", model)
        return Weighted(self.weight / 2, terms)

    def _added(self, model: nn.Module) -> list[Callable[[], Tensor]]:
        """One term for every matrix that a method of peft adds to a frozen one."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [
            (path, module, adapter)
            for path, module in model.named_modules()
            if any(p.requires_grad for p in module.parameters())
            and isinstance(module, BaseTunerLayer)
            and hasattr(module, "get_delta_weight")
            for adapter in module.active_adapters
        ]
        configs = getattr(model, "peft_config", {}) if layers else {}
        for config in configs.values():
            start = getattr(config, "init_lora_weights", None)
            if isinstance(start, str) and start.lower().startswith(EDITING_STARTS):
                raise UserError(
                    f"regularizers.{self.name}: a start by {start} changes the base's matrices, so BA is not the"
                    " whole change; use a start that leaves them unchanged, or another regularizer"
                )
        return [self._change(path, layer, adapter) for path, layer, adapter in layers]

    def _change(self, path: str, layer: Any, adapter: str) -> Callable[[], Tensor]:
        import torch

        variant = getattr(layer, "lora_variant", {}).get(adapter)
        if type(variant).__name__ == "DoraLinearVariant" and layer.get_base_layer().weight.is_floating_point():
            return partial(_dora, layer, adapter)
        if variant is None and adapter in _plain(layer):
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            return lambda: layer.scaling[adapter] ** 2 * product_square(b, a.T)
        try:
            delta = layer.get_delta_weight(adapter) if variant is None else None
        except (NotImplementedError, RuntimeError):
            delta = None
        if not isinstance(delta, torch.Tensor) or not delta.requires_grad:
            method = type(variant).__name__.removesuffix("Variant") if variant else type(layer).__module__
            raise UserError(
                f"regularizers.{self.name}: the change of {path} has no differentiable formula ({method});"
                " use another regularizer"
            )
        return lambda: square(layer.get_delta_weight(adapter))


def _plain(layer: Any) -> set[str]:
    """The adapters of a layer whose change is the plain product of two `nn.Linear`."""
    from torch import nn

    return {k for k, a in getattr(layer, "lora_A", {}).items() if isinstance(a, nn.Linear)}


def _dora(layer: Any, adapter: str) -> Tensor:
    def upright(x: Tensor) -> Tensor:
        return x.T if layer.fan_in_fan_out else x

    base = upright(layer.get_base_layer().weight.detach())
    changed = base + upright(layer.get_delta_weight(adapter))
    magnitude = layer.lora_magnitude_vector[adapter].weight
    return square_from((magnitude / changed.norm(dim=1))[:, None] * changed, base)


def _projection(path: str, module: LowRankLinear) -> Callable[[], Tensor]:
    start: Any = module.start
    assert start is not None, f"{path} was wrapped without its start, which needs_start requires"
    size = square(start)
    return lambda: product_square(module.U, module.V) - 2 * (module.U * (start @ module.V)).sum() + size
