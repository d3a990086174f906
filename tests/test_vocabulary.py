"""A tokenizer larger than the embedding table gets new rows, which are trained and saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_bases
import torch
import transformers
from conftest import make_rows, train_tiny, write_recipe, write_rows
from tokenizers import Regex, normalizers

import pefttools
from pefttools import cli
from pefttools.bases.loading import BaseSettings
from pefttools.errors import UserError
from pefttools.exporters import driver
from pefttools.inference.prediction import predict_rows
from pefttools.planning.planner import plan
from pefttools.recipe import recipes
from pefttools.tasks import tasks
from pefttools.tasks.text_classification import TextClassification

NEW = ("covid", "zoom", "meme")
TASK = TextClassification(labels=("fruit", "tool", "colour"))


def with_new_words(tokenizer: Any) -> None:
    tokenizer.add_tokens(list(NEW))


def with_an_image_token(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})


def larger(folder: Path, kind: str, edit: Any = with_new_words, **changes: Any) -> Path:
    """A base whose table has as many rows as the tokenizer had tokens before `edit`."""
    return tiny_bases.write(folder, kind, edit, vocab_size=len(tiny_bases.tokenizer(kind)), **changes)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gpt2", "bart", "t5", "xlnet", "deberta-v2"])
def test_tokens_beyond_the_embedding_table_get_rows(kind: str, tmp_path: Path) -> None:
    base = TASK.load(BaseSettings(source=str(larger(tmp_path, kind))))
    row = TASK.encode([{"text": "covid apple meme"}], base.tokenizer)["input_ids"]
    with torch.no_grad():
        first = base.model(torch.tensor(row)).logits
        (path,) = (path for path in base.head if path.endswith("extra"))
        base.model.get_submodule(path).weight.normal_()  # type: ignore[operator, union-attr]
        assert not torch.allclose(base.model(torch.tensor(row)).logits, first)
    assert len(base.model.get_submodule(path).weight) == len(NEW)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_larger_embedding_table_gets_no_rows(kind: str, tmp_path: Path) -> None:
    base = TASK.load(BaseSettings(source=str(tiny_bases.write(tmp_path, kind, with_new_words, vocab_size=80))))
    assert not any(path.endswith("extra") for path in base.head)


def test_unused_special_tokens_need_no_rows(tmp_path: Path) -> None:
    folder = larger(tmp_path, "llama", with_an_image_token)
    assert TASK.load(BaseSettings(source=str(folder))).head == ("score",)
    assert tasks.get("causal_lm").example().load(BaseSettings(source=str(folder)))


def rows_with_new_words(number: int) -> list[dict[str, str]]:
    """Rows whose label depends on words that the embedding table has no rows for."""
    words = dict(zip(TASK.labels, NEW, strict=True))
    return [{**row, "text": f"{row['text']} {words[row['label']]}"} for row in make_rows(number, labels=TASK.labels)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "exporter"), [("bert", "adapter"), ("gpt2", "merged")])
def test_new_words_are_trained_saved_and_exported(kind: str, exporter: str, tmp_path: Path) -> None:
    base = larger(tmp_path / "base", kind)
    rows = write_rows(tmp_path / "rows.jsonl", rows_with_new_words(60))
    settings = {"epochs": 1, "learning_rate": 0.003}
    file = write_recipe(tmp_path / "r.yaml", base, rows, task={"name": "text_classification"}, train=settings)
    run, result = train_tiny(file, tmp_path / "run")
    assert result["params"] == plan(recipes.load(str(file)).recipe).params
    unlabeled = [{"text": f"word1 {word} word2"} for word in NEW]
    expected = [row["probabilities"] for row in predict_rows(run, unlabeled, precision="fp32")]
    manifest = driver.export(run, exporter)
    again = predict_rows(Path(manifest["folder"]), unlabeled, precision="fp32")
    for before, after in zip(expected, again, strict=True):
        assert after["probabilities"] == pytest.approx(before, abs=1e-5)
    assert len({p["fruit"] for p in expected}) == len(NEW), "new words give different predictions"
    if exporter == "merged":
        table = transformers.AutoModel.from_pretrained(manifest["folder"]).get_input_embeddings()
        assert len(table.weight) == len(tiny_bases.tokenizer(kind)) + len(NEW)
    else:
        rounded = driver.export(run, exporter, tmp_path / "lora", settings=["as_lora=8"])
        for folder in (manifest["folder"], rounded["folder"]):
            assert_plain_peft_predicts(Path(folder), base, unlabeled, expected)
            text = Path(folder, "README.md").read_text("utf-8")
            assert "library_name: peft\n" in text
            assert "model.resize_token_embeddings(max(" in text


def assert_plain_peft_predicts(folder: Path, base: Path, rows: Sequence[Any], expected: Sequence[Any]) -> None:
    """Plain peft loads the adapter into the base with more embeddings, and gives these probabilities."""
    config = json.loads((folder / "adapter_config.json").read_text())
    (ids,) = config["trainable_token_indices"].values()
    labels = json.loads((folder / "manifest.json").read_text())["config"]["id2label"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    loaded = peft.PeftModel.from_pretrained(model, str(folder)).eval()
    for row, wanted in zip(rows, expected, strict=True):
        with torch.no_grad():
            shares = loaded(**tokenizer(row["text"], return_tensors="pt")).logits[0].softmax(-1)
        assert dict(zip(labels.values(), shares.tolist(), strict=True)) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lora", "ia3", "bitfit", "adapter"])
def test_added_markers_are_exported_with_every_strategy(
    strategy: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """Relations mark their entities with added tokens; a LoRA is in peft's format, other adapters in pefttools'."""
    cls = tasks.get("relation_extraction")
    rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in cls.samples] * 6)
    data = {"validation": str(rows), "test": str(rows), "deduplicate": False}
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 0.003}
    task = {"name": "relation_extraction", "max_length": 32, **cls.sample_settings}
    file = write_recipe(
        tmp_path / "r.yaml", bases("bert"), rows, data=data, task=task, train=settings, strategy=strategy
    )
    run, _ = train_tiny(file, tmp_path / "run")
    unlabeled = [{name: value for name, value in row.items() if name not in cls.targets} for row in cls.samples]
    expected = [row["probabilities"] for row in predict_rows(run, unlabeled, precision="fp32")]
    manifest = driver.export(run, "adapter")
    folder = Path(manifest["folder"])
    for before, after in zip(expected, predict_rows(folder, unlabeled, precision="fp32"), strict=True):
        assert after["probabilities"] == pytest.approx(before, abs=1e-5)
    if (folder / "adapter_config.json").is_file():
        tokenizer = pefttools.load(folder).base.tokenizer  # as a teacher is loaded
        assert tokenizer(cls.samples[0]["text"])["input_ids"]
    card = (folder / "README.md").read_text("utf-8")
    added = manifest.get("in_peft_format", False)
    assert ("library_name: peft\n" in card) == added == (strategy == "lora")


@pytest.mark.parametrize("command", ["plan", "train"])
def test_causal_lm_with_tokens_beyond_the_table_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": row["text"]} for row in make_rows(80)])
    file = write_recipe(tmp_path / "r.yaml", larger(tmp_path / "base", "llama"), rows, task={"name": "causal_lm"})
    out = ["--out", str(tmp_path / "run")] if command == "train" else []
    assert cli.run([command, str(file), *out]) == 2
    assert "tokens without one: covid, zoom, meme" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_bases.write(tmp_path, "bert", vocab_size=20)
    with pytest.raises(UserError, match="has 54 tokens, but the model has 20 embeddings; the tokenizer seems"):
        TASK.load(BaseSettings(source=str(folder)))


def with_one_word(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"\w+"), "apple")


def with_no_word(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"\w+"), "")


@pytest.mark.parametrize("edit", [with_no_word, with_one_word])
def test_tokenizer_that_maps_different_texts_to_the_same_tokens_is_refused(
    edit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": f"word{i}", "label": "ab"[i % 2]} for i in range(40)])
    base = tiny_bases.write(tmp_path / "base", "bert", edit)
    recipe_file = write_recipe(tmp_path / "tiny.yaml", base, file, task={"name": "text_classification"})
    assert cli.run(["train", str(recipe_file), "--out", str(tmp_path / "run")]) == 2
    assert "tokens of different train texts" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
