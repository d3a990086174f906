"""The number of parameters of a strategy on a model of which only the configuration is known."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pefttools.bases import loading
from pefttools.bases.parameters import count_parameters

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task


def count_from_config(
    config: PretrainedConfig, task: Task | type[Task], strategy: Strategy, head: Iterable[str] = ()
) -> dict[str, int]:
    """`count_parameters` of a strategy on a model of which only the configuration is known.

    Args:
        head: paths of modules that belong to the head besides the task's own, which a checkpoint would show.
    """
    import torch
    import transformers

    from pefttools.bases.heads import tops
    from pefttools.nn import new_tokens, positions
    from pefttools.training.wrapping import wrap_empty

    with torch.device("meta"):
        model = getattr(transformers, task.auto_class).from_config(config)
    tokenizer: Any = SimpleNamespace(model_max_length=positions.limit(model))
    own = tops(model) if task.own_head else []
    paths = (*own, *head, *(new_tokens.extend(model, len(task.new_tokens)) if task.new_tokens else ()))
    base = loading.Base(model, tokenizer, paths, task.peft_type, config.model_type, "", Path())
    return count_parameters(wrap_empty(strategy, base), paths)
