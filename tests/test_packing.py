"""Packed rows equal single rows; packing is refused for models that read a packed row as one text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_chat import TWO_TURNS, make_tokenizer
from tiny_decoders import FAMILIES, ROWS, encoded, loss_of, make_model

from pefttools.data import packing
from pefttools.errors import UserError
from pefttools.tasks.causal_lm import CausalLM

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_loss_and_gradients_of_single_rows(family: str, attention: str) -> None:
    more = {"sliding_window": 12} if family == "mistral" else {}
    model = make_model(family, attn_implementation=attention, **more).train()
    tokenizer, task = make_tokenizer(), CausalLM(max_length=150, packing=True, chat=True)
    columns = encoded(task, [*ROWS, {"messages": TWO_TURNS}], tokenizer)
    assert packing.keeps_apart(model)
    found = []
    for collate, multiple in ((task.collate, 1), (task.collate, 8), (task.collate_training, 8)):
        batch = collate(columns, tokenizer, multiple)
        model.zero_grad()
        loss = loss_of(task, model, batch)
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    assert len(batch["input_ids"]) < len(columns["input_ids"])  # the last was packed
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert (gradient - found[0][1]).abs().max() <= 1e-5 * found[0][1].abs().max()


def test_packed_rows_without_position_ids_attend_to_each_other() -> None:
    """This shows that the test above can fail: an ordinary mask lets a packed row attend to those before it."""
    model, tokenizer = make_model("llama"), make_tokenizer()
    task = CausalLM(max_length=150, packing=True, chat=True)
    columns = encoded(task, ROWS, tokenizer)
    single = loss_of(task, model, task.collate(columns, tokenizer, 1)).item()
    batch = task.collate_training(columns, tokenizer, 1)
    blind = {name: tensor for name, tensor in batch.items() if name != packing.POSITIONS}
    assert abs(loss_of(task, model, blind).item() / single - 1) > 1e-3


def test_packing_is_refused_where_rows_would_attend_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    from pefttools.bases import loading

    assert not packing.keeps_apart(make_model("opt"))
    monkeypatch.setattr(loading, "load", lambda *_, **__: SimpleNamespace(model=make_model("opt")))
    task, tokenizer = CausalLM(packing=True, chat=True), make_tokenizer()
    with pytest.raises(UserError, match=r"task.packing: in a opt model, packed rows attend to each other"):
        task.load(loading.BaseSettings(source="it"))
    batch = task.collate_training(encoded(task, ROWS, tokenizer), tokenizer, 1)
    for config in (PrefixTuningConfig, PromptTuningConfig):
        model = get_peft_model(make_model("llama"), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
        with (
            pytest.warns(UserWarning, match="Position ids") if config is PromptTuningConfig else _nothing(),
            pytest.raises(UserError, match=r"task.packing: the strategy's virtual tokens"),
        ):
            loss_of(task, model, batch)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()
