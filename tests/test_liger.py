"""Liger's kernels in training. Its Triton kernels need a GPU, so a module with its functions takes its place."""

from __future__ import annotations

import sys
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from tiny_decoders import make_model

from pefttools import cli, device
from pefttools.recipe import needed_packages, recipes
from pefttools.training import liger


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every call of the library."""
    from transformers.models.llama import modeling_llama

    calls: list[dict[str, Any]] = []

    def apply(model: Any, **more: Any) -> None:
        calls.append(more)
        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)
        modeling_llama.apply_rotary_pos_emb = lambda q, k, cos, sin, *_: (q, k)
        for norm in (model.model.norm, *(layer.input_layernorm for layer in model.model.layers)):
            norm.offset, norm.forward = 0.0, MethodType(lambda self, x: 2 * x, norm)

    module: Any = ModuleType("liger_kernel.transformers.monkey_patch")
    module.MODEL_TYPE_TO_APPLY_LIGER_FN, module._apply_liger_kernel_to_instance = {"llama": None}, apply
    package: Any = ModuleType("liger_kernel.transformers")
    package.monkey_patch = module
    for name, one in {
        "liger_kernel": ModuleType("liger_kernel"),
        package.__name__: package,
        module.__name__: module,
    }.items():
        monkeypatch.setitem(sys.modules, name, one)
    return calls


def test_kernels_are_active_inside_only(library: list[dict[str, Any]]) -> None:
    model = make_model("llama")
    names, before = [*model.state_dict()], [dict(vars(module)) for module in model.modules()]
    ids = torch.arange(8)[None] + 5
    plain = model(ids).logits
    with liger.kernels(model):
        assert [*model.state_dict()] == names
        assert not torch.allclose(model(ids).logits, plain)
        model.train()
    assert library == [{"cross_entropy": False, "fused_linear_cross_entropy": False}]
    assert model.training  # what the loop itself changed stays
    assert [{*vars(module)} for module in model.modules()] == [{*one} for one in before]
    assert torch.equal(model.eval()(ids).logits, plain)


def test_other_models_and_devices_are_refused(library: list[dict[str, Any]]) -> None:
    assert liger.problem(make_model("llama"), "cuda") is None
    assert liger.problem(make_model("gpt2"), "cuda") == (
        "train.liger: has no kernels for models of the type gpt2; leave it out. Known: llama"
    )
    assert "need a CUDA GPU, but this machine computes on mps" in str(liger.problem(make_model("llama"), "mps"))
    assert not library


def test_on_a_cpu_the_message_is_about_the_gpu(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(recipe_file), "train.liger=true", "--out", str(tmp_path / "run")]) == 2
    assert "train.liger: its kernels need a CUDA GPU, but this machine computes on cpu" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_package_is_needed_where_there_is_a_gpu(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.load(str(recipe_file), ["train.liger=true"]).recipe
    assert recipe.digest == recipes.load(str(recipe_file), []).recipe.digest
    assert not needed_packages.problems(recipe)
    monkeypatch.setattr(needed_packages, "device_type", lambda: "cuda")
    assert needed_packages.problems(recipe) == [
        'train.liger=true: needs liger-kernel, which is not installed; run `pip install "pefttools[liger]"`'
    ]
    assert device.device_type() == "cpu"
