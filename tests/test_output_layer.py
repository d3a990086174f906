"""Losses and gradients without the output layer in the forward pass equal those of the plain pass, in less memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import write_rows
from test_chat import TWO_TURNS, make_tokenizer
from tiny_decoders import ROWS, encoded, make_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pefttools import cli
from pefttools.nn import chunked_loss, output_layer
from pefttools.tasks.causal_lm import CausalLM
from pefttools.training.process import forward

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it
VOCABULARY = 259
WIDTH = 32
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of seven tokens of the tiny vocabulary."""
    monkeypatch.setitem(chunked_loss.CHUNK, "cpu", 7 * VOCABULARY + 3)


def batch_of(task: CausalLM, multiple: int = 8) -> dict[str, Tensor]:
    columns = encoded(task, [*ROWS, {"messages": TWO_TURNS}], make_tokenizer())
    return (task.collate_training if task.packing else task.collate)(columns, make_tokenizer(), multiple)


def gradients(
    task: Any, model: nn.Module, batch: Mapping[str, Tensor], layer: output_layer.OutputLayer | None, bf16: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and the gradients of all trained parameters."""
    model.train()
    model.zero_grad()
    loss = task.loss(forward(model, task.inputs_of(batch), "cpu", "bf16" if bf16 else "fp32", layer), batch)
    (loss / 3).backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(task: Any, model: nn.Module, batch: Mapping[str, Tensor], bf16: bool = False, **found: Any) -> None:
    """The layer is found, and loss and gradients are those of the plain pass."""
    layer = output_layer.find(model, task.inputs_of(batch), **found)
    assert layer is not None
    expected, plain = gradients(task, model, batch, None, bf16)
    loss, others = gradients(task, model, batch, layer, bf16)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert others.keys() == plain.keys()
    tolerance = 2e-2 if bf16 else 1e-5
    for name, one in plain.items():
        rounding = 1e-9  # biases of keys have no effect, so their gradients are rounding alone
        assert (others[name] - one).abs().max() <= tolerance * one.abs().max() + rounding, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_chunked_loss_and_gradients(dtype: torch.dtype, has_bias: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16).requires_grad_(), torch.randn(VOCABULARY, 16).requires_grad_()
    bias = torch.randn(VOCABULARY).requires_grad_() if has_bias else None
    classes = torch.randint(VOCABULARY, (40,))
    assert len(list(chunked_loss.chunks(hidden, VOCABULARY))) == 6
    inputs = [hidden, weight, *([] if bias is None else [bias])]
    offset = None if bias is None else bias.to(dtype)
    logits = nn.functional.linear(hidden.to(dtype), weight.to(dtype), offset).float()
    expected = nn.functional.cross_entropy(logits, classes, reduction="sum")
    found = chunked_loss.cross_entropy(hidden, weight, bias, classes, dtype)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    plain = torch.autograd.grad(expected / 7, inputs)
    for one, other in zip(plain, torch.autograd.grad(found / 7, inputs), strict=True):
        assert (one - other).abs().max() <= (2e-2 if dtype is torch.bfloat16 else 1e-5) * one.abs().max()


def test_a_batch_without_targets_has_no_loss() -> None:
    hidden, weight = torch.randn(0, 16).requires_grad_(), torch.randn(VOCABULARY, 16)
    found = chunked_loss.cross_entropy(hidden, weight, None, torch.zeros(0, dtype=torch.long))
    found.backward()
    assert found == 0
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, 16)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("gpt2", True)])
def test_decoders_have_the_loss_and_gradients_of_the_plain_pass(
    family: str, tied: bool, packing: bool, bf16: bool
) -> None:
    model = make_model(family, tie_word_embeddings=tied)
    task = CausalLM(max_length=150, packing=packing, chat=True)
    assert_equal(task, model, batch_of(task), bf16)


@pytest.mark.parametrize("is_chunked", [True, False])
def test_lora_on_the_output_layer(is_chunked: bool) -> None:
    from peft import LoraConfig, get_peft_model

    task, model = CausalLM(max_length=150, chat=True), make_model("llama", tie_word_embeddings=False)
    wrapped: Any = get_peft_model(model, LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    assert_equal(task, wrapped, batch_of(task), is_chunked=is_chunked)


def test_virtual_tokens_do_not_move_targets() -> None:
    from peft import PromptTuningConfig, get_peft_model

    task, model = CausalLM(max_length=150, chat=True), make_model("llama")
    wrapped: Any = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    assert_equal(task, wrapped, batch_of(task))


def test_gradient_checkpointing() -> None:
    task, model = CausalLM(max_length=150, chat=True), make_model("llama")
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    assert_equal(task, model, batch_of(task))


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gemma2", {"final_logit_softcapping": 5.0, "attn_implementation": "eager"}),
        ("cohere", {"logit_scale": 0.5}),
        ("granite", {"logits_scaling": 3}),
    ],
)
def test_models_that_change_logits_compute_all_of_them(family: str, more: dict[str, Any]) -> None:
    task = CausalLM(max_length=150, chat=True)
    model = make_model(family, **more)
    assert output_layer.find(model, task.inputs_of(batch_of(task))) is None
    assert "forward" not in vars(model.get_output_embeddings())


def encoder_decoder(family: str) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 32, "pad_token_id": 0, "decoder_start_token_id": 0}
    if family == "t5":
        sizes |= {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    else:
        sizes |= dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
        sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    return transformers.AutoModelForSeq2SeqLM.from_config(transformers.AutoConfig.for_model(family, **sizes))


def test_encoder_decoders() -> None:
    from pefttools.tasks.seq2seq import Seq2Seq

    task, columns = Seq2Seq(), {"input_ids": [[5, 6, 7], [8, 9]], "labels": [[9, 8, 7, 6, 2], [5, 2]]}
    batch = task.collate(columns, make_tokenizer(), 4)
    assert_equal(task, encoder_decoder("t5"), batch)
    assert output_layer.find(encoder_decoder("bart"), task.inputs_of(batch)) is None  # it adds a bias to logits


def test_masked_tokens() -> None:
    from pefttools.tasks.masked_lm import MaskedLM

    columns = {"input_ids": [[5, 6, 7, 8], [8, 9]], "labels": [[-100, 8, 7, -100], [-100, 5]]}
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, intermediate_size=64, hidden_dropout_prob=0.0)
    config.attention_probs_dropout_prob = 0.0
    task = MaskedLM()
    assert_equal(task, transformers.BertForMaskedLM(config), task.collate(columns, make_tokenizer(), 4))


def test_predictions_are_those_of_the_plain_pass() -> None:
    task, model = CausalLM(max_length=150, chat=True), make_model("llama")
    batch = batch_of(task)
    layer = output_layer.find(model, task.inputs_of(batch))
    with torch.inference_mode():
        plain, found = (
            task.predict(forward(model, task.inputs_of(batch), "cpu", "fp32", x), batch) for x in (None, layer)
        )
    assert [one["num_targets"] for one in found] == [one["num_targets"] for one in plain]
    assert [one["nll"] for one in found] == pytest.approx([one["nll"] for one in plain], rel=1e-5)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor with a vocabulary's columns, besides the weights."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        outputs = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.shape != (WIDTH, VOCABULARY)]
        sizes = [x.numel() for x in tensors if x.shape[-1:] == (VOCABULARY,)]
        self.found = max(self.found, *sizes, 0)
        return outputs


def test_no_step_holds_the_logits_of_more_than_a_chunk() -> None:
    task, model = CausalLM(max_length=150, chat=True), make_model("llama", tie_word_embeddings=False)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is model.model.norm.weight)
    batch = batch_of(task)
    largest = {}
    for layer in (None, output_layer.find(model, task.inputs_of(batch))):
        with Largest() as seen:
            gradients(task, model, batch, layer)
        largest[layer is not None] = seen.found
    assert largest[False] == batch["input_ids"].numel() * VOCABULARY
    assert largest[True] <= 7 * VOCABULARY


def test_objectives_that_read_logits_share_them_with_the_loss() -> None:
    task, model = CausalLM(max_length=150, chat=True), make_model("llama")
    batch = batch_of(task)
    layer = output_layer.find(model, task.inputs_of(batch), is_chunked=False)
    assert layer is not None
    outputs = forward(model, task.inputs_of(batch), "cpu", "fp32", layer)
    calls: list[int] = []
    handle = layer.module.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    task.loss(outputs, batch)
    logits = task.target_logits(outputs, batch)
    handle.remove()
    number = int((batch["labels"][:, 1:] != -100).sum())
    assert logits.shape == (number, VOCABULARY)
    assert calls == [number]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("strategy=full",),
        ("task.packing=true",),
        ("train.micro_batch_size=2", "train.gradient_checkpointing=true"),
        ("objectives=[label_smoothing]",),
        ("objectives=[fgm]",),
        ("objectives=[sam]",),
    ],
    ids=lambda more: " ".join(more) or "lora",
)
def test_runs_have_the_losses_of_the_plain_pass(
    more: tuple[str, ...], bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, evaluations and accumulation together, through the command line."""
    rows = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": f"word{i % 9}", "completion": f"word{i % 7} pear"} for i in range(40)]
    )
    (tmp_path / "recipe.yaml").write_text(
        f"base: {bases('llama')}\ndata: {{train: {rows}, validation_share: 0.2, test_share: 0.2}}\n"
        "task: {name: causal_lm, generate_rows: 0}\nstrategy: lora\n"
        "train: {epochs: 1, batch_size: 8, log_every: 1, trackers: []}\n"
    )
    find, layers, found = output_layer.find, [], []

    def recorded(*args: Any) -> Any:
        layers.append(find(*args))
        return layers[-1]

    for name, replaced in (("new", recorded), ("plain", lambda *_: None)):
        monkeypatch.setattr(output_layer, "find", replaced)
        assert cli.run(["train", str(tmp_path / "recipe.yaml"), *more, "--out", str(tmp_path / name)]) == 0
        lines = (tmp_path / name / "metrics.jsonl").read_text("utf-8").splitlines()
        result = json.loads((tmp_path / name / "result.json").read_text("utf-8"))
        found.append([one["loss"] for one in map(json.loads, lines) if "loss" in one] + [result["test"]["loss"]])
    assert layers
    assert None not in layers
    assert len(found[0]) > 2
    assert found[0] == pytest.approx(found[1], rel=2e-3)
