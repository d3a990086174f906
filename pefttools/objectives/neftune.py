"""neftune: add uniform noise to the input embeddings in training steps (Jain et al. 2023, "NEFTune", algorithm 1).

The noise of every element is U(−1, 1) · α/√(L·d), where L is the number of the row's tokens without padding and d the
width of the embeddings, so its expected norm over a row is about α/√3. Padding gets no noise. Of packed rows, L is the
number of tokens of each of them. An encoder-decoder gets noise in its encoder only. Virtual tokens of prompt tuning get
none. Evaluations and predictions are unchanged.

The noise comes from torch's random generator, so a resumed run draws the same. Its size does not depend on the
micro-batch, but another size of micro-batches or number of processes draws other values, as with dropout; so does every
pass of objectives that run several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.nn import input_embeddings
from pefttools.objectives.base import Batch, BoundObjective, Context, Forward, Objective

if TYPE_CHECKING:
    from torch import Tensor, nn


class Neftune(Objective):
    """Settings of neftune: the size of the noise."""

    reuses_features: ClassVar[bool] = False

    alpha: float = Field(default=5.0, ge=0)
    """α; the paper uses 5, 10 or 15. 0 leaves the loss exactly unchanged."""

    def bind(self, context: Context) -> BoundObjective:
        return _Noisy(self.alpha, context.model) if self.alpha else BoundObjective()


class _Noisy(BoundObjective):
    def __init__(self, alpha: float, model: nn.Module) -> None:
        self.alpha, self.model = alpha, model

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        def noisy_forward(batch: Batch, embeddings: Tensor | None = None) -> Any:
            plain = input_embeddings.of(self.model, batch["input_ids"]) if embeddings is None else embeddings
            return forward(batch, plain + noise(batch, plain, self.alpha))

        return self.inner(noisy_forward, batch)


def noise(batch: Batch, embeddings: Tensor, alpha: float) -> Tensor:
    """The noise for the embeddings of `batch["input_ids"]`; shape (…, tokens, width)."""
    import torch

    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    size = alpha / (_num_tokens(batch, mask) * embeddings.shape[-1]) ** 0.5 * mask
    return torch.empty_like(embeddings).uniform_(-1, 1) * size[..., None].to(embeddings.dtype)


def _num_tokens(batch: Batch, mask: Tensor) -> Tensor:
    """For every token, the number of tokens in its row, at least 1; shape as the mask, or one value per row."""
    import torch

    if "position_ids" not in batch:
        return mask.sum(-1, keepdim=True).clamp_min(1)
    text = (batch["position_ids"] == 0).cumsum(-1)  # packed: positions begin at 0 in every text
    counts = torch.zeros_like(text).scatter_add(-1, text - 1, torch.ones_like(text))
    return counts.gather(-1, text - 1)
