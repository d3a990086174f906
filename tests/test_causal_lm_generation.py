"""Generation by causal language models: batches, stop tokens, long prompts, and random state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_chat import CHATML, make_tokenizer
from tiny_decoders import ROWS, loss_of, make_model

from pefttools.errors import UserError
from pefttools.tasks import _generation
from pefttools.tasks.base import IGNORED
from pefttools.tasks.causal_lm import CausalLM

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it


@pytest.mark.parametrize("method", ["none", "lora", "prefix", "prompt"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_independent_of_batch(family: str, method: str) -> None:
    """The reference is greedy decoding, token by token, without cache or padding."""
    import peft

    model: Any = make_model(family)
    configs = {
        "lora": lambda: peft.LoraConfig(
            init_lora_weights=False, target_modules="all-linear", fan_in_fan_out=family == "gpt2"
        ),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    }
    if method != "none":
        config = configs[method]()
        config.task_type = "CAUSAL_LM"
        model = peft.get_peft_model(model, config).eval()
    tokenizer, task = make_tokenizer(), CausalLM(chat=True, max_new_tokens=5)
    rows = [task.read(row) for row in ROWS]
    predictions = dict(task.generate(model, rows, tokenizer))
    for number, ids in enumerate(task.prompts(rows, tokenizer)):
        written: list[int] = []
        while len(written) < 5 and written[-1:] != [2]:
            with torch.inference_mode():
                line = torch.tensor([[*ids, *written]])
                logits = model(input_ids=line, attention_mask=torch.ones_like(line)).logits
            written.append(int(logits[0, -1].argmax()))
        expected = tokenizer.decode(written, skip_special_tokens=True)
        assert predictions[number] == {"prediction": expected, "finish": "stop" if 2 in written else "length"}


@pytest.mark.slow
def test_overfitted_model_generates_the_completions_and_stops() -> None:
    model, tokenizer = make_model("llama"), make_tokenizer()
    task = CausalLM(chat=True, packing=True, max_length=256, max_new_tokens=20, answer_pattern="([0-9]+)")
    rows = [task.read(row) for row in ROWS]
    columns = task.encode(rows, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        (loss_of(task, model, task.collate_training(columns, tokenizer, 8)) / sum(columns["num_targets"])).backward()
        optimizer.step()
        optimizer.zero_grad()
    batch = task.collate(columns, tokenizer, 8)
    predictions = task.predict(model(**task.inputs_of(batch)), batch)
    model.generation_config.eos_token_id = None  # a base from GGUF may lack it; the tokenizer has it
    texts = dict(task.generate(model, rows, tokenizer))
    assert [texts[i] for i in range(4)] == [{"prediction": row["completion"], "finish": "stop"} for row in rows]
    scores = task.metrics([{**p, **texts[i]} for i, p in enumerate(predictions)], [task.reference(row) for row in rows])
    assert scores.pop("perplexity") < 1.1
    assert scores == {"rouge_l": 1.0, "exact_match": 1.0, "stopped": 1.0}


def test_generation_keeps_the_mode_and_the_random_state() -> None:
    model, tokenizer, task = make_model("llama").train(), make_tokenizer(), CausalLM(chat=True, max_new_tokens=4)
    rows, before = [task.read(row) for row in ROWS], torch.get_rng_state()
    drawn = task.with_values(temperature=1.0)
    assert dict(drawn.generate(model, rows, tokenizer)) == dict(drawn.generate(model, rows, tokenizer))
    beams = dict(task.with_values(num_beams=3).generate(model, rows, tokenizer))
    assert {*beams} == {0, 1, 2, 3}
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_long_prompt_is_truncated_to_leave_room_for_new_tokens() -> None:
    model, tokenizer = make_model("llama"), make_tokenizer()
    tokenizer.model_max_length = 20
    decoding = _generation.Decoding(max_new_tokens=12)
    long, short = ([*range(5, 35)], [*range(27, 35)])
    predictions = dict(_generation.generate(model, [long, short], tokenizer, decoding))
    assert predictions[0] == predictions[1]  # the long prompt is truncated at its start
    with pytest.raises(UserError, match=r"task.max_new_tokens: 20 leaves no room for a prompt: the model takes 20"):
        list(_generation.generate(model, [short], tokenizer, _generation.Decoding(max_new_tokens=20)))


def test_end_token_of_the_chat_template_stops_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """If turns end with another token than texts do, both tokens stop generation."""
    tokenizer = make_tokenizer(CHATML.replace("<|im_end|>", "<pad>"))
    task, calls = CausalLM(chat=True), []
    rows = [task.read(row) for row in ROWS]
    columns = task.encode(rows, tokenizer)
    assert tokenizer.decode([i for i in columns["labels"][0] if i != IGNORED]) == "1<pad>"
    monkeypatch.setattr(_generation, "generate", lambda *arguments: calls.append(arguments) or iter(()))
    assert list(task.generate(make_model("llama"), rows, tokenizer)) == []
    ((_, prompts, _, decoding),) = calls
    assert decoding.stop_ids == (0,)
    assert all(ids[: len(p)] == p for ids, p in zip(columns["input_ids"], prompts, strict=True))
