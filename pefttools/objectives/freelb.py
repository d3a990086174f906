"""freelb: minimize the mean loss at K perturbed embeddings of an ascent that costs nothing extra (Zhu et al. 2020).

This is algorithm 1 of "FreeLB: Enhanced Adversarial Training for Natural Language Understanding":

    δ₀ = U(−ε, ε)/√n,   δₖ = Π(δₖ₋₁ + α · g/‖g‖₂),   g = ∂L(x + δₖ₋₁)/∂δ
    the step follows the gradient of 1/K · Σ L(x + δₖ), k = 0 … K − 1

x are a row's input embeddings with n numbers, norms are over all tokens of a row, and Π scales δ down to the norm ε.
Every pass gives both the gradients of the weights and g, so a step costs K passes. As in section 3.3, the K passes have
the same dropout masks. A row's δ₀ is drawn from the recipe's seed, the step and the row's tokens. The reported loss is
the mean of the K losses; there is no pass over x itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.objectives._perturbation import Perturbing, PerturbingObjective
from pefttools.objectives.base import Batch, Context, Forward, Gradients, Loss

if TYPE_CHECKING:
    from torch import Tensor


class Freelb(PerturbingObjective):
    """Settings of freelb: the size of the perturbation, and the ascent. The paper tunes all three for each task."""

    sample_settings: ClassVar[Mapping[str, Any]] = {"epsilon": 0.1, "step_size": 0.03}

    epsilon: float = Field(default=0.4, gt=0)
    """ε, the largest Euclidean norm of the perturbation of a row."""
    step_size: float = Field(default=0.1, gt=0)
    """α, the Euclidean norm of a step of the ascent."""
    steps: int = Field(default=3, ge=1)
    """K, number of perturbed embeddings; the paper uses 2 or 3. With 1, the perturbation is random."""

    def bound(self, context: Context) -> Perturbing:
        return _FreeAscent(self, context)


class _FreeAscent(Perturbing):
    def __init__(self, settings: Freelb, context: Context) -> None:
        super().__init__(settings, context)
        self.settings = settings

    def add_gradients(self, loss: Loss, forward: Forward, batch: Batch, gradients: Gradients) -> Tensor:
        import torch

        step, epsilon, steps = self.settings.step_size, self.settings.epsilon, self.settings.steps

        def one_of(loss: Loss) -> Loss:
            return lambda forward, batch: loss(forward, batch) / steps

        passes = self.passes(one_of(loss), forward, batch)
        uniform = passes.random(lambda values, generator: values.uniform_(-1, 1, generator=generator))
        delta = uniform * epsilon / (passes.rows.num_tokens() * uniform.shape[-1]).clamp(min=1).sqrt()
        shares = []
        for index in range(steps):
            more = index + 1 < steps
            shares.append(gradients.add(passes.value(delta.requires_grad_(more)), more))
            if more:
                delta = passes.ascended(delta.detach(), delta.grad, step, epsilon)
        return torch.stack(shares).sum()
