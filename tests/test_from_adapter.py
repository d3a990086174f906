"""`train --from ADAPTER`: training goes on from an adapter that plain peft and transformers' Trainer made."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import make_rows
from continued_runs import refused, result, train, write
from safetensors.torch import load_file, save_file

import pefttools
from pefttools import cli
from pefttools.recipe import recipes
from pefttools.training.preparation import prepare

pytestmark = pytest.mark.slow
LABELS = ("fruit", "tool")
CONFIGS: Mapping[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]),
    "lora by a pattern": lambda: peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=r".*\.(query|dense)"),
    "ia3": lambda: peft.IA3Config(task_type="SEQ_CLS"),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
    "prefix by an MLP": lambda: peft.PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=4, prefix_projection=True
    ),
    "prompt": lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
    "loha": lambda: peft.LoHaConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]),
}


def foreign(config: Any, base: Path, folder: Path, number: int = 2) -> Path:
    """An adapter of a few steps by transformers' Trainer on a peft model."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    torch.manual_seed(3)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=number)
    rows = make_rows(32, 9, ("fruit", "tool", "colour")[:number])
    names = ("fruit", "tool", "colour")
    data: Any = [{**tokenizer(row["text"]), "labels": names.index(row["label"])} for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, config)
        settings = TrainingArguments(
            str(folder / "trainer"), max_steps=4, learning_rate=0.05, report_to=[], save_strategy="no",
            disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        Trainer(model, settings, train_dataset=data, processing_class=tokenizer).train()
        model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def plain_logits(base: Path, adapter: Path, texts: list[str], number: int = 2) -> torch.Tensor:
    """The logits of plain peft, from the base and the adapter alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=number)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> Path:
    return foreign(CONFIGS["lora"](), bases("bert"), tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> Path:
    """A recipe on rows of the adapters' classes."""
    return write(tmp_path_factory.mktemp("recipes") / "same", bases("bert"), LABELS)


@pytest.mark.parametrize("kind", CONFIGS)
def test_scores_at_step_0_are_those_of_plain_peft(
    kind: str, recipe: Path, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("bert")
    adapter = foreign(CONFIGS[kind](), base, tmp_path)
    words = [f"start.source={adapter}", "start.labels=[fruit,tool]", "train.epochs=1"]
    ready = prepare(recipes.load(str(recipe), words).recipe)
    texts = [row["text"] for row in ready.splits.test]
    plain = plain_logits(base, adapter, texts)
    inputs: Any = ready.base.tokenizer(texts, padding=True, return_tensors="pt")
    ready.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(ready.model(**inputs).logits, plain, rtol=0, atol=1e-5)
    right = [LABELS[i] == row["label"] for i, row in zip(plain.argmax(-1).tolist(), ready.splits.test, strict=True)]
    out = tmp_path / "run"
    assert train(recipe, *words, "--out", out) == 0
    assert result(out)["before"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert result(out)["strategy"] == "peft"
    assert result(out)["facts"] == {}
    start, now = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, out / "adapter"))
    assert start.keys() == now.keys()
    assert all(not torch.equal(start[name], now[name]) for name in start)
    assert cli.run(["evaluate", str(out)]) == 0
    assert cli.run(["export", str(out), "--to", "adapter"]) == 0


def test_an_adapter_with_another_tokenizer_is_refused(
    lora: Path, recipe: Path, bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(lora, other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(bases("bert") / name, other / name)
    prepare(recipes.load(str(recipe), [f"start.source={other}", "start.labels=[fruit,tool]"]).recipe)
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"word39"', '"word99"'))
    words = (recipe, "--from", other, "start.labels=[fruit,tool]")
    assert "2 tokens differ (word39, word99)" in refused(capsys, tmp_path / "out", *words)


def test_classes_that_an_adapter_lacks_come_after_its_own(
    lora: Path, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    more = write(tmp_path / "more", bases("bert"), ("colour", "tool"), 1)
    for adapter in ("continue", "stack"):
        words = (f"start.source={lora}", "start.labels=[fruit,tool]", f"start.adapter={adapter}", "train.epochs=1")
        ready = prepare(recipes.load(str(more), words).recipe)
        assert ready.recipe.task.class_names == ("fruit", "tool", "colour")
        plain = plain_logits(bases("bert"), lora, ["word1 apple", "saw word2"])
        inputs: Any = ready.base.tokenizer(["word1 apple", "saw word2"], padding=True, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(ready.model.eval()(**inputs).logits[:, :2], plain, rtol=0, atol=1e-5)
        out = tmp_path / adapter
        assert train(more, *words, "--out", out) == 0
        assert "ledger" not in result(out)  # an adapter has no test rows
        assert cli.run(["export", str(out), "--to", "merged"]) == 0


def test_an_adapter_without_a_head_gets_one(recipe: Path, bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = foreign(peft.LoraConfig(r=2, target_modules=["query"]), bases("bert"), tmp_path)
    assert not any("classifier" in name for name in load_file(adapter / "adapter_model.safetensors"))
    assert train(recipe, "--from", adapter, "train.epochs=1", "--out", tmp_path / "run") == 0
    assert any("classifier" in name for name in load_file(tmp_path / "run/adapter/adapter_model.safetensors"))
    assert cli.run(["export", str(tmp_path / "run"), "--to", "adapter"]) == 0


def test_names_in_the_adapters_configuration_are_read(lora: Path, recipe: Path, tmp_path: Path) -> None:
    named = tmp_path / "named"
    shutil.copytree(lora, named)
    (named / "config.json").write_text(json.dumps({"id2label": {"0": "tool", "1": "fruit"}}))
    ready = prepare(recipes.load(str(recipe), [f"start.source={named}"]).recipe)
    assert ready.recipe.task.class_names == ("tool", "fruit")


def test_an_exported_adapter_names_its_classes_and_base(
    recipe: Path, bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(recipe, "train.epochs=1", "--out", run) == 0
    for settings, strategy in (((), "lora"), (("as_lora=4",), "peft")):
        out = tmp_path / f"exported-{strategy}"
        assert cli.run(["export", str(run), *settings, "--to", "adapter", "--out", str(out)]) == 0
        ready = prepare(recipes.load(str(recipe), [f"start.source={out}"]).recipe)
        assert (ready.recipe.strategy.name, ready.recipe.task.class_names) == (strategy, LABELS)
        words = (recipe, "--from", out, f"base.source={bases('roberta')}")
        assert "was trained on another base" in refused(capsys, tmp_path / "out", *words)
    trained = pefttools.load(run)
    inputs: Any = trained.base.tokenizer(["word1 apple"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            ready.model.eval()(**inputs).logits, trained.model(**inputs).logits, rtol=0, atol=1e-5
        )


def test_a_head_without_names_is_refused_unless_they_are_given(
    lora: Path, recipe: Path, bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    message = refused(capsys, out, recipe, "--from", lora)
    assert "has 2 outputs, whose classes have no names" in message
    assert "start.labels=[…]" in message
    message = refused(capsys, out, recipe, "--from", lora, "start.labels=[fruit,tool,colour]")
    assert "there are 3 names ('colour', 'fruit', 'tool')" in message or "there are 3 names" in message
    assert "has 2 outputs" in message
    wide = foreign(CONFIGS["lora"](), bases("bert"), tmp_path / "wide", number=3)
    assert "has 3 outputs" in refused(capsys, out, recipe, "--from", wide, "start.labels=[fruit,tool]")
    ready = prepare(recipes.load(str(recipe), [f"start.source={wide}", "base.trained_head=new"]).recipe)
    assert ready.recipe.task.class_names == LABELS


def test_an_adapter_of_another_base_or_task_or_shape_is_refused(
    lora: Path, recipe: Path, bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "out", (recipe, "start.labels=[fruit,tool]")
    message = refused(capsys, out, *words, "--from", lora, f"base.source={bases('roberta')}")
    assert "whose weights are not those of" in message
    other = tmp_path / "other"
    shutil.copytree(lora, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "a/b"}))
    words_on_hub = (recipe, "--from", other, "start.labels=[fruit,tool]", "base.source=hf:some/base")
    assert "was trained on a/b, but the recipe's base is hf:some/base" in refused(capsys, out, *words_on_hub)
    (other / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    assert "is for peft's task CAUSAL_LM" in refused(capsys, out, *words, "--from", other)
    (other / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))
    assert "does not fit" in refused(capsys, out, *words, "--from", other)
    (other / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(other / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_A" in name)
    more = {**tensors, name.replace("layer.0", "layer.7").replace("layer.1", "layer.7"): tensors[name].clone()}
    save_file(more, other / "adapter_model.safetensors")
    assert "1 tensors for which this base has no place" in refused(capsys, out, *words, "--from", other)
    (other / "adapter_model.safetensors").unlink()
    assert "is not an adapter, because it lacks" in refused(capsys, out, *words, "--from", other)
