"""What artifacts contain for generation: the chat template, the stop tokens and the generation settings.

From the same messages, every artifact generates in plain transformers what `predict` generates, and stops there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train_tiny, write_recipe, write_rows
from test_chat import make_tokenizer
from tiny_decoders import make_model

from pefttools.errors import UserError
from pefttools.exporters import writing
from pefttools.exporters.driver import export
from pefttools.inference.prediction import predict_rows

OWN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A chat template set by the recipe; its end token is not that of the tokenizer."""
PAIRS = [("ab", "cd"), ("ba", "dcd"), ("abab", "cc"), ("bb", "d")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A task's settings -> a run on a decoder whose tokenizer has no chat template, made once."""
    folder, made = tmp_path_factory.mktemp("text"), {}
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>", "extra_special_tokens": ["<|im_end|>"]})
    make_model("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder / "base")
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 5, "repetition_penalty": 1.3}
    file = folder / "base" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **sampling}))
    tokenizer.save_pretrained(folder / "base")
    rows = [{"prompt": f"{a}{i}", "completion": b} for i, (a, b) in enumerate(PAIRS * 12)]
    rows = [{"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
            for r in rows]  # fmt: skip
    data = write_rows(folder / "rows.jsonl", rows)

    def run(name: str, /, rows: Path = data, **task: Any) -> Path:
        if name not in made:
            values = {"name": "causal_lm", "max_length": 96, "max_new_tokens": 12, **task}
            values = {key: value for key, value in values.items() if value is not None}
            train = {"epochs": 12, "batch_size": 16, "learning_rate": 0.02}
            recipe = write_recipe(
                folder / f"{name}.yaml",
                folder / "base",
                rows,
                task=values,
                train=train,
                data={"validation_share": 0.25},
            )
            made[name] = train_tiny(recipe, folder / name)[0]
        return made[name]

    return run


def plain(folder: Path, model: Any, question: str) -> tuple[str, bool]:
    """The text that plain transformers generates for a question, and whether a stop token ended it."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = GenerationConfig.from_pretrained(folder)
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        (line,) = model.generate(**inputs, generation_config=settings)
    new = line[inputs["input_ids"].shape[1] :].tolist()
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    return tokenizer.decode(new, skip_special_tokens=True), new[-1] in ends


def in_a_batch(folder: Path, model: Any, questions: list[str]) -> list[str]:
    """The texts that plain transformers generates for questions of different lengths in one batch."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [[{"role": "user", "content": question}] for question in questions]
    values = {"add_generation_prompt": True, "padding": True, "return_tensors": "pt", "return_dict": True}
    inputs = tokenizer.apply_chat_template(messages, **values)
    with torch.inference_mode():
        lines = model.generate(**inputs, generation_config=GenerationConfig.from_pretrained(folder))
    return tokenizer.batch_decode(lines[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def loaded(run: Path, folder: Path, to: str) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if to == "merged":
        return AutoModelForCausalLM.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(json.loads((run / "result.json").read_text())["base"]["id"])
    return PeftModel.from_pretrained(base, str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("to", ["merged", "adapter"])
@pytest.mark.parametrize("template", [None, OWN])
def test_artifact_generates_the_same_text_from_messages_in_plain_transformers(
    template: str | None, to: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    run = trained(f"chat{bool(template)}", chat_template=template)
    manifest = export(run, to, tmp_path / "out")
    assert manifest["answers_in_text"] == writing.ROWS
    model = loaded(run, tmp_path / "out", to)
    for question, expected in zip(
        ("ab1", "bb2"), predict_rows(run, [{"prompt": "ab1"}, {"prompt": "bb2"}], precision="fp32"), strict=True
    ):
        text, stopped = plain(tmp_path / "out", model, question)
        assert (text.strip(), stopped) == (expected["prediction"].strip(), expected["finish"] == "stop")
        assert stopped
    (again,) = predict_rows(tmp_path / "out", [{"prompt": "ab1"}], precision="fp32")
    assert again["finish"] == "stop"
    alone = [plain(tmp_path / "out", model, question)[0] for question in ("ab1", "bbabab2")]
    assert in_a_batch(tmp_path / "out", model, ["ab1", "bbabab2"]) == alone


@pytest.mark.slow
def test_generation_settings_of_the_base_are_not_exported(trained: Callable[..., Path], tmp_path: Path) -> None:
    export(trained("chatTrue", chat_template=OWN), "merged", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (written["do_sample"], written["max_new_tokens"], written["repetition_penalty"]) == (False, 12, 1.0)
    assert "max_length" not in written
    assert len(written["eos_token_id"]) == 2  # the end token of the tokenizer and that of the template


@pytest.mark.slow
def test_sampling_settings_are_exported(trained: Callable[..., Path], tmp_path: Path) -> None:
    export(trained("drawn", temperature=0.7), "merged", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (written["do_sample"], written["temperature"], written["top_k"]) == (True, 0.7, 0)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["template", "end"])
def test_artifact_without_its_template_or_stop_token_is_refused(
    lost: str, trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("chatTrue", chat_template=OWN)
    if lost == "template":
        plain_tokenizer = writing.tokenizer_of
        monkeypatch.setattr(writing, "text_settings", lambda *_: {})

        def without(task: Any, tokenizer: Any) -> Any:
            own = plain_tokenizer(task, tokenizer)
            own.chat_template = OWN.replace("<{{", "[{{")
            return own

        monkeypatch.setattr(writing, "tokenizer_of", without)
        expected = "plain transformers generates"
    else:
        settings = writing.settings_of

        def endless(*values: Any) -> Any:
            found: Any = settings(*values)
            found.eos_token_id = found.eos_token_id[1:]  # the tokenizer's own
            return found

        monkeypatch.setattr(writing, "settings_of", endless)
        expected = r"\(12 tokens, finish length\); the trained model '.*' \(\d+ tokens, finish stop\)"
    with pytest.raises(UserError, match=expected):
        export(run, "merged", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_artifact_in_bfloat16_is_compared_with_bfloat16_text(trained: Callable[..., Path], tmp_path: Path) -> None:
    manifest = export(trained("chatTrue", chat_template=OWN), "merged", tmp_path / "out", settings=["dtype=bfloat16"])
    assert manifest["answers_in_text"] == writing.ROWS


@pytest.mark.slow
def test_chat_template_is_exported_for_chat_prompts_only(trained: Callable[..., Path], tmp_path: Path) -> None:
    """Plain text needs no chat template; a classification prompt in a chat does."""
    from transformers import AutoTokenizer

    rows = write_rows(
        tmp_path / "texts.jsonl", [{"text": f"ab{i}", "label": "cd" if i % 2 else "d"} for i in range(40)]
    )
    going_on = trained("text", rows=rows)
    assert export(going_on, "merged", tmp_path / "text")["answers_in_text"] > 0
    assert AutoTokenizer.from_pretrained(tmp_path / "text").chat_template is None
    task = {"name": "prompted_classification", "prompt": "{text}?", "chat": True, "shots": 1}
    classes = trained("classes", rows=rows, **task, max_new_tokens=None)
    for to in ("merged", "adapter"):
        assert export(classes, to, tmp_path / to)["answers_in_text"] > 0
        assert AutoTokenizer.from_pretrained(tmp_path / to).chat_template
        assert json.loads((tmp_path / to / "generation_config.json").read_text())["max_new_tokens"] == 2
