"""The head: what the checkpoint lacks and what was never trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from pefttools.errors import UserError
from pefttools.models import BaseSettings
from pefttools.nn import find
from pefttools.strategies.lora import Lora
from pefttools.strategies.top_layers import TopLayers
from pefttools.tasks.text_classification import TextClassification

TASK = TextClassification(labels=("a", "b"))


def test_a_trained_pooler_is_not_head(bases: Callable[[str], Path]) -> None:
    assert TASK.load(BaseSettings(source=str(bases("bert")))).head == ("classifier",)


def test_a_pooler_nobody_trained_is_head(bases: Callable[[str], Path], tmp_path: Path) -> None:
    model = transformers.BertModel.from_pretrained(bases("bert"))
    torch.nn.init.zeros_(model.pooler.dense.bias)  # type: ignore[union-attr]
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(bases("bert")).save_pretrained(tmp_path)
    assert TASK.load(BaseSettings(source=str(tmp_path))).head == ("classifier", "bert.pooler")


def test_a_missing_pooler_is_head(bases: Callable[[str], Path], tmp_path: Path) -> None:
    model = transformers.BertModel.from_pretrained(bases("bert"), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(bases("bert")).save_pretrained(tmp_path)
    assert TASK.load(BaseSettings(source=str(tmp_path))).head == ("bert.pooler", "classifier")


def test_a_head_of_two_layers_is_one_module(bases: Callable[[str], Path]) -> None:
    assert TASK.load(BaseSettings(source=str(bases("roberta")))).head == ("classifier",)


def test_a_named_module_joins_the_head(bases: Callable[[str], Path]) -> None:
    base = TASK.load(BaseSettings(source=str(bases("bert")), head=("bert.pooler",)))
    assert base.head == ("classifier", "bert.pooler")
    with pytest.raises(UserError, match=r"base\.head: unknown module 'bert\.poler'; did you mean 'bert\.pooler'"):
        TASK.load(BaseSettings(source=str(bases("bert")), head=("bert.poler",)))


def test_labels_are_in_the_configuration(bases: Callable[[str], Path]) -> None:
    config = TASK.load(BaseSettings(source=str(bases("llama")))).model.config
    assert config.id2label == {0: "a", 1: "b"}
    assert config.pad_token_id == 0


def test_full_paths_keep_like_names_apart(bases: Callable[[str], Path]) -> None:
    model = TASK.load(BaseSettings(source=str(bases("bert")))).model
    linears = find.linears(model)
    assert len(linears) == 12
    assert not any("pooler" in path for path in linears)
    found = find.matching(linears, ["query", "*.attention.output.dense", "*.[0-9].output.dense", "nothing"])
    assert {pattern: len(paths) for pattern, paths in found.items()} == {
        "query": 2, "*.attention.output.dense": 2, "*.[0-9].output.dense": 2, "nothing": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Lora(targets=("qury",)), r"'qury' matches no matrix of .*did you mean 'query'\? There are: query \(2\)"),
        (Lora(rank=33), r"strategy\.rank: 33 is more than .* allows, whose smaller side is 32"),
        (TopLayers(layers=3), r"strategy\.layers: 3 is more than the 2 blocks"),
    ],
)
def test_settings_that_do_not_fit_the_base(
    strategy: Lora | TopLayers, message: str, bases: Callable[[str], Path]
) -> None:
    with pytest.raises(UserError, match=message):
        strategy.wrap(TASK.load(BaseSettings(source=str(bases("bert")))))
