"""l2: (λ/2)‖θ‖² on all trained weights except biases and norms.

With SGD this equals weight decay θ ← (1 − ηλ)θ; with Adam it does not, since Adam divides λθ by the gradients' size
(Loshchilov and Hutter 2019). With `of: product`, a low-rank projection UVᵀ adds (λ/2)‖UVᵀ‖²_F = (λ/2)tr(UᵀU·VᵀV), the
norm of its matrix. The default (λ/2)(‖U‖² + ‖V‖²) is at least the nuclear norm λ‖UVᵀ‖_*, and equals it if U and V are
balanced, as at the start; so it reduces the rank, not only the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pefttools.regularizers.base import (
    Affected,
    Penalty,
    Regularizer,
    RowLosses,
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

    shardable: ClassVar[bool] = True
    affects: ClassVar[Affected] = "matrices"

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
        single = [p for p in trained(model).values() if id(p) not in factors and (self.biases or not is_vector(p))]
        if not single and not modules:
            raise self.refusal("parameter" if self.biases else "matrix (biases: false)", model)
        products = [partial(product_square, m.U, m.V) for m in modules]
        return Weighted(self.weight / 2, [*products, *(partial(square, p) for p in single)])
