"""smart: penalize predictions that change with small perturbations of the embeddings (Jiang et al. 2020).

The paper is "SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through Principled
Regularized Optimization":

    L + λ · max_{‖δ‖∞ ≤ ε} D(f(x + δ), f(x)),   D(p, q) = KL(p‖q) + KL(q‖p)

The maximum is approached by K steps from a random start: δ₀ ~ N(0, σ²), δ ← Π(δ + η · g/‖g‖∞), where g is D's gradient,
‖·‖∞ the largest absolute value of a row, and Π limits every number of δ to [−ε, ε]. D needs no labels; it is summed
over the targets (rows, tokens) like the loss. For numbers, whose squared error is −log p of a normal distribution, D is
2(p − q)²; the paper has (p − q)², so its λ is twice this one. D's gradient flows through f(x + δ) and f(x), as the
formula says; the authors' code stops some of it. Their Bregman proximal point method is not included. A row's δ₀ is
drawn from the recipe's seed, the step and the row's tokens. The reported loss is L, so that it can be compared with
that of a run without `smart`. A step costs about three passes with K = 1.

With the paper's ε, δ alone changes D by about 1e-10. As in the authors' code, each pass draws its own dropout masks, so
most of D comes from these. A model without dropout needs an ε near 1e-2, at which δ is about as large as that of `fgm`;
smaller ones that have no effect are refused. So are bf16 and fp16, which round such changes away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from pefttools.errors import UserError
from pefttools.objectives._perturbation import Passes, Perturbing, PerturbingObjective
from pefttools.objectives.base import Batch, Context, Forward, Gradients, Loss

if TYPE_CHECKING:
    from torch import Tensor

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task

NEGLIGIBLE = 1e-6
"""The smallest share of the loss that the penalty must have in the trial step."""


class Smart(PerturbingObjective):
    """Settings of smart, with the paper's defaults."""

    weight: float = Field(default=1.0, gt=0)
    """λ; the paper chooses among 1, 3 and 5."""
    epsilon: float = Field(default=1e-5, gt=0)
    """ε, the largest absolute value of the perturbation."""
    sigma: float = Field(default=1e-5, gt=0)
    """σ, the standard deviation of the random start."""
    step_size: float = Field(default=1e-3, gt=0)
    """η, the largest absolute value of a step of the ascent."""
    steps: int = Field(default=1, ge=1)
    """K, number of steps of the ascent."""

    def problem(self, task: Task, strategy: Strategy) -> str | None:
        del strategy
        return None if task.has_divergence else f"task={task.name} defines no divergence of two predictions; remove it"

    def bound(self, context: Context) -> Perturbing:
        if context.precision != "fp32":
            raise UserError(
                f"objectives.{self.name}: compares predictions that differ by less than {context.precision} resolves;"
                " set train.precision=fp32"
            )
        return _Smooth(self, context)


class _Smooth(Perturbing):
    def __init__(self, settings: Smart, context: Context) -> None:
        super().__init__(settings, context)
        self.settings = settings

    def add_gradients(self, loss: Loss, forward: Forward, batch: Batch, gradients: Gradients) -> Tensor:
        passes, own = self.passes(loss, forward, batch), []

        def total() -> Tensor:
            outputs: list[Any] = []

            def recording_forward(batch: Batch, embeddings: Tensor | None = None) -> Any:
                outputs.append(forward(batch, embeddings))
                return outputs[-1]

            plain = loss(recording_forward, batch)
            own.append(plain)
            clean = outputs[0]  # a loss of several passes begins with one over x itself
            delta = self.worst(passes, clean)
            penalty = self.settings.weight * self.distance(passes, delta, clean)
            if self.step == 0:  # the trial step, which precedes the first one
                self.refuse_negligible(passes, plain, penalty, clean)
            return plain + penalty

        gradients.add(total)
        return gradients.share(own[0])

    def worst(self, passes: Passes, clean: Any) -> Tensor:
        """The δ that the ascent finds, (…, tokens, width)."""
        import torch

        values, epsilon = self.settings, self.settings.epsilon
        delta = passes.random(lambda values, generator: values.normal_(generator=generator)) * values.sigma
        for _ in range(values.steps):
            delta = delta.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.distance(passes, delta, clean), delta)
            with torch.no_grad():
                scale = values.step_size / (passes.rows.largest(gradient) + torch.finfo(gradient.dtype).tiny)
                delta = (delta + scale * passes.rows.masked(gradient)).clamp(-epsilon, epsilon)
        return delta.detach()

    def distance(self, passes: Passes, delta: Tensor, clean: Any) -> Tensor:
        """D(f(x + δ), f(x)), summed over the targets, shape ().

        Args:
            clean: the outputs of f(x).
        """
        return self.context.task.divergence(passes.perturbed(delta)(passes.batch), clean, passes.batch)

    def refuse_negligible(self, passes: Passes, plain: Tensor, penalty: Tensor, clean: Any) -> None:
        """Raise UserError if the penalty vanishes next to the loss, though predictions depend on the embeddings."""
        import torch

        with torch.no_grad():
            if penalty > NEGLIGIBLE * plain:
                return
            large = passes.random(lambda values, generator: values.normal_(generator=generator))
            if self.distance(passes, large, clean) > NEGLIGIBLE * plain:
                raise UserError(
                    f"objectives.smart.epsilon: {self.settings.epsilon:g} is too small for this model; the penalty is"
                    f" {float(penalty):.2g}, next to a loss of {float(plain):.3g}; raise epsilon and sigma (10 times as"
                    " large, they make it 100 times as large) or weight"
                )
