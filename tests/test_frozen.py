"""Which blocks training never changes, and that they draw no dropout."""

from __future__ import annotations

from typing import Any

import pytest

from pefttools.compatibility import tiny_models
from pefttools.nn.frozen import Frozen, frozen_part
from pefttools.strategies import strategies
from pefttools.tasks.text_classification import TextClassification

TASK = TextClassification.example()


@pytest.mark.parametrize("strategy", ["prompt", "prefix", "lora", "full"])
def test_what_training_reaches_is_not_frozen(strategy: str) -> None:
    base = tiny_models.base(TASK, "bert", False, tiny_models.ARCHITECTURES["bert"].sizes)
    model = strategies.get(strategy)().wrap(base)
    assert not frozen_part(model, TASK.inputs_of(tiny_models.batch(TASK, base.model.config, 3))).blocks


def frozen_bert(layers: int) -> tuple[Any, Frozen]:
    base = tiny_models.base(TASK, "bert", False, tiny_models.ARCHITECTURES["bert"].sizes)
    strategy, _ = strategies.parse({"name": "top_layers", "layers": layers}, "strategy")
    assert strategy is not None
    model = strategy.wrap(base)
    return model, frozen_part(model, TASK.inputs_of(tiny_models.batch(TASK, base.model.config, 3)))


def test_a_tied_table_that_is_trained_is_not_frozen() -> None:
    model, frozen = frozen_bert(1)
    assert len(frozen.blocks) == 1
    model.bert.embeddings.word_embeddings.weight.requires_grad_(True)
    batch = TASK.inputs_of(tiny_models.batch(TASK, model.config, 3))
    assert not frozen_part(model, batch).blocks


def test_the_frozen_part_is_held_in_evaluation_mode() -> None:
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
