"""What the trained model answers on real rows, kept to hold an artifact's answers against."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pefttools.exporters import verify, writing

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.data.splitting import Row
    from pefttools.training.run import Trained

COMPARED_ROWS = 128
"""Rows whose logits are compared, at most; the metric is of all that the run was scored on."""
COMPARED_VALUES = 30_000_000
"""Logits that are compared, at most; a language model has one a token and word of its vocabulary."""


@dataclass(frozen=True)
class Proof:
    """The rows that are asked, and the trained model's answers."""

    trained: Trained
    rows: list[Row]
    """Whose logits are compared."""
    scored: list[Row]
    """Whose metric is compared."""
    asked: list[Row]
    """Those that are answered in text; none where the task writes none."""
    logits: list[Tensor]
    texts: list[writing.Answer]
    metrics: dict[str, Any]

    @classmethod
    def of(cls, trained: Trained, scored: list[Row]) -> Proof:
        """Ask the trained model."""
        asked = (trained.model, trained.task)
        (first, *_), _ = verify.answers(*asked, scored[:1], trained.base.tokenizer)
        rows = scored[: min(COMPARED_ROWS, max(4, COMPARED_VALUES // first.numel()))]
        logits = verify.exact_logits(*asked, rows, trained.base.tokenizer)
        brief = writing.short(trained.task, trained.base.tokenizer, rows)
        texts = writing.trained_answers(*asked, brief, trained.base.tokenizer)
        metrics = verify.scores(*asked, scored, trained.base.tokenizer)
        return cls(trained, rows, scored, brief, logits, texts, metrics)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that is written: with the chat template that was trained with."""
        return writing.tokenizer_of(self.trained.task, self.trained.base.tokenizer)

    @property
    def pad_token_id(self) -> int | None:
        """The padding that the model's configuration names."""
        config: Any = self.trained.model.config
        return getattr(config, "pad_token_id", None)

    @property
    def largest(self) -> float:
        """The trained model's largest logit."""
        return max(float(row.abs().max()) for row in self.logits)

    @property
    def scale(self) -> float:
        """What fp32 tolerances are multiplied with: a language model's logits are large, and sums round in parts."""
        return 1.0 if self.trained.task.own_head else max(1.0, self.largest)

    @property
    def metric(self) -> str:
        return self.trained.task.primary

    def answers(self, model: nn.Module) -> list[Tensor]:
        """Another model's logits on the rows."""
        return verify.exact_logits(model, self.trained.task, self.rows, self.trained.base.tokenizer)

    def answers_in_text(self, model: nn.Module) -> list[writing.Answer]:
        """Another model's answers in text."""
        return writing.trained_answers(model, self.trained.task, self.asked, self.trained.base.tokenizer)

    def score(self, model: nn.Module) -> float:
        """Another model's metric."""
        return verify.scores(model, self.trained.task, self.scored, self.trained.base.tokenizer)[self.metric]
