"""Speedups and memory savings that do not change what a run learns: active inside the training loop only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pefttools.bases import quantized
from pefttools.device import Precision, half_type
from pefttools.errors import UserError
from pefttools.objectives._composition import need_plain_autograd
from pefttools.training import liger

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.nn.first_token import LastBlock
    from pefttools.nn.output_layer import OutputLayer
    from pefttools.recipe.recipe import Recipe
    from pefttools.recipe.train_settings import TrainSettings

BACKEND = "inductor"
"""Backend of `train.compile`."""


@contextmanager
def steps(
    model: nn.Module,
    settings: TrainSettings,
    device: str,
    precision: Precision,
    last: LastBlock | None = None,
    plain_autograd: bool = False,
) -> Iterator[None]:
    """While the context is open, the model computes steps and evaluations as fast as the device allows.

    Frozen matrices are in bf16 where steps compute in it, and are restored bit for bit; plain LoRA layers run as one
    function; a last block of which one token is read computes that token only. On a CPU, oneDNN multiplies fp32
    matrices, dropout draws cheaper random bits, attention of short texts uses plain matrix products, and trained
    embeddings reuse their gradient's memory. With `train.compile`, only 16-bit matrices, oneDNN and Liger are active.

    Args:
        last: the result of `first_token.last_block`.
        plain_autograd: do not use functions with a backward pass of their own.

    Raises:
        UserError: the model or the machine does not support a setting.
    """
    from pefttools.nn import attention, bf16_split, dropout, embedding_grad, fused_blocks, lora_linear, onednn, sharding

    refuse_impossible(model, settings, device)
    if sharding.is_sharded(model):  # its weights are whole only while the module that has them computes
        precision, last, plain_autograd = "fp32", None, True
    with ExitStack() as stack:
        if precision == "bf16":
            stack.callback(bf16_split.keep_upper(model))
        if (half := half_type(precision)) is not None:
            stack.enter_context(quantized.computing_in(half, model))
        if device == "cpu":
            stack.enter_context(onednn.by_onednn())
        stack.enter_context(_without_cache(model))
        if settings.liger:
            stack.enter_context(liger.kernels(_plain(model)))
        if settings.gradient_checkpointing:
            stack.enter_context(_checkpointing(model))
        if settings.compile:
            stack.enter_context(_compiled(model))
        else:
            if last:
                stack.enter_context(last.restricted())
            if not plain_autograd:
                stack.enter_context(lora_linear.replace_lora_layers(model))
            if device == "cpu" and precision == "bf16" and not plain_autograd:
                stack.enter_context(fused_blocks.replace_blocks(model, last.block if last else None))
            if device == "cpu" and not plain_autograd:
                stack.enter_context(embedding_grad.replace_embeddings(model))
                stack.enter_context(dropout.replace_dropout(model))
            if device == "cpu":
                stack.enter_context(attention.replace_sdpa())
        yield


def output_layer_of(
    recipe: Recipe, model: nn.Module, inputs: Mapping[str, Tensor], reads_outputs: bool
) -> OutputLayer | None:
    """The output layer that passes can leave out, so that logits are computed for targets only; None if there is none.

    Args:
        inputs: a small batch.
        reads_outputs: whether an objective reads logits, which are then not computed in chunks.
    """
    from pefttools.nn import output_layer, sharding

    if not recipe.task.defers_output_layer or recipe.train.compile or sharding.is_sharded(model):
        return None  # a compiled or sharded model computes all of its layers inside its forward pass
    return output_layer.find(model, inputs, not reads_outputs and not need_plain_autograd(recipe.objectives))


def refuse_impossible(model: Any, settings: TrainSettings, device: str) -> None:
    """Raises UserError where `train.gradient_checkpointing`, `train.compile` or `train.liger` cannot be used."""
    problems = []
    if settings.gradient_checkpointing and not getattr(_plain(model), "supports_gradient_checkpointing", False):
        problems.append(
            f"train.gradient_checkpointing: {type(_plain(model)).__name__} does not support it; leave it out"
        )
    if settings.compile and device == "cpu" and not _compilers():
        problems.append("train.compile: needs a C++ compiler, and none was found; install g++ or clang++")
    if settings.liger and (problem := liger.problem(_plain(model), device)):
        problems.append(problem)
    if problems:
        raise UserError(*problems)


def _plain(model: Any) -> Any:
    """The transformers model inside peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _compilers() -> list[str]:
    return [found for name in (os.environ.get("CXX"), "g++", "clang++") if name and (found := shutil.which(name))]


@contextmanager
def _without_cache(model: Any) -> Iterator[None]:
    """A context in which a pass does not copy its keys and values for a later one; generation asks for that itself."""
    config: Any = getattr(_plain(model), "config", None)
    cached = getattr(config, "use_cache", None)
    if cached is None:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = cached


@contextmanager
def _checkpointing(model: Any) -> Iterator[None]:
    """While the context is open, blocks save their inputs only and recompute the rest in the backward pass.

    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
    """
    plain = _plain(model)
    plain.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        plain.activation_checkpointing_disable()


@contextmanager
def _compiled(model: nn.Module) -> Iterator[None]:
    """While the context is open, calls of the model go through torch.compile; its weights keep their names."""
    model.compile(backend=BACKEND, dynamic=True)
    try:
        yield
    finally:
        model._compiled_call_impl = None
