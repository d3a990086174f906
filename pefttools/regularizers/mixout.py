"""mixout: w̃ = (M⊙w + (1−M)⊙u − p·u)/(1−p), which resets a share p of each matrix to its start in every step.

Lee, Cho and Kang (2020), eq. 5, with u the pretrained weights and M ~ Bernoulli(1−p) elementwise: E[w̃] = w, and
∂w̃/∂w = M/(1−p). M is drawn once per step, not once per forward pass. Only pretrained matrices are mixed (including
embeddings; the authors' code mixes only linear layers), never vectors or new weights. The authors use it instead of
dropout: set `base.dropout: 0`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pefttools.regularizers.base import Affected, Penalty, Regularizer, RowLosses, pretrained_and_new, start_of

if TYPE_CHECKING:
    from torch import Tensor, nn


class Mixout(Regularizer):
    """Share of the weights to mix."""

    affects: ClassVar[Affected] = "pretrained matrices"

    p: float = Field(default=0.7, gt=0, lt=1)
    """Share of each pretrained matrix that is replaced by its initial values during a step."""

    def bind(self, model: nn.Module, head: Sequence[str], row_losses: RowLosses) -> Penalty:  # noqa: ARG002
        pretrained, _ = pretrained_and_new(model, head)
        matrices = [p for p in pretrained.values() if p.ndim == 2]
        if not matrices:
            raise self.refusal("pretrained matrix", model)
        return _Mixed(self.p, matrices, [start_of(p) for p in matrices])


@dataclass(frozen=True)
class _Mixed(Penalty):
    p: float
    weights: list[nn.Parameter]
    starts: list[Tensor]

    def value(self) -> None:
        return None

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        import torch

        masks = self.masks()
        originals = [start_of(w) for w in self.weights]
        try:
            with torch.no_grad():
                for w, u, mask in zip(self.weights, self.starts, masks, strict=True):
                    w.copy_((torch.where(mask, w, u) - self.p * u) / (1 - self.p))
            yield
        finally:
            with torch.no_grad():
                for w, original in zip(self.weights, originals, strict=True):
                    w.copy_(original)
        for w, mask in zip(self.weights, masks, strict=True):
            if w.grad is not None:
                w.grad.mul_(mask / (1 - self.p))

    def masks(self) -> list[Tensor]:
        """M of every matrix, True with probability 1 − p; equal on all processes, so that their weights stay equal."""
        import torch

        device = self.weights[0].device
        seed = torch.randint(2**62, ()).to(device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(seed, 0)
        draw = torch.Generator(device).manual_seed(int(seed))
        return [torch.empty_like(w, dtype=torch.bool).bernoulli_(1 - self.p, generator=draw) for w in self.weights]
