"""Bases whose blocks bitsandbytes holds in 4 or 8 bits (`base.quantize`), on CPU and CUDA.

QLoRA (Dettmers et al. 2023) trains beside such matrices; LLM.int8() (Dettmers et al. 2022) rounds activations too. Only
the blocks' matrices are quantised: heads, embeddings and norms stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pefttools.nn import module_paths

if TYPE_CHECKING:
    from torch import nn
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

Kind = Literal["nf4", "fp4", "int8"]
BLOCK = 64
"""Weights of a 4-bit matrix that share a scale."""


def configuration(kind: Kind, auto: Any, config: PretrainedConfig) -> BitsAndBytesConfig:
    """How transformers must load a model of this class to quantise the matrices of its blocks and nothing else."""
    import torch
    from transformers import BitsAndBytesConfig

    with torch.device("meta"):
        model = auto.from_config(config)
    blocks = {*module_paths.linears(model)}
    # the names are matched from the left, and one that is given replaces bitsandbytes' own list, lm_head among it
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
    """Full paths of the matrices that are quantised: of blocks, less what transformers keeps in fp32 (T5's wo)."""
    kept = {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    return [path for path in module_paths.linears(model) if not kept & {*path.split(".")}]


def mend(model: nn.Module) -> None:
    """Keep 4-bit layers from repacking themselves in evaluation, after which no gradient passes them."""
    for layer in _four_bit(model):
        layer.support_avx512bf16_for_cpu = False


@contextmanager
def computing_in_bf16(model: nn.Module) -> Iterator[None]:
    """Meanwhile 4-bit layers dequantise to bf16 instead of fp32, and no bias loses digits.

    bitsandbytes puts a bias in its input's type for good. Frozen ones are put back; a layer whose bias is trained goes
    on in fp32, and 8-bit layers, which round their inputs anyway, are given theirs in fp32.
    """
    import torch

    def widened(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        return (given[0].float(), *given[1:])

    with ExitStack() as stack:
        for layer in _four_bit(model):
            if layer.bias is None or not layer.bias.requires_grad:
                stack.callback(_restore, layer, layer.compute_dtype, None if layer.bias is None else layer.bias.data)
                layer.compute_dtype = torch.bfloat16
        for layer in _layers(model, "Linear8bitLt"):
            stack.callback(layer.register_forward_pre_hook(widened).remove)
        yield


def _restore(layer: Any, dtype: Any, bias: Any) -> None:
    layer.compute_dtype = dtype
    if bias is not None:
        layer.bias.data = bias


def dequantised(model: Any) -> PreTrainedModel:
    """The model in fp32 with what its quantised weights stand for; uses it up."""
    import torch
    from transformers.pytorch_utils import Conv1D

    turned = [
        path for path, m in model.named_modules() if issubclass(getattr(m, "source_cls", torch.nn.Linear), Conv1D)
    ]
    plain = model.dequantize().to(torch.float32)
    for path in turned:  # GPT-2's matrices, which come back as linear layers and are kept the other way round
        layer: Any = plain.get_submodule(path)
        conv = Conv1D(layer.out_features, layer.in_features)
        conv.weight, conv.bias = torch.nn.Parameter(layer.weight.detach().T.contiguous(), False), layer.bias
        plain.set_submodule(path, conv)
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method", "hf_quantizer"):
        vars(plain).pop(mark, None)
    return plain


def saved_bytes(kind: Kind, model: nn.Module) -> int:
    """What quantising takes off the weights of an fp32 model."""
    saved = 0
    for path in matrices(model):
        weight: Any = model.get_submodule(path).weight
        rows, size = weight.shape[0], weight.numel()
        held = size + 4 * rows if kind == "int8" else size // 2 + 4 * -(-size // BLOCK)
        saved += 4 * size - held
    return saved


def _four_bit(model: nn.Module) -> list[Any]:
    return _layers(model, "Linear4bit")


def _layers(model: nn.Module, kind: str) -> list[Any]:
    """The model's layers of a class of bitsandbytes; if nothing has imported that, which takes a second, none is."""
    bitsandbytes: Any = sys.modules.get("bitsandbytes")
    return [m for m in model.modules() if isinstance(m, getattr(bitsandbytes.nn, kind))] if bitsandbytes else []
