"""nudged: the loss plus the loss on slightly changed input embeddings."""

from typing import Any, ClassVar

from pefttools.nn import input_embeddings
from pefttools.objectives.base import Batch, BoundObjective, Context, Forward, Objective


class Nudged(Objective):
    """The size of the change."""

    reuses_features: ClassVar[bool] = False
    needs_plain_autograd: ClassVar[bool] = True

    size: float = 0.1

    def bind(self, context: Context) -> BoundObjective:
        return _Nudged(self.size, context.model)


class _Nudged(BoundObjective):
    def __init__(self, size: float, model: Any) -> None:
        self.size, self.model = size, model

    def loss(self, forward: Forward, batch: Batch) -> Any:
        plain = input_embeddings.of(self.model, batch["input_ids"])

        def with_changed_embeddings(batch: Batch, embeddings: Any = None) -> Any:
            return forward(batch, (plain if embeddings is None else embeddings) * (1 + self.size) + self.size)

        return self.inner(forward, batch) + self.inner(with_changed_embeddings, batch)
