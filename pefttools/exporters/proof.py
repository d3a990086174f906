"""The trained model's logits, generated texts and metrics on the run's rows, which an artifact must reproduce."""

from __future__ import annotations

from collections.abc import Sequence
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
"""Upper limit of rows whose logits are compared; the metric is computed on all rows that the run was scored on."""
COMPARED_VALUES = 30_000_000
"""Upper limit of logits that are compared; a language model has one for every token and every vocabulary entry."""


@dataclass(frozen=True)
class Proof:
    """The compared rows, and the trained model's outputs on them."""

    trained: Trained
    rows: Sequence[Row]
    """Rows whose logits are compared."""
    scored: Sequence[Row]
    """Rows on which the metric is compared."""
    text_rows: list[Row]
    """Rows for which text is generated; empty where the task generates none."""
    logits: list[Tensor]
    texts: list[writing.Answer]
    metrics: dict[str, Any]

    @classmethod
    def of(cls, trained: Trained, scored: Sequence[Row]) -> Proof:
        """Run the trained model on the rows it was scored on."""
        model, task, tokenizer = trained.model, trained.task, trained.base.tokenizer
        (first, *_), _ = verify.logits_and_predictions(model, task, scored[:1], tokenizer)
        rows = scored[: min(COMPARED_ROWS, max(4, COMPARED_VALUES // first.numel()))]
        logits = verify.exact_logits(model, task, rows, tokenizer)
        text_rows = writing.shortest_rows(task, tokenizer, rows)
        texts = writing.trained_answers(model, task, text_rows, tokenizer)
        metrics = verify.scores(model, task, scored, tokenizer)
        return cls(trained, rows, scored, text_rows, logits, texts, metrics)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the artifact contains: it has the chat template of the training."""
        return writing.tokenizer_of(self.trained.task, self.trained.base.tokenizer)

    @property
    def pad_token_id(self) -> int | None:
        """The padding token in the model's configuration."""
        config: Any = self.trained.model.config
        return getattr(config, "pad_token_id", None)

    @property
    def largest(self) -> float:
        """The trained model's largest logit."""
        return max(float(row.abs().max()) for row in self.logits)

    @property
    def scale(self) -> float:
        """Factor of fp32 tolerances: a language model's logits are large, and rounding errors are relative."""
        return 1.0 if self.trained.task.own_head else max(1.0, self.largest)

    @property
    def metric(self) -> str:
        return self.trained.task.primary

    def logits_of(self, model: nn.Module) -> list[Tensor]:
        """Another model's logits on the rows, in float64."""
        return verify.exact_logits(model, self.trained.task, self.rows, self.trained.base.tokenizer)

    def texts_of(self, model: nn.Module) -> list[writing.Answer]:
        """Another model's generated texts for `text_rows`."""
        return writing.trained_answers(model, self.trained.task, self.text_rows, self.trained.base.tokenizer)

    def score(self, model: nn.Module) -> float:
        """Another model's metric."""
        return verify.scores(model, self.trained.task, self.scored, self.trained.base.tokenizer)[self.metric]
