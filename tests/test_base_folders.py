"""A path that is not a base is refused in one sentence, with what was found and what to name instead."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import train_tiny

from pefttools import cli
from pefttools.errors import UserError
from pefttools.sources import local

ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "FacebookAI/roberta-base"})
CONFIG = json.dumps({"model_type": "bert"})
FOLDERS: dict[str, tuple[dict[str, str], str]] = {
    "peft's adapter": (
        {"adapter_config.json": ADAPTER, "adapter_model.safetensors": ""},
        "is a LORA adapter of peft for FacebookAI/roberta-base, not a model; merge it into its base .*, or train its",
    ),
    "a model and an adapter": (
        {"adapter_config.json": ADAPTER, "config.json": CONFIG, "model.safetensors": ""},
        "contains a model and an adapter's adapter_config.json.*; move adapter_config.json",
    ),
    "an adapter and its base's configuration": (
        {"adapter_config.json": ADAPTER, "config.json": CONFIG, "adapter_model.safetensors": ""},
        "is a LORA adapter of peft",
    ),
    "one GGUF file": ({"m.q8.gguf": "", "README.md": ""}, "model; name the file: odd/m.q8.gguf"),
    "GGUF files": (
        {f"{n}.gguf": "" for n in "abcd"} | {"config.json": CONFIG},
        "name the file: odd/a.gguf, odd/b.gguf, odd/c.gguf .and 1 more",
    ),
    "ONNX": ({"config.json": CONFIG, "onnx/model.onnx": ""}, "contains ONNX weights only"),
    "TensorFlow": ({"config.json": CONFIG, "tf_model.h5": ""}, "contains TensorFlow or Flax weights only"),
    "sentence-transformers": (
        {"modules.json": "[]", "0_Transformer/config.json": CONFIG, "0_Transformer/pytorch_model.bin": "",
         "1_Pooling/config.json": "{}"},
        "is a sentence-transformers folder; name the model in it: odd/0_Transformer",
    ),
    "checkpoints": (
        {f"checkpoint-{n}/{file}": "{}" for n in (10, 20) for file in ("config.json", "model.safetensors")},
        "its subfolders contain models; name one: odd/checkpoint-10, odd/checkpoint-20",
    ),
    "a tokenizer": ({"tokenizer.json": "{}", "tokenizer_config.json": "{}"}, "contains a tokenizer but no model"),
    "nothing": ({}, "is an empty folder"),
    "weights alone": ({"model.safetensors": "", "tokenizer.json": "{}"}, "config.json; add the model's config.json"),
    "a configuration alone": ({"config.json": CONFIG}, "contains config.json but no weights .*base.init=scratch"),
    "a data set": ({"state.json": "{}", "dataset_info.json": "{}"}, "not a model; to train on it, set data.train=odd"),
    "anything else": ({"notes.txt": ""}, "contains no config.json"),
}  # fmt: skip


def error_of(base: str, recipe_file: Path, folder: Path) -> str:
    """The one-line error about a base, from `plan` and from `train`; nothing is written."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as caught:
        train_tiny(recipe_file, folder / "run", f"base={base}")
    assert cli.run(["plan", str(recipe_file), f"base={base}"]) == 2
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(folder.rglob("*")) == before
    return str(caught.value)


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", FOLDERS)
def test_folder_that_is_not_a_base_is_refused(
    kind: str, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files, expected = FOLDERS[kind]
    write(tmp_path / "odd", files)
    found = error_of("odd", recipe_file, tmp_path).replace(f"{tmp_path}/", "")
    assert found.startswith("base: odd ")
    assert re.search(expected, found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.safetensors", "is one file of a model; name its folder, "),
        ("config.json", "is one file of a model; name its folder, "),
        ("model.onnx", "is a model in ONNX, which cannot be trained"),
        ("model.zip", "is an archive; unpack it"),
    ],
)
def test_file_that_is_not_a_base_is_refused(name: str, expected: str, recipe_file: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "odd", {"config.json": CONFIG, name: ""})
    assert expected in error_of(str(folder / name), recipe_file, tmp_path)


@pytest.mark.slow
def test_adapter_of_a_run_as_base_names_its_run(
    finished_run: Path, recipe_file: Path, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    found = error_of(str(finished_run / "adapter"), recipe_file, tmp_path)
    assert f"it belongs to the run {finished_run}: write it as a plain model with `pefttools export" in found
    folder = write(tmp_path / "odd", {"recipe.yaml": ""})
    shutil.copyfile(finished_run / "adapter" / "adapter_config.json", folder / "adapter_config.json")
    assert "`pefttools export RUN --to merged`" in error_of(str(folder), recipe_file, tmp_path)


@pytest.mark.slow
def test_configuration_without_weights_trains_from_scratch(
    recipe_file: Path, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(bases("bert"), tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    scratch = (f"base.source={tmp_path / 'base'}", "base.init=scratch", "strategy=full", "train.epochs=1")
    _, result = train_tiny(recipe_file, tmp_path / "run", *scratch)
    assert result["train"]["steps"] > 0


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("FacebookAI/roberta-base", "FacebookAI/roberta-base"),
        ("gpt2", "gpt2"),
        ("Qwen/Qwen2.5-0.5B@main", "Qwen/Qwen2.5-0.5B@main"),
        ("https://huggingface.co/FacebookAI/roberta-base", "FacebookAI/roberta-base"),
        ("https://huggingface.co/datasets/stanfordnlp/imdb/tree/v1/data", "stanfordnlp/imdb@v1"),
    ],
)
def test_hub_name_without_prefix_suggests_hf(source: str, name: str, recipe_file: Path, tmp_path: Path) -> None:
    assert error_of(source, recipe_file, tmp_path).endswith(f"a repository of the hub is named hf:{name}")


@pytest.mark.parametrize("source", ["rows.csv", "here/rows", "C:\\models\\bert", "../owner/model"])
def test_missing_path_does_not_suggest_hf(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match=r"there is no such file or folder$"):
        local.fetch(source)
