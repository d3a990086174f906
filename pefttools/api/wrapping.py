"""Strategies for people who keep their own training loop: wrap a model in memory, train it, merge it or save it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError
from pefttools.strategies import strategies

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from pefttools.strategies.base import Strategy

TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}  # fmt: skip
"""End of a model's class name -> peft's name of its task."""
LANGUAGE_MODELS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
"""Tasks whose output layer is pretrained, so that it is no head."""


def strategy(name: str, **settings: Any) -> Strategy:
    """A strategy by name with its settings, as in a recipe: `strategy("lora", rank=16)`.

    Raises:
        UserError: there is no such strategy, or a setting is wrong.
    """
    found, problems = strategies.parse({"name": name, **settings}, "strategy")
    if found is None:
        raise UserError(*problems)
    return found


def wrap(
    model: PreTrainedModel, method: str | Mapping[str, Any] | Strategy = "lora", *, head: Sequence[str] | None = None,
    tokenizer: Any = None,
) -> nn.Module:  # fmt: skip
    """A model of transformers in memory, changed in place so that it can be trained by a strategy in your own loop.

    Only weights that the strategy trains, and the head's, require gradients. After training, `method.merge(wrapped)`
    returns a plain model of transformers, and `method.save(wrapped, folder)` writes the adapter. Penalties that a
    strategy adds, and what it does after a step (AdaLoRA), are `method.penalty(wrapped)` and
    `method.updated(wrapped, step, num_steps)`.

    Args:
        method: a strategy of `pefttools.strategy`, or its name or mapping.
        head: full paths of the modules to train completely; by default those that a task adds to the pretrained model,
            and none of a language model.
        tokenizer: needed by strategies that look at tokens.

    Raises:
        UserError: the strategy does not fit the model, or there is no module of that path.
    """
    from pefttools.bases import heads
    from pefttools.bases.loading import Base, prepare_libraries

    prepare_libraries()
    if hasattr(model, "peft_config"):
        raise UserError("model: is wrapped by peft already; pass the plain model")
    kind = next((kind for end, kind in TASK_TYPES.items() if type(model).__name__.endswith(end)), None)
    if isinstance(method, (str, Mapping)):
        method = strategy(**({"name": method} if isinstance(method, str) else dict(method)))
    if head is None:
        head = [] if kind in LANGUAGE_MODELS else heads.tops(model)
    elif missing := [path for path in head if path not in dict(model.named_modules())]:
        raise UserError(f"head: the model has no module {', '.join(missing)}")
    source = getattr(model, "name_or_path", "") or type(model).__name__
    paths = tuple(head)
    return method.wrap(Base(model.eval(), tokenizer, paths, kind, source, "", Path(source), paths)).train()
