"""Whether vLLM can serve a LoRA in peft's format, checked on its files alone, because vLLM needs a GPU.

The rules are those of vLLM's loader (`vllm/lora/peft_helper.py` and `vllm/lora/utils.py`): it reads the rank, α, the
targets and a few other settings, takes tensors whose names end in `lora_A.weight` and `lora_B.weight`, and refuses a
trained head, biases and DoRA. It scales every matrix by α/r of the whole adapter, so that of an adapter with other
scalings for some matrices it would compute a wrong model without a word.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pefttools.errors import damage_of
from pefttools.strategies.base import CONFIG

WEIGHTS = "adapter_model.safetensors"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that `--max-lora-rank` may have."""
PARTS = ("lora_A", "lora_B")
EQUAL = 1e-6
"""Relative difference of scalings that are the same."""


def layout(folder: Path) -> dict[str, Any]:
    """The `problems` that vLLM would have with an adapter, and the `max_lora_rank` to start it with (None beyond all).

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
    """
    with damage_of(folder / CONFIG):
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    shapes = _shapes(folder / WEIGHTS)
    ranks = [shape[0] for name, shape in shapes.items() if name.endswith(".lora_A.weight")]
    largest = max(ranks, default=0)
    problems = [*_of_settings(config), *_of_tensors(shapes)]
    if config.get("peft_type") == "LORA":
        problems += _of_scalings(config, shapes)
        if largest > RANKS[-1]:
            problems.append(f"its rank of {largest} is above {RANKS[-1]}, the most that vLLM takes")
    return {"problems": problems, "max_lora_rank": next((rank for rank in RANKS if rank >= largest), None)}


def sentence(found: Mapping[str, Any]) -> str:
    """The layout as a sentence."""
    if found["problems"]:
        return (
            f"vLLM cannot serve this adapter, because {'; '.join(found['problems'])}; for vLLM, export --to merged or"
            " --to adapter as_lora=RANK"
        )
    rank = found["max_lora_rank"]
    return f"vLLM takes this layout with --enable-lora --max-lora-rank {rank} (by its loader's rules; vLLM was not run)"


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(file, "pt") as weights:
        return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118


def _of_settings(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"its type is {config.get('peft_type')}, and vLLM serves LORA alone"
        return
    if heads := config.get("modules_to_save"):
        yield f"it has trained copies of {', '.join(heads)} (modules_to_save)"
    if config.get("use_dora"):
        yield "it is a DoRA"
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        yield "it has trained biases"
    if config.get("alora_invocation_tokens"):
        yield "it is an activated LoRA, which changes only what follows its invocation tokens"


def _of_tensors(shapes: Mapping[str, Any]) -> Iterator[str]:
    others = sorted({_end(name) for name in shapes if not name.endswith(tuple(f".{one}.weight" for one in PARTS))})
    if others:
        yield f"it has tensors that are no factors of a matrix: {', '.join(others)}"


def _end(name: str) -> str:
    """The last parts of a tensor's name, which say what it is."""
    return ".".join(name.split(".")[-2:])


def _of_scalings(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """A problem if matrices have other scalings than the one that vLLM computes from `r` and `lora_alpha`."""
    wanted = _scaling(config, config["lora_alpha"], config["r"])
    different = 0
    for name in shapes:
        if not name.endswith(".lora_A.weight"):
            continue
        path = name.removesuffix(".lora_A.weight").removeprefix("base_model.model.")
        rank, alpha = (
            _of_pattern(config.get(f"{kind}_pattern") or {}, path, config[key])
            for kind, key in (("rank", "r"), ("alpha", "lora_alpha"))
        )
        different += abs(_scaling(config, alpha, rank) - wanted) > EQUAL * abs(wanted)
    if different:
        yield (
            f"{different} of its matrices have another scaling (rank_pattern, alpha_pattern) than {wanted:.4g}, which"
            " vLLM would take for all of them"
        )


def _scaling(config: Mapping[str, Any], alpha: float, rank: int) -> float:
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value for a matrix, as peft looks it up in a pattern."""
    from peft.utils.other import get_pattern_key

    return pattern.get(get_pattern_key([*pattern], path), default)
