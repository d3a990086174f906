"""Module paths by role and block in every family: all that belong to it, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from pefttools.bases.loading import Base
from pefttools.compatibility.tiny_models import ARCHITECTURES
from pefttools.errors import UserError
from pefttools.nn import module_paths
from pefttools.nn.families import FAMILIES, ROLES
from pefttools.strategies import strategies

GATED = ("modernbert", "llama", "qwen2", "gemma", "t5")
FUSED = {
    "modernbert": {"query", "key", "value"},
    "gpt2": {"query", "key", "value"},
    "deberta": {"query", "key", "value"},
}
ENCODER_DECODERS = [name for name, a in ARCHITECTURES.items() if a.group == "encoder-decoders"]


@pytest.fixture(scope="module")
def tiny() -> Callable[[str], Any]:
    def make(kind: str) -> Any:
        config = transformers.AutoConfig.for_model(kind, **ARCHITECTURES[kind].sizes)
        return transformers.AutoModel.from_config(config).eval()

    return make


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_role_is_in_every_block(kind: str, tiny: Callable[[str], Any]) -> None:
    model = tiny(kind)
    blocks = module_paths.blocks(model)
    matrices = module_paths.linears(model)
    for role in ROLES:
        found = module_paths.with_roles(model, role)
        if role == "gate" and kind not in GATED:
            assert not found
            continue
        assert set(found) <= set(matrices)
        for i, block in enumerate(blocks):
            crossed = kind in ENCODER_DECODERS and i >= len(blocks) // 2 and role not in ("gate", "up", "down")
            assert len([p for p in found if p.startswith(f"{block}.")]) == (2 if crossed else 1), (role, block)
    for role in ("query", "key", "value"):
        same = module_paths.with_roles(model, role) == module_paths.with_roles(model, "query")
        assert same == (role in FUSED.get(kind, {"query"}))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_roles_cover_the_matrices_of_the_blocks(kind: str, tiny: Callable[[str], Any]) -> None:
    model = tiny(kind)
    rest = set(module_paths.linears(model)) - set(module_paths.with_roles(model, *ROLES))
    assert all(".pos_" in path for path in rest), rest  # DeBERTa's matrices of relative positions


def test_the_mlp_of_bert_is_not_its_attention(tiny: Callable[[str], Any]) -> None:
    model = tiny("bert")
    assert module_paths.with_roles(model, "down") == [f"encoder.layer.{i}.output.dense" for i in range(2)]
    assert module_paths.with_roles(model, "output") == [f"encoder.layer.{i}.attention.output.dense" for i in range(2)]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_blocks_are_in_order(kind: str, tiny: Callable[[str], Any]) -> None:
    blocks = module_paths.blocks(tiny(kind))
    assert len(blocks) == (4 if kind in ENCODER_DECODERS else 2)
    assert [int(path.rpartition(".")[2]) for path in blocks] == [0, 1] * (len(blocks) // 2)
    if kind in ENCODER_DECODERS:
        assert ["encoder" in path for path in blocks] == [True, True, False, False]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_norms_are_found_in_and_outside_the_blocks(kind: str, tiny: Callable[[str], Any]) -> None:
    model = tiny(kind)
    norms = module_paths.norms(model)
    for block in module_paths.blocks(model):
        inside = [path for path in norms if path.startswith(f"{block}.")]
        assert len(inside) == (3 if kind in ENCODER_DECODERS and "decoder" in block else 2) or (
            kind == "modernbert"
            and block == "layers.0"
            and len(inside) == 1  # its first norm belongs to the embeddings
        )
    assert any(not path.startswith(tuple(module_paths.blocks(model))) for path in norms) or kind == "marian"
    assert len(norms) == len(set(norms))


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_family_lists_known_roles_only(kind: str) -> None:
    assert set(FAMILIES[kind].roles) <= set(ROLES)


def unlisted() -> Base:
    """An OPT model, whose family is not in `FAMILIES`."""
    assert "opt" not in FAMILIES
    config = transformers.OPTConfig(
        vocab_size=60, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64, pad_token_id=1, bos_token_id=2, eos_token_id=2, num_labels=3,  # type: ignore[call-arg]
    )  # fmt: skip
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    tokenizer: Any = SimpleNamespace(model_max_length=64)
    return Base(model, tokenizer, ("score",), "SEQ_CLS", "./opt", "", Path())


@pytest.mark.parametrize("name", ["adapter", "ia3", "vera"])
def test_error_about_an_unlisted_family_names_its_modules(name: str) -> None:
    with pytest.raises(UserError) as caught:
        strategies.get(name)().wrap(unlisted())
    message = str(caught.value)
    assert "the roles in a 'opt' model (OPTForSequenceClassification) are unknown" in message
    assert (
        "its blocks contain self_attn.k_proj, self_attn.v_proj, self_attn.q_proj, self_attn.out_proj, fc1, fc2"
        in message
    )
    assert "Known model types: bart, bert," in message


@pytest.mark.parametrize("name", ["full", "lora", "top_layers", "bitfit"])
def test_strategies_without_roles_work_on_an_unlisted_family(name: str) -> None:
    model = strategies.get(name)().wrap(unlisted())
    assert any(p.requires_grad for p in model.parameters())
