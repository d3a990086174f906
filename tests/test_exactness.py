"""Logits for comparison are computed in float64 throughout, even where a model's code casts to fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pefttools.compatibility import tiny_models
from pefttools.exporters import exactness
from pefttools.tasks import tasks

TASKS = {"encoders": "text_classification", "decoders": "causal_lm", "encoder-decoders": "seq2seq"}


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_every_architecture_computes_in_float64(name: str) -> None:
    """A cast to fp32 on the way would give logits that fp32 can represent, or an error."""
    architecture = tiny_models.ARCHITECTURES[name]
    task: Any = tasks.get(TASKS[architecture.group])()
    if architecture.group == "encoders":
        task = task.with_values(labels=("a", "b"))
    model = tiny_models.base(task, name, False, architecture.sizes).model.eval()
    inputs = task.inputs_of(tiny_models.batch(task, model.config, 2))
    with torch.no_grad():
        plain = model(**inputs).logits
        with exactness.in_float64(model):
            exact = model(**inputs).logits
            shifted = _first_weight_nudged(model, inputs)
    assert exact.dtype is torch.float64
    assert (exact - plain).abs().max() <= 1e-3 * plain.abs().max()
    assert (exact.float().double() != exact).float().mean() > 0.9
    assert 0 < (shifted - exact).abs().max() < 1e-7
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def _first_weight_nudged(model: Any, inputs: Any) -> torch.Tensor:
    """Logits after embeddings grew by a factor of 1 + 1e-10, which fp32 cannot represent."""
    model.get_input_embeddings().weight.data *= 1 + 1e-10
    return model(**inputs).logits
