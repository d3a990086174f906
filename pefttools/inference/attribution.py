"""How much each token contributed to an answer, by Captum: integrated gradients or occlusion.

Integrated gradients (Sundararajan et al. 2017) integrate the gradient of a score along the straight line from the
embeddings x₀ of a text of padding tokens to those of the row, x; special tokens stay. They add up to f(x) − f(x₀): the
relative difference is the completeness error, which falls with the number of steps. Occlusion hides one word at a time
from the model's attention, and shows how much lower the score is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pefttools.errors import UserError
from pefttools.inference.token_words import Word, words
from pefttools.nn import input_embeddings
from pefttools.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.tasks._explained import Explained
    from pefttools.tasks.base import Task

Method = Literal["integrated_gradients", "occlusion"]
STEPS = (32, 64, 128, 256, 512, 1024)
"""Numbers of steps of the integral that are tried until the completeness error is small enough."""
ENOUGH = 0.01
"""Completeness error from which on there are no more steps."""
WORK = 7.5e11
"""Limit of steps · tokens · parameters, beyond which there are no more steps: a minute or two on two cores."""
SLOW = 5.0
"""Seconds of the steps tried last, from which on a note says that more are tried."""
SMALLEST = 1e-3
"""Difference of scores below which the completeness error is relative to this."""
TOKENS = 4096
"""Upper limit of tokens that are computed at once."""


@dataclass(frozen=True)
class Attribution:
    """The contributions of a row's words to an answer."""

    about: str
    words: list[Word]
    values: list[float]
    """The contribution of each word, in the unit of the score (log-odds, or the number itself)."""
    score: float
    baseline: float
    """The score of the text of padding tokens; for occlusion, if all words are hidden."""
    error: float | None
    """The completeness error; None for occlusion."""
    steps: int | None


def attribute(
    model: nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    batch: Mapping[str, Tensor],
    explained: Explained,
    method: Method,
    reporter: Reporter = SILENT,
) -> Attribution:
    """The contributions of the words of one encoded row.

    Args:
        batch: the encoded rows of one row.

    Raises:
        UserError: the model does not look up its input ids in a table of embeddings.
    """
    import torch

    ids = batch["input_ids"][explained.window : explained.window + 1]
    own = {k: v[explained.window : explained.window + 1] for k, v in batch.items()}
    found = words(ids.flatten().tolist(), tokenizer)
    function, special = _Score(model, task, own, explained), _special(ids, own, tokenizer)
    if method == "occlusion":
        values, score, least = _occluded(function, special, found)
        return Attribution(explained.about, found, values, score, least, None, None)
    baseline = torch.where(special, ids, torch.full_like(ids, tokenizer.pad_token_id))  # type: ignore[arg-type]
    try:
        score, least = (function.of_embeddings(input_embeddings.of(model, one)).item() for one in (ids, baseline))
        values, error, steps = _integrated(function, ids, baseline, score - least, reporter)
    except input_embeddings.NotLookedUp as problem:
        raise UserError(
            "explain: this model does not look up its input ids in a table of embeddings, so no contribution of tokens"
            " can be computed"
        ) from problem
    of_words = [float(sum(values[word.first : word.end])) for word in found]
    return Attribution(explained.about, found, of_words, score, least, error, steps)


@dataclass(frozen=True)
class _Score:
    """The score of an answer as a function of the embeddings or the ids of one encoded row."""

    model: nn.Module
    task: Task
    own: Mapping[str, Tensor]
    explained: Explained

    def of_embeddings(self, embeddings: Tensor) -> Tensor:
        """Scores of several embeddings of the row, shape (rows, …, tokens, width) -> (rows,)."""
        batch = self._batch(len(embeddings))
        with input_embeddings.substituted(self.model, batch["input_ids"], embeddings):
            outputs = self.model(**self.task.inputs_of(batch))
        return self.explained.score(outputs, batch)

    def of_attention(self, mask: Tensor) -> Tensor:
        """Scores of several attention masks, shape (rows, …, tokens) -> (rows,)."""
        batch = {**self._batch(len(mask)), "attention_mask": mask}
        return self.explained.score(self.model(**self.task.inputs_of(batch)), batch)

    def _batch(self, number: int) -> dict[str, Tensor]:
        return {name: value.expand(number, *value.shape[1:]).contiguous() for name, value in self.own.items()}

    @property
    def at_once(self) -> int:
        """Number of copies of the row that are computed at once."""
        return max(1, TOKENS // self.own["input_ids"].numel())


def _special(ids: Tensor, own: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Which tokens are special or padding, so that they contribute nothing."""
    import torch

    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
    return special | (own["attention_mask"] == 0) if "attention_mask" in own else special


def _integrated(
    function: _Score, ids: Tensor, baseline: Tensor, change: float, reporter: Reporter
) -> tuple[list[float], float, int]:
    """The contribution of each token, the completeness error, and the number of steps."""
    import torch
    from captum.attr import IntegratedGradients

    with torch.no_grad():
        inputs, start = (input_embeddings.of(function.model, one) for one in (ids, baseline))
    integrated = IntegratedGradients(function.of_embeddings)
    found, error, steps = torch.zeros(0), float("inf"), 0
    of_a_step = ids.numel() * sum(parameter.numel() for parameter in function.model.parameters())
    for steps in STEPS:
        begun = time.monotonic()
        found = integrated.attribute(
            inputs, baselines=start, n_steps=steps, method="gausslegendre", internal_batch_size=function.at_once
        )
        error = abs(float(found.sum()) - change) / max(abs(change), SMALLEST)
        if error <= ENOUGH or 2 * steps * of_a_step > WORK:
            break
        if time.monotonic() - begun > SLOW and steps != STEPS[-1]:
            reporter.note(f"with {steps} steps the completeness error is {error:.1%}; trying {2 * steps}")
    return found.sum(-1).flatten().tolist(), error, steps


def _occluded(function: _Score, special: Tensor, found: Sequence[Word]) -> tuple[list[float], float, float]:
    """How much the score falls if a word is hidden, the score, and the score if all words are hidden."""
    import torch
    from captum.attr import FeatureAblation

    mask = function.own.get("attention_mask", torch.ones_like(special, dtype=torch.long))
    hidden = mask * special
    places: Any = torch.empty(mask.numel(), dtype=torch.long, device=mask.device)
    for number, word in enumerate(found):
        places[word.first : word.end] = number
    with torch.no_grad():
        score, least = (function.of_attention(one).item() for one in (mask, hidden))
        lost = FeatureAblation(function.of_attention).attribute(
            mask,
            baselines=hidden,
            feature_mask=places.reshape(mask.shape),
            perturbations_per_eval=function.at_once,
        )
    if not all(map(math.isfinite, (score, least, *(values := lost.flatten().tolist())))):
        raise UserError(
            "explain: this model has no outputs if words are hidden from its attention; use --method"
            " integrated_gradients"
        )
    return [float(values[word.first]) for word in found], score, least
