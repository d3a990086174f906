"""What fine-tuning made the model forget: its loss on a text it was not tuned on, before and after.

A causal model is asked itself. An encoder for sentences has no head for words, so one is trained on the untouched
encoder, which stays as it is (`top_layers`, the head alone), once for a suite and base; then every tuned encoder takes
the place of the untouched one under this same head (Merchant et al. 2020 probe encoders so).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import evaluate
from pefttools.data.encoding import encode
from pefttools.data.splitting import load_splits
from pefttools.run import Run, load

if TYPE_CHECKING:
    from pefttools.run import Trained

ROWS = 200
"""Texts that are scored, at most."""


def forgetting(trained: Trained, retention: Path) -> dict[str, Any]:
    """`before` and `after`: the mean loss a token on the retention run's test rows; or `reason` why there is none.

    Args:
        retention: the finished run whose base is the trained model's, its body untouched.
    """
    run, words = Run.open(retention), load(retention)
    if words.base.sha256 != trained.base.sha256:
        return {"reason": f"the retention text was prepared for {words.base.source}"}
    splits = load_splits(run.recipe().data, words.task)
    rows = (splits.test or splits.validation)[:ROWS]
    encoded = encode(rows, words.task, words.base, "retention")
    target: Any = words.model
    prefix = target.base_model_prefix
    untouched: Any = trained.task.load(trained.recipe.base).model
    losses = []
    for body in (getattr(untouched, prefix, None), _body(trained)):
        if body is None:
            return {"reason": "virtual tokens are part of the tuned model's inputs, and the retention text has none"}
        if type(body) is not type(getattr(target, prefix)):
            return {
                "reason": f"a {type(body).__name__} cannot take the place of {type(getattr(target, prefix)).__name__}"
            }
        setattr(target, prefix, body)
        losses.append(_loss(words, encoded, rows))
    return {"before": losses[0], "after": losses[1], "rows": len(rows)}


def _loss(trained: Trained, encoded: Any, rows: Any) -> float:
    tokenizer = trained.base.tokenizer
    return evaluate.score(trained.model, trained.task, encoded, rows, tokenizer, "retention").metrics["loss"]


def _body(trained: Trained) -> Any:
    """The tuned model below its head: merged, or with its adapters inside; None where it takes virtual tokens."""
    model: Any = trained.model
    strategy = trained.recipe.strategy
    if strategy.mergeable:
        model = strategy.merge(model)
    elif hasattr(model, "peft_config"):
        if any(hasattr(config, "num_virtual_tokens") for config in model.peft_config.values()):
            return None
        model = model.base_model.model
    return getattr(model, model.base_model_prefix, None)
