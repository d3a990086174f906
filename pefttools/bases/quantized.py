"""Bases whose blocks are quantised to 4 or 8 bits by bitsandbytes (`base.quantize`), on CPU and CUDA.

QLoRA (Dettmers et al. 2023) trains adapters on such matrices; LLM.int8() (Dettmers et al. 2022) rounds activations too.
Only the blocks' matrices are quantised, not heads, embeddings and norms.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pefttools.nn import module_paths

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

Kind = Literal["nf4", "fp4", "int8"]
BLOCK = 64
"""Number of weights of a 4-bit matrix that share a scale."""


def configuration(kind: Kind, auto: Any, config: PretrainedConfig) -> BitsAndBytesConfig:
    """The configuration with which transformers quantises the matrices of the blocks and nothing else."""
    import torch
    from transformers import BitsAndBytesConfig

    with torch.device("meta"):
        model = auto.from_config(config)
    blocks = {*module_paths.linears(model)}
    # bitsandbytes matches prefixes; a list of ours replaces its default, which includes lm_head
    others = [path for path, m in model.named_modules() if isinstance(m, torch.nn.Linear) and path not in blocks]
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=others)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=others,
    )


def matrices(model: nn.Module) -> list[str]:
    """Full paths of the quantised matrices: those of blocks, except what transformers keeps in fp32 (T5's wo)."""
    in_fp32 = {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    return [path for path in module_paths.linears(model) if not in_fp32 & {*path.split(".")}]


def mend(model: nn.Module) -> None:
    """Prevent 4-bit layers from repacking their weights in evaluation mode, after which no gradient passes them."""
    for layer in _four_bit(model):
        layer.support_avx512bf16_for_cpu = False


@contextmanager
def computing_in(half: torch.dtype, model: nn.Module) -> Iterator[None]:
    """While the context is open, 4-bit layers dequantise to 16 bits instead of fp32, and no bias loses precision.

    bitsandbytes converts a bias to its input's dtype permanently. Frozen biases are restored; a layer with a trained
    bias still computes in fp32; 8-bit layers, which round their inputs anyway, get inputs in fp32.
    """

    def to_fp32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        return (args[0].float(), *args[1:])

    with ExitStack() as stack:
        for layer in _four_bit(model):
            if layer.bias is None or not layer.bias.requires_grad:
                stack.callback(_restore, layer, layer.compute_dtype, None if layer.bias is None else layer.bias.data)
                layer.compute_dtype = half
        for layer in _layers(model, "Linear8bitLt"):
            stack.callback(layer.register_forward_pre_hook(to_fp32).remove)
        yield


def _restore(layer: Any, dtype: Any, bias: Any) -> None:
    layer.compute_dtype = dtype
    if bias is not None:
        layer.bias.data = bias


def dequantised(model: Any) -> PreTrainedModel:
    """The model in fp32 with the values that its quantised weights represent; modifies the model in place."""
    import torch
    from transformers.pytorch_utils import Conv1D

    transposed = [
        path for path, m in model.named_modules() if issubclass(getattr(m, "source_cls", torch.nn.Linear), Conv1D)
    ]
    plain = model.dequantize().to(torch.float32)
    for path in transposed:  # GPT-2's Conv1D, which dequantising turns into linear layers
        layer: Any = plain.get_submodule(path)
        conv = Conv1D(layer.out_features, layer.in_features)
        conv.weight, conv.bias = torch.nn.Parameter(layer.weight.detach().T.contiguous(), False), layer.bias
        plain.set_submodule(path, conv)
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method", "hf_quantizer"):
        vars(plain).pop(mark, None)
    return plain


def saved_bytes(kind: Kind, model: nn.Module) -> int:
    """Bytes by which quantising reduces the weights of an fp32 model."""
    saved = 0
    for path in matrices(model):
        weight: Any = model.get_submodule(path).weight
        rows, size = weight.shape[0], weight.numel()
        quantised = size + 4 * rows if kind == "int8" else size // 2 + 4 * -(-size // BLOCK)
        saved += 4 * size - quantised
    return saved


def _four_bit(model: nn.Module) -> list[Any]:
    return _layers(model, "Linear4bit")


def _layers(model: nn.Module, kind: str) -> list[Any]:
    """The model's layers of a bitsandbytes class. Does not import bitsandbytes, which takes a second."""
    bitsandbytes: Any = sys.modules.get("bitsandbytes")
    return [m for m in model.modules() if isinstance(m, getattr(bitsandbytes.nn, kind))] if bitsandbytes else []
