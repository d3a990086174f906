"""The frozen part of a model: which blocks training never changes, and that they stay in eval mode."""

from __future__ import annotations

from typing import Any

import pytest

from pefttools.compatibility import tiny_models
from pefttools.nn.frozen import Frozen, frozen_part
from pefttools.strategies import strategies
from pefttools.tasks.text_classification import TextClassification

TASK = TextClassification.example()


@pytest.mark.parametrize("strategy", ["prompt", "prefix", "lora", "full"])
def test_strategies_that_train_below_a_block_leave_no_block_frozen(strategy: str) -> None:
    base = tiny_models.base(TASK, "bert", False, tiny_models.ARCHITECTURES["bert"].sizes)
    model = strategies.get(strategy)().wrap(base)
    assert not frozen_part(model, TASK.inputs_of(tiny_models.batch(TASK, base.model.config, 3))).blocks


def frozen_bert(layers: int) -> tuple[Any, Frozen]:
    base = tiny_models.base(TASK, "bert", False, tiny_models.ARCHITECTURES["bert"].sizes)
    strategy, _ = strategies.parse({"name": "top_layers", "layers": layers}, "strategy")
    assert strategy is not None
    model = strategy.wrap(base)
    return model, frozen_part(model, TASK.inputs_of(tiny_models.batch(TASK, base.model.config, 3)))


def test_blocks_above_trained_embeddings_are_not_frozen() -> None:
    model, frozen = frozen_bert(1)
    assert len(frozen.blocks) == 1
    model.bert.embeddings.word_embeddings.weight.requires_grad_(True)
    batch = TASK.inputs_of(tiny_models.batch(TASK, model.config, 3))
    assert not frozen_part(model, batch).blocks


def test_frozen_part_stays_in_eval_mode() -> None:
    model, frozen = frozen_bert(1)
    names = set(model.state_dict())
    with frozen.in_eval_mode():
        model.train()
        assert model.training
        training = {path for path, module in model.named_modules() if module.training}
        assert "bert.encoder.layer.1.output.dropout" in training
        assert not any(path.startswith(("bert.embeddings", "bert.encoder.layer.0")) for path in training)
        model.eval()
        model.train()
        assert not model.bert.embeddings.dropout.training
        assert set(model.state_dict()) == names
    model.train()
    assert all(module.training for module in model.modules())
