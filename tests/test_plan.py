"""The plan: counts without weights equal those of the loaded model, and the parts of memory add up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from pefttools import cli
from pefttools.bases import loading
from pefttools.bases.loading import BaseSettings
from pefttools.bases.parameters import count_parameters
from pefttools.errors import UserError
from pefttools.planning import heap, memory
from pefttools.planning.from_config import count_from_config
from pefttools.planning.planner import Plan, plan
from pefttools.recipe import recipes
from pefttools.strategies import strategies
from pefttools.strategies.base import trained
from pefttools.strategies.full import Full
from pefttools.tasks.text_classification import TextClassification
from pefttools.training.wrapping import wrap_empty

TASK = TextClassification(labels=("a", "b", "c"), pair=False)
PARTS = ("weights", "gradients", "optimizer", "activations", "features", "allocator", "process")
STRATEGIES = {
    f"{name}/{variant}" if variant else name: strategies.get(name)(**values)
    for name in strategies.names()
    for variant, values in {"": {}, **getattr(strategies.get(name), "variants", {})}.items()
}
"""Every strategy and each of its variants."""


def empty(source: Path, **settings: Any) -> loading.Base:
    values = TASK.config_values()
    settings = {"source": str(source), **settings}
    return loading.load(BaseSettings(**settings), TASK.auto_class, values, TASK.peft_type, empty=True)


@pytest.fixture
def planned(recipe_file: Path) -> Callable[..., Plan]:
    """Overrides -> the tiny recipe's plan."""
    return lambda *overrides: plan(recipes.load(str(recipe_file), overrides).recipe)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_counts_without_weights_equal_those_of_the_model(name: str, family: str, bases: Callable[[str], Path]) -> None:
    """Or both raise the same error. A strategy that needs weights raises torch's error, and `plan` then loads them."""
    real, bare = TASK.load(BaseSettings(source=str(bases(family)))), empty(bases(family))
    assert bare.head == real.head
    try:
        expected = count_parameters(STRATEGIES[name].wrap(real), real.head)
    except UserError as error:
        with pytest.raises(UserError, match=re.escape(str(error))):
            wrap_empty(STRATEGIES[name], bare)
        return
    if getattr(STRATEGIES[name], "energy", None) is not None:
        with pytest.raises((RuntimeError, NotImplementedError)):
            wrap_empty(STRATEGIES[name], bare)
        return
    model = wrap_empty(STRATEGIES[name], bare)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert count_parameters(model, bare.head) == expected
    assert expected["adapter"] + expected["head"] == expected["trainable"]


def test_head_of_the_checkpoint_is_found_without_weights(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = TASK.load(BaseSettings(source=str(bases("bert"))))
    nn.init.zeros_(base.model.bert.pooler.dense.bias)  # type: ignore[union-attr]
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    two = TextClassification(labels=("a", "b"))
    for task in (TASK, two):
        loaded = task.load(BaseSettings(source=str(tmp_path)))
        bare = loading.load(
            BaseSettings(source=str(tmp_path)), task.auto_class, task.config_values(), task.peft_type, empty=True
        )
        assert bare.head == loaded.head == ("classifier", "bert.pooler")


@pytest.mark.parametrize("shards", [False, True])
def test_untrained_pooler_is_detected_from_the_checkpoint_file(
    shards: bool, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    model = transformers.BertModel.from_pretrained(bases("bert"))
    nn.init.zeros_(model.pooler.dense.bias)  # type: ignore[union-attr]
    model.save_pretrained(tmp_path, max_shard_size="20KB" if shards else "1GB")
    transformers.AutoTokenizer.from_pretrained(bases("bert")).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    assert empty(tmp_path).head == ("classifier", "bert.pooler")
    assert empty(bases("bert")).head == ("classifier",)
    assert empty(bases("bert"), head=("bert.pooler",)).head == ("classifier", "bert.pooler")


def test_tied_weights_count_once() -> None:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    counts = {}
    for tied in (True, False):
        config.tie_word_embeddings = tied
        with torch.device("meta"):
            counts[tied] = count_parameters(transformers.AutoModelForCausalLM.from_config(config), ())["total"]
    assert counts[False] - counts[True] == 50 * 32


BERT: dict[str, Any] = {"vocab_size": 30522, "type_vocab_size": 2, "max_position_embeddings": 512}
ROBERTA: dict[str, Any] = {"vocab_size": 50265, "type_vocab_size": 1, "max_position_embeddings": 514}
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
MINI: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (transformers.BertConfig(**BERT), 109_483_778),
        (transformers.RobertaConfig(**ROBERTA), 124_647_170),
        (transformers.RobertaConfig(**ROBERTA, **LARGE), 355_361_794),
        (transformers.BertConfig(**BERT, **MINI), 22_713_986),
    ],
    ids=["bert-base", "roberta-base", "roberta-large", "minilm"],
)
def test_counts_from_a_configuration_alone(config: Any, total: int) -> None:
    counts = count_from_config(config, TextClassification, Full())
    assert counts["total"] == counts["trainable"] == total


@pytest.mark.slow
def test_no_weight_is_loaded(planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    """The model has no data, and only the few biases above the blocks are read from the checkpoint."""
    read, devices = [], set()
    stored, peak = loading.heads.stored, memory.peak_by_part

    def counted(*arguments: Any) -> Any:
        values_of = stored(*arguments)
        return lambda name: (read.append(values_of(name).numel()), values_of(name))[1]

    def watched(made: Any, base: Any, model: nn.Module, *rest: Any) -> Any:
        devices.update(tensor.device.type for tensor in (*model.parameters(), *model.buffers()))
        return peak(made, base, model, *rest)

    monkeypatch.setattr(loading.heads, "stored", counted)
    monkeypatch.setattr(memory, "peak_by_part", watched)
    monkeypatch.setattr(memory, "heap_peak_bytes", lambda *events: 0)
    made = planned()
    assert devices == {"meta"}
    assert sum(read) < 100 < made.params["total"]
    assert made.bytes["allocator"] == 0


@pytest.mark.slow
def test_plan_reports_the_reconstruction_error(planned: Callable[..., Plan]) -> None:
    few, more = planned("strategy=low_rank", "strategy.rank=4"), planned("strategy=low_rank", "strategy.rank=16")
    assert 0 < more.facts["reconstruction_error"] < few.facts["reconstruction_error"] < 1
    assert planned("strategy=adalora").facts == planned("strategy=lora").facts == {}


@pytest.mark.slow
def test_ranks_by_energy_are_computed_from_the_weights(planned: Callable[..., Plan]) -> None:
    params = planned("strategy=low_rank", "strategy.energy=0.5").params
    assert 0 < params["adapter"] < params["total"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["full", "lora", "frozen"])
def test_parts_add_up(strategy: str, planned: Callable[..., Plan]) -> None:
    made = planned(f"strategy={strategy}")
    size, trainable = made.bytes, made.params["trainable"]
    assert list(size) == [*PARTS, "peak"]
    assert size["peak"] == sum(size[part] for part in PARTS)
    assert all(size[part] >= 0 for part in PARTS)
    assert size["gradients"] == 4 * trainable
    assert size["weights"] >= 4 * made.params["total"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["full", "peft"])
def test_adamw_keeps_two_moments(strategy: str, planned: Callable[..., Plan], bases: Callable[[str], Path]) -> None:
    """`peft` is LoHa here, which skips adapters at random; the plan must count all of them."""
    made = planned(f"strategy={strategy}")
    tensors = len(trained(wrap_empty(STRATEGIES[strategy], empty(bases("bert")))))
    assert made.bytes["optimizer"] == 8 * made.params["trainable"] + 4 * tensors  # and a step counter for each tensor


@pytest.mark.slow
def test_plan_uses_the_optimizer_of_galore(planned: Callable[..., Plan]) -> None:
    full, galore = planned("strategy=full", "train.optimizer=sgd"), planned("strategy=galore")
    assert full.bytes["optimizer"] == 0 < galore.bytes["optimizer"] < 8 * galore.params["trainable"]


@pytest.mark.slow
def test_planned_bytes_grow_with_batch_size_and_length(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "heap_peak_bytes", lambda *events: 0)  # fragmentation does not grow steadily

    def step_bytes(*overrides: str) -> int:
        size = planned(*overrides).bytes
        return size["peak"] - size["process"]

    sizes = ((4, 8), (64, 8), (64, 20), (64, 64))
    planned_bytes = [
        step_bytes(f"train.batch_size={rows}", f"task.max_length={length}", "train.micro_batch_tokens=100000")
        for rows, length in sizes
    ]
    assert planned_bytes == sorted(planned_bytes)
    assert planned_bytes[0] < planned_bytes[-1]


def test_largest_batch_has_the_most_tokens() -> None:
    assert memory.largest(1024, 2048, 64, 8, 32) == memory.Batch(32, 64, 1)
    assert memory.largest(8, 2048, 61, 8, 32) == memory.Batch(8, 64, 4)
    assert memory.largest(1024, 2048, 1032, 8, 32) == memory.Batch(2, 1024, 16)  # two rows of 1024, not one of 1032
    assert memory.largest(1024, 64, 512, 8, 32) == memory.Batch(1, 512, 32)
    assert memory.largest(1024, 2048, 4, 8, 3) == memory.Batch(3, 8, 1)


def test_heap_peak_is_at_least_the_live_bytes() -> None:
    begin = [(number, 2**20) for number in range(8)]
    step = [(100, 3 * 2**20), (101, 2**18), (100, 0), (101, 0)]
    peak = heap.heap_peak_bytes(begin, step)
    assert peak == 0 or peak >= 11 * 2**20


@pytest.mark.slow
def test_weights_stored_by_a_penalty_are_planned(planned: Callable[..., Plan]) -> None:
    plain, with_penalty = planned("strategy=full"), planned("strategy=full", "regularizers=l2_sp")
    assert with_penalty.bytes["weights"] > 1.5 * plain.bytes["weights"]


@pytest.mark.slow
def test_plan_on_the_command_line(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", str(recipe_file), "--json", "strategy.rank=4"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["params"]["head"] == 99
    assert values["bytes"]["peak"] == sum(values["bytes"][part] for part in PARTS)
    assert (values["rows"], values["length"], values["micro_batches"]) == (16, 32, 1)
    assert cli.run(["plan", str(recipe_file)]) == 0
    assert "peak memory" in capsys.readouterr().out


def test_invalid_recipes_are_refused(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", str(recipe_file), "strategy.rnk=4"]) == 2
    assert "did you mean 'rank'" in capsys.readouterr().err
    assert cli.run(["plan", str(recipe_file), f"data.train={tmp_path / 'nothing.csv'}"]) == 2
    assert "nothing.csv" in capsys.readouterr().err
    assert cli.run(["plan", str(recipe_file), "strategy.rank=33"]) == 2
    assert "strategy.rank" in capsys.readouterr().err
