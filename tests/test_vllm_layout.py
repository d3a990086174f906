"""What vLLM would say about an adapter, for adapters of plain peft and for those that `export` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_bases
import transformers
from conftest import train_tiny, write_recipe, write_rows
from peft.tuners.lora import LoraLayer

from pefttools import cli
from pefttools.exporters.vllm_layout import layout, sentence

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:.*tie_word_embeddings:UserWarning"
)  # peft's
TARGETS = ["q_proj", "v_proj"]
FINE: dict[str, dict[str, Any]] = {
    "plain": {"r": 4},
    "rank-stabilised": {"r": 4, "use_rslora": True},
    "patterns with the same scaling": {
        "r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}
    },
}  # fmt: skip
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a trained head": ({"modules_to_save": ["lm_head"]}, "trained copies of lm_head"),
    "DoRA": ({"use_dora": True}, "is a DoRA"),
    "biases": ({"bias": "all"}, "trained biases"),
    "tokens": ({"trainable_token_indices": [5, 6]}, "no factors of a matrix: "),
    "another rank": ({"rank_pattern": {"q_proj": 2}}, "2 of its matrices have another scaling"),
    "another alpha": ({"alpha_pattern": {"layers.0.self_attn.v_proj": 1}}, "1 of its matrices have another scaling"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bases.tied_language_model(tmp_path_factory.mktemp("vllm") / "base")


def saved(base: Path, folder: Path, config: peft.PeftConfig) -> Any:
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize("name", FINE)
def test_a_layout_that_vllm_takes(name: str, base: Path, tmp_path: Path) -> None:
    settings = FINE[name]
    model = saved(base, tmp_path, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, **settings))
    found = layout(tmp_path)
    assert found == {"problems": [], "max_lora_rank": 8}
    assert "--enable-lora --max-lora-rank 8" in sentence(found)
    scalings = {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}
    assert len(scalings) == 1  # peft agrees that there is one


@pytest.mark.parametrize("name", WRONG)
def test_a_layout_that_vllm_refuses_or_computes_wrongly(name: str, base: Path, tmp_path: Path) -> None:
    settings, expected = WRONG[name]
    saved(base, tmp_path, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=TARGETS, **settings))
    problems = layout(tmp_path)["problems"]
    assert any(expected in one for one in problems), problems
    assert expected in sentence(layout(tmp_path))


def test_other_methods_and_large_ranks(base: Path, tmp_path: Path) -> None:
    saved(base, tmp_path / "ia3", peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"],
                                                 feedforward_modules=[]))  # fmt: skip
    assert "its type is IA3, and vLLM serves LORA alone" in layout(tmp_path / "ia3")["problems"][0]
    for rank, most in ((17, 32), (600, None)):
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=TARGETS)
        saved(base, tmp_path / str(rank), config)
        found = layout(tmp_path / str(rank))
        assert found["max_lora_rank"] == most
        assert bool(found["problems"]) == (most is None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("strategy=lora",), "vLLM takes this layout with --enable-lora --max-lora-rank 8"),
        (("strategy={name: peft, type: IA3}",), "vLLM cannot serve this adapter, because its type is IA3"),
    ],
)
def test_export_says_whether_vllm_can_serve(
    words: tuple[str, ...], expected: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"word{i} word2", "completion": f"red word{i % 5}"} for i in range(20)]
    file = write_recipe(
        tmp_path / "recipe.yaml", base, write_rows(tmp_path / "rows.jsonl", rows),
        task={"name": "causal_lm", "max_length": 32, "max_new_tokens": 4}, train={"epochs": 1, "batch_size": 8},
    )  # fmt: skip
    run, _ = train_tiny(file, tmp_path / "run", *words)
    capsys.readouterr()
    assert cli.run(["export", str(run), "--to", "adapter", "--out", str(tmp_path / "out")]) == 0
    assert expected in " ".join(capsys.readouterr().out.split())
