"""Blocks as one autograd function: the outputs and gradients of transformers' own, and what falls back to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from pefttools.compatibility import tiny_models
from pefttools.nn import attention, decoder_block, dropout, encoder_block, fused_blocks, fused_modules, lora_linear

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's

ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie")
INPUTS = {
    "input_ids": torch.arange(5, 29).view(4, 6),
    "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 0, 0, 0, 0]]),
}


def built(architecture: str = "bert", **values: Any) -> Any:
    torch.manual_seed(0)
    known = tiny_models.ARCHITECTURES["roberta" if architecture in ("xlm-roberta", "camembert") else "bert"].sizes
    sizes = {**known, "vocab_size": 60, "num_labels": 3, "pad_token_id": 0, "num_hidden_layers": 2, **values}
    config = AutoConfig.for_model(architecture, **sizes)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    for parameter in model.parameters():  # zero biases and norms of one would hide mistakes
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


def everything(model: Any) -> Any:
    return model


def norms(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("LayerNorm" in name)
    return model


def biases_of_the_top(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") and ".layer.1." in name)
    return model


def lora(*targets: str) -> Callable[[Any], Any]:
    def wrap(model: Any) -> Any:
        config = peft.LoraConfig(target_modules=list(targets), r=3, lora_alpha=5, init_lora_weights=False)
        return peft.get_peft_model(model, config)  # type: ignore[arg-type]

    return wrap


TRAINED: dict[str, Callable[[Any], Any]] = {
    "everything": everything,
    "norms": norms,
    "biases of the top block": biases_of_the_top,
    "LoRA on every matrix": lora(
        "query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"
    ),
    "LoRA on query and value": lora("query", "value"),
    "LoRA on up": lora("intermediate.dense"),
}


@pytest.fixture
def in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks compute in fp32, whose rounding is small enough to compare outputs exactly."""
    for module in (encoder_block, decoder_block, fused_blocks, fused_modules):
        monkeypatch.setattr(module, "DTYPE", torch.float32)


def results(model: Any, seed: int = 0, **more: Any) -> dict[str, torch.Tensor]:
    """The logits, and the gradients of all trained parameters."""
    torch.manual_seed(seed)
    logits = model(**INPUTS, **more).logits
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(logits.float().square().sum(), list(named.values()), materialize_grads=True)
    return {"logits": logits.detach(), **dict(zip(named, found, strict=True))}


def near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share: float = 1e-5) -> bool:
    """Whether all differences are below this share of the largest value, also where the right gradient is zero."""
    largest = max(float(value.abs().max()) for value in expected.values())
    return all(float((found[name] - value).abs().max()) <= share * largest for name, value in expected.items())


@contextmanager
def plain(model: Any) -> Iterator[None]:
    with lora_linear.replace_lora_layers(model), dropout.replace_dropout(model), attention.replace_sdpa():
        yield


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_outputs_and_gradients_are_those_of_the_modules(trained: str, p: float) -> None:
    model = TRAINED[trained](built(hidden_dropout_prob=p, attention_probs_dropout_prob=p)).train()
    with plain(model):
        expected = results(model)
        with fused_blocks.replace_blocks(model) as number:
            found = results(model)
        again = results(model)
    assert number == 2
    assert near(found, expected)
    assert not p or not near(found, results(model, seed=1))
    assert all(torch.equal(again[name], value) for name, value in expected.items())


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_known_architecture_computes_the_same(architecture: str) -> None:
    model = built(architecture)
    expected = results(model)
    with fused_blocks.replace_blocks(model) as number:
        assert number == 2
        assert near(results(model), expected)
        without_mask = {"attention_mask": torch.ones_like(INPUTS["attention_mask"])}
        ours = model(**{**INPUTS, **without_mask}).logits
    torch.testing.assert_close(ours, model(**{**INPUTS, **without_mask}).logits, atol=1e-5, rtol=1e-5)


def test_every_known_block_is_tried() -> None:
    tried = {
        type(built(name).get_submodule(f"{built(name).base_model_prefix}.encoder.layer.0")).__name__
        for name in ARCHITECTURES
    }
    assert tried == set(fused_modules.ENCODERS)


@pytest.mark.parametrize("trained", TRAINED)
def test_bf16_is_as_near_to_fp32_as_that_of_the_modules(trained: str) -> None:
    model = TRAINED[trained](built())
    exact = results(model)

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            found = results(model)
        return sum(float((found[name].float() - value).norm() / (value.norm() + 1e-3)) for name, value in exact.items())

    with plain(model):
        theirs = error()
        with fused_blocks.replace_blocks(model):
            ours = error()
    assert 0 < ours < 1.5 * theirs


def test_weights_are_restored_and_share_no_memory() -> None:
    model = lora("query")(built())
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with fused_blocks.replace_blocks(model):
        storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
        assert len(set(storages)) < len(storages)  # query, key and value lie below each other
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(storages)) == len(storages)
    assert not any("forward" in vars(module) for module in model.modules())


def test_weights_that_change_between_the_passes_are_noticed() -> None:
    model = built()
    with fused_blocks.replace_blocks(model), torch.autocast("cpu", torch.bfloat16):
        loss = model(**INPUTS).logits.sum()
        with torch.no_grad():
            model.bert.encoder.layer[1].output.dense.weight.mul_(2)
        with pytest.raises(RuntimeError, match="have changed"):
            loss.backward()


def _hooked(model: Any) -> Any:
    model.bert.encoder.layer[0].output.dense.register_forward_hook(lambda *_: None)
    model.bert.encoder.layer[1].register_forward_pre_hook(lambda *_: None)
    return model


def _with_another_norm(model: Any) -> Any:
    for layer in model.bert.encoder.layer:
        layer.output.LayerNorm = nn.Identity()
    return model


UNSUITABLE: dict[str, Callable[[], Any]] = {
    "another activation": lambda: built(hidden_act="gelu_new"),
    "feed-forward in chunks": lambda: built(chunk_size_feed_forward=2),
    "eager attention": lambda: AutoModelForSequenceClassification.from_config(
        built().config, attn_implementation="eager"
    ),
    "a decoder": lambda: built(is_decoder=True),
    "much dropout": lambda: built(hidden_dropout_prob=0.95),
    "hooks": lambda: _hooked(built()),
    "another norm": lambda: _with_another_norm(built()),
    "LoRA with dropout": lambda: peft.get_peft_model(
        built(),
        peft.LoraConfig(target_modules=["query"], lora_dropout=0.1),  # type: ignore[arg-type]
    ),
    "DoRA": lambda: peft.get_peft_model(built(), peft.LoraConfig(target_modules=["query"], use_dora=True)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_other_blocks_stay_as_they_are(name: str) -> None:
    with fused_blocks.replace_blocks(UNSUITABLE[name]()) as number:
        assert number == 0


@pytest.mark.parametrize("unusual", ["fp32", "long", "attentions", "unfrozen"])
def test_unusual_passes_are_those_of_the_modules(unusual: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = norms(built())
    with fused_blocks.replace_blocks(model) as number:
        assert number == 2
        monkeypatch.setattr(encoder_block.EncoderBlock, "__call__", lambda *_: pytest.fail("not to be called"))
        if unusual == "long":
            monkeypatch.setattr(attention, "LONGEST", 5)
        if unusual == "unfrozen":
            model.requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=unusual != "fp32"):
            outputs = model(
                **INPUTS, **({"encoder_hidden_states": torch.zeros(4, 6, 16)} if unusual == "attentions" else {})
            )
    assert outputs.logits.shape == (4, 3)


def test_predictions_use_it_for_good() -> None:
    model = built()
    with torch.no_grad():
        exact = model(**INPUTS).logits
        rounded = model.to(torch.bfloat16)(**INPUTS).logits
    fused_blocks.use(model)
    assert all("forward" in vars(layer) for layer in model.bert.encoder.layer)
    with torch.no_grad():
        found = model(**INPUTS).logits
    assert found.dtype is torch.bfloat16
    assert not torch.equal(found, rounded)
    assert float((found - exact).norm()) < 1.5 * float((rounded - exact).norm()) + 0.05


DECODERS = ("llama", "mistral", "qwen2")
SIDES = {
    "no padding": torch.ones(4, 6, dtype=torch.long),
    "right": INPUTS["attention_mask"],
    "left": INPUTS["attention_mask"].flip(1),
}


def decoder(architecture: str = "llama", **values: Any) -> Any:
    """A decoder with three query heads for each key head."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 60, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "use_cache": False, **values,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes), attn_implementation="sdpa")
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    return model


def decoded(model: Any, mask: torch.Tensor = SIDES["right"], **more: Any) -> dict[str, torch.Tensor]:
    """The logits of the texts' tokens, and the gradients of all trained parameters."""
    outputs = model(input_ids=INPUTS["input_ids"], attention_mask=mask, **more)
    logits = outputs.logits[mask.bool()]
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(logits.float().square().sum(), list(named.values()), materialize_grads=True)
    return {"logits": logits.detach(), **dict(zip(named, found, strict=True))}


DECODER_LORA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TRAINED_OF_DECODERS: dict[str, Callable[[Any], Any]] = {
    "everything": everything,
    "norms": lambda model: norms_of_decoder(model),
    "LoRA on every matrix": lora(*DECODER_LORA),
    "LoRA on query and value": lora("q_proj", "v_proj"),
    "LoRA on down": lora("down_proj"),
}


def norms_of_decoder(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layernorm" in name)
    return model


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("trained", TRAINED_OF_DECODERS)
@pytest.mark.parametrize("side", SIDES)
def test_a_decoders_outputs_and_gradients_are_those_of_the_modules(trained: str, side: str) -> None:
    model = TRAINED_OF_DECODERS[trained](decoder())
    with plain(model):
        expected = decoded(model, SIDES[side])
        with fused_blocks.replace_blocks(model) as number:
            found = decoded(model, SIDES[side])
        again = decoded(model, SIDES[side])
    assert number == 2
    assert near(found, expected)
    assert all(torch.equal(again[name], value) for name, value in expected.items())


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("architecture", DECODERS)
def test_every_known_decoder_computes_the_same(architecture: str) -> None:
    model = decoder(architecture, **({"attention_bias": True, "mlp_bias": True} if architecture == "llama" else {}))
    expected = decoded(model)
    with fused_blocks.replace_blocks(model) as number:
        assert number == 2
        assert near(decoded(model), expected)
    assert type(model.model.layers[0]).__name__ in fused_modules.DECODERS
    assert len(fused_modules.DECODERS) == len(DECODERS)


@pytest.mark.usefixtures("in_fp32")
def test_positions_of_packed_texts_are_kept() -> None:
    model, places = decoder(), torch.tensor([[0, 1, 2, 0, 1, 2]] * 4)
    expected = decoded(model, SIDES["no padding"], position_ids=places)
    assert not near(decoded(model, SIDES["no padding"]), expected)
    with fused_blocks.replace_blocks(model):
        assert near(decoded(model, SIDES["no padding"], position_ids=places), expected)


def test_a_decoder_in_bf16_is_as_near_to_fp32_as_its_modules() -> None:
    model = lora(*DECODER_LORA)(decoder())
    exact = decoded(model)

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            found = decoded(model)
        return sum(float((found[name].float() - value).norm() / (value.norm() + 1e-3)) for name, value in exact.items())

    with plain(model):
        theirs = error()
        with fused_blocks.replace_blocks(model):
            ours = error()
    assert 0 < ours < 1.5 * theirs


UNSUITABLE_DECODERS: dict[str, dict[str, Any]] = {
    "attention dropout": {"attention_dropout": 0.1},
    "another activation": {"hidden_act": "gelu"},
    "a short window": {"architecture": "mistral", "sliding_window": 4},
    "norms of query and key": {"architecture": "qwen3"},
}


@pytest.mark.parametrize("name", UNSUITABLE_DECODERS)
def test_other_decoders_stay_as_they_are(name: str) -> None:
    with fused_blocks.replace_blocks(decoder(**UNSUITABLE_DECODERS[name])) as number:
        assert number == 0


def test_generation_with_a_cache_is_that_of_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder().eval()
    arguments = {**INPUTS, "attention_mask": SIDES["left"], "max_new_tokens": 4, "do_sample": False, "use_cache": True}
    expected = model.generate(**arguments)
    monkeypatch.setattr(decoder_block.DecoderBlock, "__call__", lambda *_: pytest.fail("not to be called"))
    with fused_blocks.replace_blocks(model) as number, torch.autocast("cpu", torch.bfloat16):
        assert number == 2
        assert model.generate(**arguments).shape == expected.shape
