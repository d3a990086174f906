"""`prove` tells right merged models of plain peft from wrong ones, and names the cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from conftest import make_tokenizer
from safetensors.torch import load_file, save_file

from pefttools import cli

LABELS = {"num_labels": 3}
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it


def decoder_lora(**settings: Any) -> Any:
    return peft.LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})


KINDS: dict[str, tuple[str, Any]] = {
    "LoRA of a decoder": ("llama", decoder_lora(r=8, lora_alpha=32)),
    "LoRA with a head": ("bert", peft.LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")),
    "rsLoRA and DoRA": ("llama", decoder_lora(r=4, lora_alpha=8, use_rslora=True, use_dora=True)),
    "IA3": ("bert", peft.IA3Config(task_type="SEQ_CLS", target_modules=["key", "value"], feedforward_modules=[])),
    "LoHa": ("llama", peft.LoHaConfig(r=4, alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")),
}


def configuration(family: str, rows: int, **changes: Any) -> Any:
    sizes = {
        "vocab_size": rows, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 80, "pad_token_id": 0,
    }  # fmt: skip
    return transformers.AutoConfig.for_model(family, **{**sizes, **changes})


def fresh(family: str, seed: int = 0, **changes: Any) -> Any:
    """A model with random weights, a decoder or a classifier."""
    torch.manual_seed(seed)
    auto = transformers.AutoModelForCausalLM if family == "llama" else transformers.AutoModelForSequenceClassification
    values = changes if family == "llama" else {**LABELS, **changes}
    return auto.from_config(configuration(family, len(make_tokenizer()), **values)).eval()


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def trained(base: Any, config: Any, seed: int = 1) -> Any:
    """The base with an adapter and a head whose values are random, as after training."""
    model = peft.get_peft_model(base, config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.03)
    return model.eval()


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., tuple[Path, Path, Any]]:
    """Family and peft's configuration -> the folders of the base and of the adapter, and the model with both."""

    def make(family: str, config: Any) -> tuple[Path, Path, Any]:
        model = fresh(family)
        base = saved(model.base_model if family == "bert" else model, tmp_path / "base")
        model = trained(model, config)
        model.save_pretrained(tmp_path / "adapter")
        return base, tmp_path / "adapter", model

    return make


def proven(base: Path, adapter: Path, *artifact: Any, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `prove --json` prints; its exit code must agree."""
    capsys.readouterr()
    code = cli.run(["prove", str(base), str(adapter), *map(str, artifact), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["is_equal"] else 2)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_what_plain_peft_merges_is_equal(
    name: str, made: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter, model = made(*KINDS[name])
    for dtype in (torch.float32, torch.bfloat16):
        merged = saved(model.merge_and_unload().to(dtype), tmp_path / f"merged-{dtype}")
        found = proven(base, adapter, merged, capsys=capsys)
        assert found["is_equal"], found["causes"]
        assert (found["wrong_tensors"], found["causes"]) == (0, [])
        assert found["dtype"] == str(dtype).removeprefix("torch.")
        model = peft.PeftModel.from_pretrained(reloaded(base, KINDS[name][0]), str(adapter))


def reloaded(base: Path, family: str) -> Any:
    auto = transformers.AutoModelForCausalLM if family == "llama" else transformers.AutoModelForSequenceClassification
    return auto.from_pretrained(base, **({} if family == "llama" else LABELS))


def _scaled(factor: float) -> Callable[[Path, Path, Path], Any]:
    """Merge `factor` times the change of a LoRA."""

    def merge(base: Path, adapter: Path, folder: Path) -> Path:
        del folder
        model = peft.PeftModel.from_pretrained(reloaded(base, "llama"), str(adapter))
        layers: Any = model.modules()
        for layer in layers:
            if isinstance(getattr(layer, "scaling", None), dict):
                layer.scaling = {name: value * factor for name, value in layer.scaling.items()}
        return model.merge_and_unload()

    return merge


def _one_block_missing(base: Path, adapter: Path, folder: Path) -> Any:
    del folder
    model = peft.PeftModel.from_pretrained(reloaded(base, "llama"), str(adapter))
    for name, parameter in model.named_parameters():
        if "layers.1." in name and "lora_B" in name:
            parameter.data.zero_()
    return model.merge_and_unload()


def _other_base(base: Path, adapter: Path, folder: Path) -> Any:
    del base, folder
    return peft.PeftModel.from_pretrained(fresh("llama", seed=5), str(adapter)).merge_and_unload()


def _not_merged(base: Path, adapter: Path, folder: Path) -> Any:
    del adapter, folder
    return reloaded(base, "llama")


def _quantised(base: Path, adapter: Path, folder: Path) -> Any:
    """The matrices of the base are rounded to 16 levels a row before the merge."""
    del folder
    model = reloaded(base, "llama")
    for name, parameter in model.named_parameters():
        if "proj" in name:
            step = parameter.data.abs().amax(1, keepdim=True) / 7
            parameter.data = (parameter.data / step).round() * step
    return peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


IN_IT = "times the adapter's change is in the artifact"
WRONG: dict[str, tuple[Callable[[Path, Path, Path], Any], str]] = {
    "scaling dropped": (_scaled(1 / 4), f"0.25 {IN_IT}: the scaling α/r = 4 was dropped"),
    "alpha halved": (_scaled(1 / 2), f"0.5 {IN_IT}: α was halved, or r doubled"),
    "rsLoRA": (_scaled(8**0.5), f"2.83 {IN_IT}: α/√r was used instead of α/r (rsLoRA)"),
    "merged twice": (_scaled(2), f"2 {IN_IT}: it was merged twice, or α was doubled"),
    "one block missing": (_one_block_missing, "the adapter's change is missing in 7 of 21 tensors (block 1)"),
    "another base": (_other_base, "the artifact was made of another base"),
    "not merged": (_not_merged, "the adapter is not in the artifact: all 21 tensors"),
    "quantised base": (_quantised, "the base was quantised before it was merged: 21 matrices differ by"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_faults_of_merges_are_named(
    fault: str, dtype: torch.dtype, made: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter, _ = made(*KINDS["LoRA of a decoder"])
    merge, cause = WRONG[fault]
    folder = saved(merge(base, adapter, tmp_path / "wrong").to(dtype), tmp_path / "wrong")
    found = proven(base, adapter, folder, capsys=capsys)
    assert not found["is_equal"]
    assert found["causes"][0].startswith(cause), found["causes"]


@pytest.mark.slow
def test_a_head_from_another_run_is_named(
    made: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter, model = made(*KINDS["LoRA with a head"])
    merged = model.merge_and_unload()
    torch.manual_seed(9)
    merged.classifier.weight.data.normal_(std=0.02)
    found = proven(base, adapter, saved(merged, tmp_path / "merged"), capsys=capsys)
    (cause,) = found["causes"]
    assert cause.startswith("the head is neither the adapter's nor the base's (classifier.weight differ by")


@pytest.mark.slow
def test_a_head_that_nobody_saved_cannot_be_proven(
    made: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter, model = made(*KINDS["LoRA with a head"])
    folder = saved(model.merge_and_unload(), tmp_path / "merged")
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({n: t for n, t in weights.items() if "classifier" not in n}, adapter / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings |= {"modules_to_save": None, "task_type": None}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    found = proven(base, adapter, folder, capsys=capsys)
    assert any("neither the base nor the adapter has classifier" in cause for cause in found["causes"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_tokens_that_were_not_resized_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = saved(fresh("llama"), tmp_path / "base")
    merged = saved(reloaded(base, "llama"), tmp_path / "merged")
    model = reloaded(base, "llama")
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows + 2, mean_resizing=False)
    config = decoder_lora(r=4, modules_to_save=["embed_tokens", "lm_head"])
    trained(model, config).save_pretrained(tmp_path / "adapter")
    found = proven(base, tmp_path / "adapter", merged, capsys=capsys)
    assert any(f"has {rows} rows instead of {rows + 2}: the embeddings were not resized" in c for c in found["causes"])


@pytest.mark.slow
def test_other_tokens_are_named(made: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapter, model = made(*KINDS["LoRA of a decoder"])
    folder = saved(model.merge_and_unload(), tmp_path / "merged")
    content = (folder / "tokenizer.json").read_text().replace('"word1"', '"word1x"')
    (folder / "tokenizer.json").write_text(content)
    assert cli.run(["prove", str(base), str(adapter), str(folder), "--text", "word1 word2"]) == 2
    assert "1. the artifact's tokenizer gives other tokens for 1 of 1 texts, first for 'word1 word2'" in (
        capsys.readouterr().out
    )


WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f / "merged"), "MERGED: {f}/merged does not exist"),
        (lambda f: shutil.rmtree(f / "adapter"), "ADAPTER: {f}/adapter has no adapter_config.json; name a folder"),
        (lambda f: (f / "adapter" / WEIGHTS).unlink(), "ADAPTER: {f}/adapter has no adapter_model"),
        (lambda f: (f / "adapter" / SETTINGS).write_text("{"), "ADAPTER: {f}/adapter/adapter_config.json is damaged"),
        (lambda f: (f / "merged" / "model.safetensors").write_bytes(b"x"), "MERGED: {f}/merged cannot be loaded as"),
        (
            lambda f: (f / "base" / "config.json").unlink(),
            "BASE: {f}/base contains weights (model.safetensors) without",
        ),
    ],
)
def test_bad_folders_are_refused(
    change: Callable[[Path], Any],
    message: str,
    made: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, adapter, model = made(*KINDS["LoRA of a decoder"])
    folder = saved(model.merge_and_unload(), tmp_path / "merged")
    change(tmp_path)
    assert cli.run(["prove", str(base), str(adapter), str(folder)]) == 2
    assert message.format(f=tmp_path) in capsys.readouterr().err


def test_adapters_that_cannot_be_merged_are_refused(
    made: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter, _ = made("llama", peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    assert cli.run(["prove", str(base), str(adapter), str(saved(fresh("llama"), tmp_path / "merged"))]) == 2
    assert "ADAPTER: PREFIX_TUNING adapters cannot be merged into weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name one artifact: BASE ADAPTER MERGED"),
        (["m", "--gguf", "f.gguf"], "name one artifact"),
        (["--gguf", "m"], "--gguf: m is no .gguf file"),
        (["--onnx", "m.gguf"], "--onnx: m.gguf is no .onnx file"),
    ],
)
def test_one_artifact_must_be_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["prove", "b", "a", *words]) == 2
    assert message in capsys.readouterr().err
