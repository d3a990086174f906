"""mixup: train on mixtures of two rows' embeddings and labels (Zhang et al. 2018; for texts Guo 2019, Sun et al. 2020).

A row becomes λ·e_i + (1 − λ)·e_j, where e are the input embeddings and j is another row, and its label λ·y_i +
(1 − λ)·y_j, with λ ~ Beta(α, α). Cross-entropy is linear in the label, so the loss is λ times that of y_i plus 1 − λ
times that of y_j. This is wordMixup of Guo 2019, "Augmenting Data with Mixup for Sentence Classification".

Rows of different lengths: the model reads as many tokens as the longer row has (its attention mask, segments and
positions), and the shorter row's missing tokens are zero vectors, as in Guo 2019.

Partners and λ: every forward pass draws one λ and one random cycle through its rows, so that each row's partner is
another row. Partners are in the same micro-batch, which has rows of similar length, and in the same process; therefore
results depend on `train.micro_batch_size` and the number of processes, as with dropout, and a row alone in its
micro-batch is not mixed. A run whose micro-batches have one row each is refused. All draws come from torch's random
generator, so a resumed run draws the same ones; sam's second pass draws its own. Validation and test are unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.device import sent
from pefttools.errors import UserError
from pefttools.nn import input_embeddings
from pefttools.objectives.base import Batch, BoundObjective, Context, Forward, Objective
from pefttools.tasks.base import LABELS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task


class Mixup(Objective):
    """Settings of mixup: the distribution of λ."""

    reuses_features: ClassVar[bool] = False
    excludes: ClassVar[tuple[str, ...]] = ("r_drop",)  # its two passes would differ by their mixtures

    alpha: float = Field(default=0.2, gt=0)
    """α of Beta(α, α); usual are 0.2 to 0.4. Small values leave most rows almost unmixed."""

    def problem(self, task: Task, strategy: Strategy) -> str | None:
        del strategy
        if task.auto_class == "AutoModelForSequenceClassification" and task.has_target_logits:
            return None
        return f"mixes rows that have one class each, which task={task.name} does not have here; remove it"

    def bind(self, context: Context) -> BoundObjective:
        config: Any = getattr(context.model, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            raise UserError(
                f"objectives.mixup: the decoder of {context.base.source} reads the text a second time, unmixed; use an"
                " encoder or a decoder alone, or remove mixup"
            )
        if context.micro_batch_rows == 1:
            raise UserError(
                "objectives.mixup: every micro-batch has one row only, so there is nothing to mix it with; raise"
                " train.batch_size, train.micro_batch_size or train.micro_batch_tokens"
            )
        return _Mixed(self.alpha, context.model)


class _Mixed(BoundObjective):
    def __init__(self, alpha: float, model: nn.Module) -> None:
        self.alpha, self.model = alpha, model

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        import torch

        number = len(batch[LABELS])
        if number == 1:
            return self.inner(forward, batch)
        share = torch.distributions.Beta(self.alpha, self.alpha, validate_args=False).sample()
        cycle = torch.randperm(number)
        partner = torch.empty_like(cycle)
        partner[cycle] = cycle.roll(1)
        share, partner = (sent(drawn, batch[LABELS].device) for drawn in (share, partner))
        outputs: list[Any] = []

        def mixed_forward(batch: Batch, embeddings: Tensor | None = None) -> Any:
            outputs.append(forward(*self._mixed(batch, embeddings, share, partner)))
            return outputs[-1]

        own = self.inner(mixed_forward, batch)
        again = iter(outputs)

        def same_outputs(batch: Batch, embeddings: Tensor | None = None) -> Any:
            del batch, embeddings
            return next(again)

        others = self.inner(same_outputs, {**batch, LABELS: batch[LABELS][partner]})
        return share * own + (1 - share) * others

    def _mixed(self, batch: Batch, embeddings: Tensor | None, share: Tensor, partner: Tensor) -> tuple[Batch, Tensor]:
        """The batch in which every row has the tokens, mask and segments of the longer row of its pair, and the mixed
        embeddings."""
        import torch

        ids = batch["input_ids"]
        plain = input_embeddings.of(self.model, ids) if embeddings is None else embeddings
        mask = batch.get("attention_mask", torch.ones_like(ids))
        vectors = plain * mask[..., None]
        lengths = mask.sum(-1)
        is_longer = (lengths[partner] > lengths)[:, None]
        read = {
            name: torch.where(is_longer, values[partner], values) if values.shape == ids.shape else values
            for name, values in batch.items()
        }
        return read, share * vectors + (1 - share) * vectors[partner]
