"""What `doctor` finds with a recipe's model: each fault is planted in a tiny base or its rows."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_bases
import torch
import transformers
from conftest import KEYS, WORDS, make_rows, make_tokenizer, pretrain, write_recipe, write_rows
from examining import examine

from pefttools import cli
from pefttools.doctor.steps import measured
from pefttools.training import padding

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for m in messages %}[CLS] {{ m['content'] }}{{ ' ' + eos_token if m['role'] == 'assistant' else '' }}"
    " {% endfor %}{{ '[CLS] ' if add_generation_prompt else '' }}"
)
OTHER = TEMPLATE.replace("[CLS]", "[MASK]")
WITHOUT_END = TEMPLATE.replace("{{ ' ' + eos_token if m['role'] == 'assistant' else '' }}", "")


def sentences(number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=16)) for _ in range(number)]


@pytest.fixture(scope="module")
def decoder(bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with an end token and a chat template."""
    folder = shutil.copytree(bases("llama"), tmp_path_factory.mktemp("decoder") / "llama")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token, tokenizer.chat_template = "[SEP]", TEMPLATE
    tokenizer.save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def chats(decoder: Path, tmp_path: Path) -> Path:
    """A sound recipe that trains the decoder to repeat words."""
    rows = [{"prompt": text[:30].rpartition(" ")[0], "completion": text} for text in sentences(160, seed=0)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    task = {"name": "causal_lm", "max_length": 64, "generate_rows": 2, "max_new_tokens": 4}
    return write_recipe(tmp_path / "chat.yaml", decoder, file, task=task, train={"epochs": 8, "learning_rate": 0.003})


def test_sound_chats_have_no_findings(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", str(chats), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["findings"], values["warnings"]) == ([], [])
    assert {"base knows the test rows", "no supervised end token", "chat template"} <= {*values["checked"]}


def test_chat_template_differs_from_the_bases(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.jinja").write_text(OTHER)
    found = examine(capsys, chats, f"task.chat_template={tmp_path / 'other.jinja'}")["chat template"]
    assert found["evidence"].startswith("5 of 5 chats differ; after 1 equal characters the base's has 'CLS] ")
    assert "the recipe's 'MASK] " in found["evidence"]
    assert found["cure"].endswith("task.chat_template=null")
    (tmp_path / "same.jinja").write_text(TEMPLATE)
    assert examine(capsys, chats, f"task.chat_template={tmp_path / 'same.jinja'}") == {}
    assert examine(capsys, chats, f"task.chat_template={tmp_path / 'other.jinja'}", "task.chat_template=null") == {}


def test_answers_without_a_supervised_end(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "endless.jinja").write_text(WITHOUT_END)
    found = examine(capsys, chats, f"task.chat_template={tmp_path / 'endless.jinja'}")["no supervised end token"]
    assert "0 of " in found["evidence"]
    found = examine(capsys, chats, "task.max_length=12")
    assert found["no supervised end token"]["cure"].endswith("task.max_length=24")


def test_rows_cut_before_their_answer(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = sentences(160, seed=0)
    rows = [{"prompt": text if i % 4 else f"word{i}", "completion": "word2"} for i, text in enumerate(texts)]
    file = write_rows(tmp_path / "long.jsonl", rows)
    found = examine(capsys, chats, f"data.train={file}", "task.max_length=12")["rows cut before their answer"]
    assert " rows are truncated before their answer begins" in found["what"]
    assert "of the rows have no target within 12 tokens" in found["evidence"]


def test_base_that_knows_the_test_rows(decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = sentences(20, seed=5)
    known = shutil.copytree(decoder, tmp_path / "known")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(known)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(known)
    batch = tokenizer(test, return_tensors="pt", padding=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(known)
    rows = [write_rows(tmp_path / f"{n}.jsonl", [{"text": text} for text in texts])
            for n, texts in (("train", sentences(160, seed=0)), ("test", test))]  # fmt: skip
    data = {"train": str(rows[0]), "test": str(rows[1])}
    task, train = {"name": "causal_lm", "max_length": 32}, {"epochs": 8, "learning_rate": 0.003}
    for base, is_found in ((known, True), (decoder, False)):
        file = write_recipe(tmp_path / "r.yaml", base, rows[0], data=data, task=task, train=train)
        found = examine(capsys, file)
        assert ("base knows the test rows" in found) is is_found
        if is_found:
            assert " on 20 test rows with " in found["base knows the test rows"]["evidence"]


@pytest.mark.parametrize("right", [False, True])
def test_labels_in_another_order_than_the_trained_head(
    right: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer(("input_ids", "token_type_ids", "attention_mask"))
    sizes = {**tiny_bases.ENCODERS["bert"], "vocab_size": len(tokenizer)}
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model("bert", **sizes, num_labels=3)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    pretrain(model, tokenizer)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    names = [*KEYS] if right else ["tool", "colour", "fruit"]
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(300))
    base = {"source": str(tmp_path / "base"), "trained_head": "keep", "dropout": 0.0}
    task = {"name": "text_classification", "max_length": 32, "labels": names}
    file = write_recipe(
        tmp_path / "r.yaml", tmp_path / "base", rows, base=base, task=task, train={"learning_rate": 3e-3}
    )
    found = examine(capsys, file)
    if right:
        assert "labels that do not line up" not in found
    else:
        assert found["labels that do not line up"]["cure"].endswith("'task.labels=[fruit, tool, colour]'")
        assert "before training the head is right on " in found["labels that do not line up"]["evidence"]


def test_dead_gradients(bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Units that a bias of −100 shuts off pass nothing on, so nothing before them is trained."""
    model: Any = transformers.AutoModel.from_pretrained(bases("bert"))
    with torch.no_grad():
        model.encoder.layer[0].intermediate.dense.bias.fill_(-100.0)
    base = shutil.copytree(bases("bert"), tmp_path / "base")
    model.save_pretrained(base)
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(300))
    task = {"name": "text_classification", "max_length": 32}
    file = write_recipe(tmp_path / "r.yaml", base, rows, task=task, train={"learning_rate": 3e-3})
    found = examine(capsys, file)["dead gradients"]
    assert found["evidence"].startswith("4 of ")
    assert "encoder.layer.0." in found["evidence"]
    assert "dead gradients" not in examine(capsys, file, "strategy.targets=[query,value]")


def test_padding_that_is_read_a_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """FNet reads padding much, and is refused; with a higher limit of what is refused, it is reported."""
    monkeypatch.setattr(padding, "READS", 1e9)
    base = tiny_bases.write(tmp_path / "base", "fnet")
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(60))
    file = write_recipe(tmp_path / "r.yaml", base, rows, task={"name": "text_classification"}, strategy="frozen")
    found = examine(capsys, file)["padding"]
    assert "8 padding tokens change logits by up to " in found["evidence"]


def test_range_is_measured_only_where_the_loss_falls() -> None:
    rates = [1e-5 * 1.15**i for i in range(100)]
    falls = [2.0] * 40 + [2.0 - 0.04 * i for i in range(30)] + [0.8 + 0.3 * i for i in range(30)]
    found = measured(rates, falls)
    assert found is not None
    assert rates[40] < found.effective < rates[60]
    assert rates[70] < found.diverges < rates[90]
    assert measured(rates, [2.0 + 0.01 * (i % 3) for i in range(100)]) is None
    assert measured(rates, [2.0] * 40 + [float("nan")]) is None
    assert measured(rates[:5], falls[:5]) is None
