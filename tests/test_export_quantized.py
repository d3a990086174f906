"""Quantised bases: what is quantised, planned and trained, and how a run on one is merged."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train_tiny
from sample_runs import SampleRuns
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from pefttools.bases import quantized
from pefttools.compatibility.tiny_models import ARCHITECTURES
from pefttools.errors import UserError
from pefttools.exporters import merging
from pefttools.exporters.driver import export
from pefttools.training.run import Run


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> SampleRuns:
    return SampleRuns(tmp_path_factory, bases)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("strategy", ["lora", "bitfit"])
def test_frozen_biases_of_quantized_layers_stay_float32(kind: str, strategy: str, run_of: Any) -> None:
    """bitsandbytes casts a bias to the type of its input; frozen biases must stay as in the checkpoint."""
    run = run_of("text_classification", f"base.quantize={kind}", f"strategy={strategy}", "train.precision=bf16")
    recipe = Run(run).recipe()
    base = recipe.task.load(recipe.base)
    biases = {name: p.detach().clone() for name, p in base.model.named_parameters() if name.endswith(".bias")}
    model = recipe.strategy.wrap(base)
    batch = {"input_ids": torch.randint(5, 40, (2, 8))}
    for mode in (True, False):
        with quantized.computing_in(torch.bfloat16, model), torch.autocast("cpu", torch.bfloat16):
            model.train(mode)(**batch).logits.sum().backward()
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p for name, p in model.named_parameters()
    }
    for name, bias in biases.items():
        if ".encoder." in name:
            assert after[name].dtype is torch.float32
            assert torch.equal(after[name], bias)
    assert all(p.grad is None or p.grad.dtype is torch.float32 for p in model.parameters())


def test_dequantized_gpt2_has_the_same_logits(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = AutoConfig.for_model("gpt2", **ARCHITECTURES["gpt2"].sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    packed = quantized.configuration("nf4", AutoModelForCausalLM, config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=packed, dtype=torch.float32)
    quantized.mend(model)
    ids = torch.randint(3, 50, (2, 8))
    with torch.no_grad():
        before = model.eval()(input_ids=ids).logits
        plain = quantized.dequantised(model).eval()
        assert torch.allclose(plain(input_ids=ids).logits, before, atol=1e-5)
        plain.save_pretrained(tmp_path / "plain")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
        assert torch.allclose(again(input_ids=ids).logits, before, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_quantized_bases_merge_by_the_better_route(kind: str, run_of: Any, tmp_path: Path) -> None:
    run = run_of("text_classification", f"base.quantize={kind}")
    merged = export(run, "merged", tmp_path / "merged")
    routes = merged["routes"]
    assert merged["route"] == min(routes, key=lambda name: routes[name]["max_logit_error"])
    assert max(found["merge_error"] for found in routes.values()) <= 1e-5
    assert merged["merge_error"] == routes[merged["route"]]["merge_error"]
    if kind != "int8":  # int8 rounds activations too
        assert routes["dequantised"]["max_logit_error"] <= 1e-4 < routes["full"]["max_logit_error"]
    assert export(run, "adapter", tmp_path / "adapter")["max_logit_error"] <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_wrong_merge_into_a_quantized_base_is_refused(
    kind: str, run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = run_of("text_classification", f"base.quantize={kind}"), merging._plain

    def one_tensor_off_by_a_percent(trained: Any) -> Any:
        model = plain(trained)
        model.get_parameter("bert.encoder.layer.0.attention.self.query.weight").data *= 1.01
        return model

    monkeypatch.setattr(merging, "_plain", one_tensor_off_by_a_percent)
    with pytest.raises(UserError, match="merging into the dequantised base changes the logits by up to"):
        export(run, "merged", tmp_path / "merged")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_quantized_run_is_planned_with_smaller_weights(run_of: Any) -> None:
    from pefttools.planning.planner import plan

    runs = [Run(run_of("text_classification", *words)) for words in ((), ("base.quantize=nf4",))]
    plans = [plan(run.recipe()) for run in runs]
    assert plans[0].params == plans[1].params == runs[1].result()["params"]
    matrices = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert plans[0].bytes["weights"] - plans[1].bytes["weights"] == 4 * matrices - matrices // 2 - 4 * matrices // 64


def test_matrices_counted_as_quantized_are_those_of_transformers(tmp_path: Path) -> None:
    """T5's `wo` stays in fp32 under every setting."""
    import bitsandbytes

    config = AutoConfig.for_model("t5", **ARCHITECTURES["t5"].sizes)
    model = AutoModelForSeq2SeqLM.from_config(config)
    model.save_pretrained(tmp_path)
    packed = quantized.configuration("nf4", AutoModelForSeq2SeqLM, config)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, quantization_config=packed)
    found = [path for path, module in loaded.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert set(quantized.matrices(model)) == set(found) == {path for path in found if not path.endswith(".wo")}


def test_quantized_base_refuses_training_of_its_matrices(recipe_file: Path, tmp_path: Path) -> None:
    for words, message in (
        (["strategy=full"], "quantised weights cannot be trained"),
        (["strategy=low_rank"], "quantised weights cannot be trained"),
        (["base.init=scratch"], "a model from scratch has nothing to quantise"),
        (["base.quantize=nf5"], "'nf5' is not allowed; did you mean 'nf4'?"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            train_tiny(recipe_file, tmp_path / "run", "base.quantize=nf4", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_quantized_decoder_merges_into_the_dequantized_base(run_of: Any, tmp_path: Path) -> None:
    run = run_of("causal_lm", "base.quantize=nf4")
    assert export(run, "merged", tmp_path / "merged")["route"] == "dequantised"
