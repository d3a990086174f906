"""What makes a run's steps fast or small without changing what they learn: put in place around the loop, taken back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pefttools.bases import quantized
from pefttools.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from pefttools.nn.first_token import LastBlock
    from pefttools.recipe.train_settings import TrainSettings

BACKEND = "inductor"
"""What `train.compile` compiles with."""


@contextmanager
def steps(
    model: nn.Module,
    settings: TrainSettings,
    device: str,
    bf16: bool,
    last: LastBlock | None = None,
    plain_autograd: bool = False,
) -> Iterator[None]:
    """Meanwhile `model` computes its steps, and the looks between them, as fast as the device allows.

    Frozen matrices are in bf16 where steps compute in it (bit for bit what they were afterwards); plain LoRA layers are
    one function; a last block of which one token is read computes that. On a CPU fp32 products are oneDNN's, dropout
    draws cheap bits, attention of short texts is plain products, and trained tables keep their gradient's memory.
    `train.compile` goes without these but for the first and the products, and fuses what it finds.

    Args:
        last: what `first_token.last_block` found.
        plain_autograd: go without functions that have a backward pass of their own.

    Raises:
        UserError: `settings` ask for what this model or machine cannot do.
    """
    from pefttools.nn import attention, bf16_split, dropout, embedding_grad, lora_linear, onednn

    refuse_impossible(model, settings, device)
    with ExitStack() as stack:
        if bf16:
            stack.callback(bf16_split.keep_upper(model))
            stack.enter_context(quantized.computing_in_bf16(model))
        if device == "cpu":
            stack.enter_context(onednn.by_onednn())
        if settings.gradient_checkpointing:
            stack.enter_context(_checkpointing(model))
        if settings.compile:
            stack.enter_context(_compiled(model))
        else:
            if last:
                stack.enter_context(last.alone())
            if not plain_autograd:
                stack.enter_context(lora_linear.in_place_of_pefts(model))
            if device == "cpu" and not plain_autograd:
                stack.enter_context(embedding_grad.in_place_of_torchs(model))
                stack.enter_context(dropout.in_place_of_torchs(model))
            if device == "cpu":
                stack.enter_context(attention.in_place_of_torchs())
        yield


def refuse_impossible(model: Any, settings: TrainSettings, device: str) -> None:
    """Raises UserError where `train.gradient_checkpointing` or `train.compile` cannot be."""
    problems = []
    if settings.gradient_checkpointing and not getattr(_plain(model), "supports_gradient_checkpointing", False):
        problems.append(f"train.gradient_checkpointing: {type(_plain(model)).__name__} cannot do it")
    if settings.compile and device == "cpu" and not _compilers():
        problems.append("train.compile: needs a C++ compiler (g++ or clang++), and there is none")
    if problems:
        raise UserError(*problems)


def _plain(model: Any) -> Any:
    """The model of transformers inside."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _compilers() -> list[str]:
    return [found for name in (os.environ.get("CXX"), "g++", "clang++") if name and (found := shutil.which(name))]


@contextmanager
def _checkpointing(model: Any) -> Iterator[None]:
    """Meanwhile blocks keep their inputs only, and compute the rest again on the way back (Chen et al. 2016)."""
    plain = _plain(model)
    plain.activation_checkpointing_enable({"use_reentrant": False})
    cached = getattr(plain.config, "use_cache", None)
    if cached is not None:
        plain.config.use_cache = False
    try:
        yield
    finally:
        plain.activation_checkpointing_disable()
        if cached is not None:
            plain.config.use_cache = cached


@contextmanager
def _compiled(model: nn.Module) -> Iterator[None]:
    """Meanwhile calls of the model go through torch.compile; the names of its weights stay."""
    model.compile(backend=BACKEND, dynamic=True)
    try:
        yield
    finally:
        model._compiled_call_impl = None
