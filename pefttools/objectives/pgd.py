"""pgd: also minimize the loss at the worst embeddings that K steps of projected ascent find (Madry et al. 2018).

The paper is "Towards Deep Learning Models Resistant to Adversarial Attacks":

    δ₀ = 0,   δₖ = Π(δₖ₋₁ + α · g/‖g‖₂),   g = ∂L(x + δₖ₋₁)/∂δ;   the step follows the gradient of L(x) + L(x + δ_K)

x are a row's input embeddings, norms are over all tokens of a row, and Π scales δ down to the norm ε. The paper's
images have a ball of the maximum norm and a random start, and it trains on L(x + δ_K) alone; for texts, the Euclidean
norm, no random start and L(x) in addition are usual. The pass over L(x) also gives the first step's gradient, so a step
costs two passes and K − 1 that compute gradients of δ only. The reported loss is L(x), so that it can be compared with
that of a run without `pgd`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.objectives._perturbation import Perturbing, PerturbingObjective
from pefttools.objectives.base import Batch, Context, Forward, Gradients, Loss

if TYPE_CHECKING:
    from torch import Tensor


class Pgd(PerturbingObjective):
    """Settings of pgd: the size of the perturbation, and the ascent."""

    sample_settings: ClassVar[Mapping[str, Any]] = {"epsilon": 0.1}

    epsilon: float = Field(default=0.1, gt=0)
    """ε, the largest Euclidean norm of the perturbation of a row; see fgm."""
    step_size: float = Field(default=0.03, gt=0)
    """α, the Euclidean norm of a step of the ascent."""
    steps: int = Field(default=3, ge=1)
    """K, number of steps of the ascent; with 1, and a step size of ε, this is fgm."""

    def bound(self, context: Context) -> Perturbing:
        return _ProjectedAscent(self, context)


class _ProjectedAscent(Perturbing):
    def __init__(self, settings: Pgd, context: Context) -> None:
        super().__init__(settings, context)
        self.settings = settings

    def add_gradients(self, loss: Loss, forward: Forward, batch: Batch, gradients: Gradients) -> Tensor:
        step, epsilon = self.settings.step_size, self.settings.epsilon
        passes = self.passes(loss, forward, batch)
        start = passes.zero().requires_grad_()
        clean = gradients.add(passes.value(start), more=True)
        delta = passes.ascended(passes.zero(), start.grad, step, epsilon)
        for _ in range(1, self.settings.steps):
            delta.requires_grad_()
            delta = passes.ascended(delta, gradients.of(passes.value(delta), delta), step, epsilon)
        gradients.add(passes.value(delta))
        return clean
