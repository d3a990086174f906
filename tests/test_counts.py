"""Exact parameter counts: the closed form of every strategy agrees with the model on the meta device.

The expected numbers are the papers' formulas for four configurations and two classes; no weights are needed.
"""

from __future__ import annotations

from typing import Any

import pytest

from pefttools.planning.from_config import count_from_config
from pefttools.strategies import strategies
from pefttools.tasks.text_classification import TextClassification

TASK = TextClassification(labels=("a", "b"))
MODELS = ("bert-base", "roberta-base", "roberta-large", "minilm-l6")
SIX = ["all"]
QV = ["query", "value"]

TRAINABLE: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "full and head": ("full", {}, (109_483_778, 124_647_170, 355_361_794, 22_713_986)),
    "head only": ("top_layers", {"layers": 0}, (1_538, 592_130, 1_051_650, 770)),
    "last block, pooler and head": ("top_layers", {"layers": 1}, (7_680_002, 7_680_002, 13_647_874, 1_923_074)),
}
"""Name -> strategy, settings, and the number of trained parameters, with the head."""

ADAPTER: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "LayerNorm only": ("layer_norm", {}, (38_400, 38_400, 100_352, 9_984)),
    "BitFit": ("bitfit", {}, (102_912, 102_144, 271_360, 26_112)),
    "BitFit subset": ("bitfit", {"biases": "subset"}, (46_080, 46_080, 122_880, 11_520)),
    "Houlsby m=64, no LN": (
        "adapter",
        {"variant": "houlsby", "bottleneck": 64, "norms": False},
        (2_379_264, 2_379_264, 6_343_680, 595_200),
    ),
    "Houlsby m=64": (
        "adapter",
        {"variant": "houlsby", "bottleneck": 64},
        tuple(n + 4 * layers * d for n, layers, d in zip(
            (2_379_264, 2_379_264, 6_343_680, 595_200), (12, 12, 24, 6), (768, 768, 1024, 384), strict=True)),
    ),
    "Houlsby m=16, RoBERTa-base 0.61M": (
        "adapter", {"variant": "houlsby", "bottleneck": 16, "norms": False}, (608_640, 608_640),
    ),
    "Pfeiffer m=64": ("adapter", {"bottleneck": 64}, (1_189_632, 1_189_632, 3_171_840, 297_600)),
    "parallel m=64": ("adapter", {"variant": "parallel", "bottleneck": 64}, (1_189_632, 1_189_632, 3_171_840, 297_600)),
    "Pfeiffer m=d/16": ("adapter", {"reduction": 16}, (894_528, 894_528, 3_171_840, 113_040)),
    "LoRA q,v r=8": ("lora", {"targets": QV}, (294_912, 294_912, 786_432, 73_728)),
    "LoRA six r=8": ("lora", {"targets": SIX}, (1_327_104, 1_327_104, 3_538_944, 331_776)),
    "LoRA six r=2": ("lora", {"targets": SIX, "rank": 2}, (331_776, 331_776)),
    "DoRA q,v r=8": ("lora", {"targets": QV, "dora": True}, (313_344, 313_344, 835_584, 78_336)),
    "DoRA six r=8": ("lora", {"dora": True}, (1_327_104 + 12 * (5 * 768 + 3072),)),
    "PiSSA as LoRA": ("lora", {"init": "pissa", "targets": QV}, (294_912,)),
    "AdaLoRA six r0=12": ("adalora", {}, (1_991_520, 1_991_520, 5_310_144, 498_096)),
    "VeRA q,v r=1024": ("vera", {"rank": 1024}, (43_008, 43_008, 98_304, 16_896)),
    "VeRA q,v r=256": ("vera", {"rank": 256}, (24_576, 24_576, 61_440, 7_680)),
    "IA3 of the paper": ("ia3", {}, (55_296, 55_296, 147_456, 13_824)),
    "IA3, peft's default": (
        "ia3",
        {"outputs": ["key", "value"], "inputs": ["output", "down"]},
        (12 * (4 * 768 + 3072 - 768),) * 2 + (24 * (3 * 1024 + 4096), 6 * (3 * 384 + 1536)),
    ),
    "prompt p=20": ("prompt", {"tokens": 20}, (15_360, 15_360, 20_480, 7_680)),
    "prefix p=20": ("prefix", {"tokens": 20}, (368_640, 368_640, 983_040, 92_160)),
    "UVᵀ six r=64": (
        "low_rank",
        {"rank": 64, "biases": False},
        (10_616_832, 10_616_832, 28_311_552, 2_654_208),
    ),
    "UVᵀ six r=64 with biases": (
        "low_rank",
        {"rank": 64},
        tuple(n + layers * (5 * d + f) for n, layers, d, f in zip(
            (10_616_832, 10_616_832, 28_311_552, 2_654_208), (12, 12, 24, 6), (768, 768, 1024, 384),
            (3072, 3072, 4096, 1536), strict=True)),
    ),
    "nothing": ("frozen", {}, (0, 0, 0, 0)),
}  # fmt: skip
"""Name -> strategy, settings, and the number of trained parameters, without the head."""


def config(model: str) -> Any:
    import transformers

    bert = {"num_labels": 2, "vocab_size": 30522}
    small = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    roberta = {"num_labels": 2, "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
    kind, values = {
        "bert-base": ("bert", bert),
        "minilm-l6": ("bert", {**bert, **small}),
        "roberta-base": ("roberta", roberta),
        "roberta-large": ("roberta", {**roberta, **large}),
    }[model]
    return transformers.AutoConfig.for_model(kind, **values)


CASES = [
    pytest.param(model, *row[:2], row[2][i], part, id=f"{name}-{model}")
    for part, rows in (("trainable", TRAINABLE), ("adapter", ADAPTER))
    for name, row in rows.items()
    for i, model in enumerate(MODELS[: len(row[2])])
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "strategy", "settings", "expected", "part"), CASES)
def test_parameter_counts_equal_the_papers_formulas(
    model: str, strategy: str, settings: dict[str, Any], expected: int, part: str
) -> None:
    chosen = strategies.get(strategy)(**settings)
    counts = count_from_config(config(model), TASK, chosen)
    assert counts[part] == expected
    assert counts["adapter"] + counts["head"] == counts["trainable"]
    assert chosen.num_trainable(config(model)) == counts["adapter"]


PUBLISHED = {
    "LoRA r32 q,v": ("lora", {"rank": 32, "targets": QV}, 9_175_040),
    "LoRA r10 MLP": ("lora", {"rank": 10, "targets": ["gate", "up", "down"]}, 9_461_760),
    "DoRA r32 q,v": ("lora", {"rank": 32, "targets": QV, "dora": True}, 9_289_728),
    "AdaLoRA init 64": ("adalora", {"init_rank": 64, "target_rank": 32, "targets": QV}, 18_353_664),
    "VeRA r256": ("vera", {"rank": 256}, 129_024),
    "IA3": ("ia3", {}, 286_720),
    "prefix p=200": ("prefix", {"tokens": 200}, 11_468_800),
    "LayerNorm": ("layer_norm", {}, 175_104),
}
"""peft's published counts on Llama-3.2-3B, except prompt tuning, which cannot classify by the last token."""


@pytest.mark.parametrize("row", PUBLISHED)
def test_adapter_counts_equal_those_published_by_peft(row: str) -> None:
    import transformers

    llama = transformers.AutoConfig.for_model(
        "llama", vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28,
        num_attention_heads=24, num_key_value_heads=8, head_dim=128,
        max_position_embeddings=4096, tie_word_embeddings=True, num_labels=2,
        pad_token_id=0,
    )  # fmt: skip
    strategy, settings, expected = PUBLISHED[row]
    assert count_from_config(llama, TASK, strategies.get(strategy)(**settings))["adapter"] == expected
