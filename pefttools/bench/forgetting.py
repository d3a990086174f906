"""Forgetting: the loss on a text that the model was not fine-tuned on, before and after fine-tuning.

A causal model is evaluated directly. A sentence encoder has no language-model head, so one is trained on the frozen
pretrained encoder (`top_layers`, the head alone), once for every suite and base. Then every fine-tuned encoder replaces
the pretrained one below this head, as in the probes of Merchant et al. (2020).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import atomic
from pefttools.data.encoding import encode
from pefttools.data.splitting import load_splits
from pefttools.reporter import SILENT
from pefttools.training import stack
from pefttools.training.evaluation import Evaluator
from pefttools.training.run import Run, load

if TYPE_CHECKING:
    from pefttools.training.run import Trained

TOKENS = 8_192
"""Upper limit of tokens that are scored; the first text is scored whatever its length."""


def forgetting(trained: Trained, retention: Path) -> dict[str, Any]:
    """`before` and `after`, the mean loss a token on the retention run's test rows; or the `reason` why there is none.

    Args:
        retention: a finished run on the same base that trained only a language-model head.
    """
    run, words = Run.open(retention), load(retention)
    if words.base.sha256 != trained.base.sha256:
        return {"reason": f"the retention text was prepared for {words.base.source}"}
    splits = load_splits(run.recipe().data, words.task)
    rows = splits.test or splits.validation
    encoded = encode(rows, words.task, words.base, "retention")
    rows = rows[: _number(encoded["row"][:], encoded["length"][:])]
    encoded = encode(rows, words.task, words.base, "retention")
    target: Any = words.model
    prefix = target.base_model_prefix

    def loss(body: Any) -> float:
        setattr(target, prefix, body)
        return Evaluator(target, words.task, words.base.tokenizer).score(encoded, rows, "retention").metrics["loss"]

    body = _body(trained)
    if body is None:
        return {"reason": "virtual tokens are part of the tuned model's inputs, and the retention text has none"}
    if type(body) is not type(getattr(target, prefix)):
        return {"reason": f"a {type(body).__name__} cannot take the place of {type(getattr(target, prefix)).__name__}"}
    before = _once(
        retention,
        trained,
        splits.digest,
        lambda: loss(getattr(stack.load_base(trained.recipe, trained.path, SILENT).model, prefix)),
    )
    return {"before": before, "after": loss(body), "rows": len(rows)}


def _number(row_of: Sequence[int], lengths: Sequence[int]) -> int:
    """The number of first texts that together have at most `TOKENS` tokens, but at least one."""
    tokens = 0
    for row, length in zip(row_of, lengths, strict=True):
        tokens += length
        if tokens > TOKENS:
            return max(1, row)
    return row_of[-1] + 1


def _once(retention: Path, trained: Trained, rows: str, loss: Callable[[], float]) -> float:
    """The loss of the pretrained base, computed once and saved in the retention run's folder.

    Args:
        rows: the digest of the retention run's rows.
    """
    base = trained.recipe.base.model_dump_json(exclude={"dropout"}) + rows
    file = retention / f"before-{hashlib.sha256(base.encode()).hexdigest()[:16]}.json"
    if not file.is_file():
        atomic.write_json(file, loss())
    return json.loads(file.read_text("utf-8"))


def _body(trained: Trained) -> Any:
    """The fine-tuned model below its head: merged, or with its adapters; None if it has virtual tokens."""
    model: Any = trained.model
    strategy = trained.recipe.strategy
    if strategy.mergeable:
        model = strategy.merge(model)
    elif hasattr(model, "peft_config"):
        if any(hasattr(config, "num_virtual_tokens") for config in model.peft_config.values()):
            return None
        model = model.base_model.model
    return getattr(model, model.base_model_prefix, None)
