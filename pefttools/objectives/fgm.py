"""fgm: also minimize the loss at embeddings that are moved along their gradient (Miyato et al. 2017).

The paper is "Adversarial Training Methods for Semi-Supervised Text Classification":

    δ = ε · g / ‖g‖₂,   g = ∂L(x)/∂x;   the step follows the gradient of L(x) + L(x + δ)

x are a row's input embeddings, and both norms are over all tokens of a row. One backward pass over L(x) gives both the
gradients of the weights and g, so a step costs two passes. The reported loss is L(x), so that it can be compared with
that of a run without `fgm`. The paper normalizes embeddings and tunes ε; here they are as the model has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.objectives._perturbation import Perturbing, PerturbingObjective
from pefttools.objectives.base import Batch, Context, Forward, Gradients, Loss

if TYPE_CHECKING:
    from torch import Tensor


class Fgm(PerturbingObjective):
    """Settings of fgm: the size of the perturbation."""

    sample_settings: ClassVar[Mapping[str, Any]] = {"epsilon": 0.1}

    epsilon: float = Field(default=0.1, gt=0)
    """ε, the Euclidean norm of the perturbation of a row. The ε of 1 in many implementations is the norm over a batch,
    so over a row it is 1/√rows; 1 for every row makes training collapse."""

    def bound(self, context: Context) -> Perturbing:
        return _FastGradient(self, context)


class _FastGradient(Perturbing):
    def __init__(self, settings: Fgm, context: Context) -> None:
        super().__init__(settings, context)
        self.epsilon = settings.epsilon

    def add_gradients(self, loss: Loss, forward: Forward, batch: Batch, gradients: Gradients) -> Tensor:
        passes = self.passes(loss, forward, batch)
        start = passes.zero().requires_grad_()
        clean = gradients.add(passes.value(start), more=True)
        gradients.add(passes.value(passes.ascended(passes.zero(), start.grad, self.epsilon, self.epsilon)))
        return clean
