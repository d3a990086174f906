"""l2: (λ/2)‖θ‖² on everything trained, biases and norms apart.

Equal to weight decay θ ← (1 − ηλ)θ under SGD and not under Adam, which divides λθ by the gradients' size
(Loshchilov and Hutter 2019). With `of: product` a low-rank projection UVᵀ pays (λ/2)‖UVᵀ‖²_F = (λ/2)tr(UᵀU·VᵀV), the
norm of the matrix it stands for. (λ/2)(‖U‖² + ‖V‖²), the default, is at least the nuclear norm λ‖UVᵀ‖_*, and
equals it where the two are balanced, as at the start: it draws the rank down, not only the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pefttools.regularizers.base import (
    Penalty,
    Regularizer,
    RowLosses,
    Touched,
    Weighted,
    low_rank_modules,
    product_square,
    square,
)
from pefttools.strategies.base import is_vector, trained

if TYPE_CHECKING:
    from torch import nn


class L2(Regularizer):
    """Strength of the penalty, and the weights that it includes."""

    touches: ClassVar[Touched] = "matrices"

    weight: float = Field(default=0.01, gt=0)
    """λ, on half the sum of squares."""
    biases: bool = False
    """Whether biases, norms and other vectors are penalized, too."""
    of: Literal["factors", "product"] = "factors"
    """What is penalized in a low-rank projection: its factors U and V, or the matrix UVᵀ."""

    def bind(self, model: nn.Module, head: Sequence[str], row_losses: RowLosses) -> Penalty:  # noqa: ARG002
        modules = list(low_rank_modules(model).values()) if self.of == "product" else []
        if self.of == "product" and not modules:
            raise self.refusal("low-rank projection (of: product)", model)
        factors = {id(f) for m in modules for f in (m.U, m.V)}
        alone = [p for p in trained(model).values() if id(p) not in factors and (self.biases or not is_vector(p))]
        if not alone and not modules:
            raise self.refusal("parameter" if self.biases else "matrix (biases: false)", model)
        products = [partial(product_square, m.U, m.V) for m in modules]
        return Weighted(self.weight / 2, [*products, *(partial(square, p) for p in alone)])
