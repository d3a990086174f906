"""Settings of strategies on a base: targets, virtual tokens, learning rates, and settings that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_bases
from conftest import make_rows, train_tiny, write_rows

from pefttools.bases.loading import Base, BaseSettings
from pefttools.errors import UserError
from pefttools.inference.prediction import predict_rows
from pefttools.nn import module_paths
from pefttools.recipe import recipes
from pefttools.recipe.train_settings import TrainSettings
from pefttools.strategies import strategies
from pefttools.tasks.text_classification import TextClassification
from pefttools.training import optimizer_setup
from pefttools.training.preparation import prepare
from pefttools.training.run import load

QUERY = "bert.encoder.layer.0.attention.self.query"
OUTPUT = "bert.encoder.layer.0.attention.output.dense"


@pytest.fixture
def load_base(bases: Callable[[str], Path]) -> Callable[[], Base]:
    return lambda: tiny_bases.load_classifier(bases("bert"))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lora", {"targets": "querry"}, r"strategy.targets: 'querry' matches no matrix .*did you mean 'query'"),
        ("lora", {"targets": ["value", "nope"]}, r"'nope' matches no matrix .*Matrices: query \(2\), key \(2\)"),
        ("lora", {"rank": 33}, "strategy.rank: 33 is more than 32, the smaller side of"),
        ("adalora", {"init_rank": 40}, "strategy.init_rank: 40 is more than"),
        ("low_rank", {"rank": 33}, "strategy.rank: 33 is more than"),
        ("galore", {"rank": 33}, "strategy.rank: 33 is more than"),
        ("top_layers", {"layers": 3}, "strategy.layers: 3 is more than the 2 blocks"),
        ("prompt", {"tokens": 62}, "strategy.tokens: 62 virtual tokens leave 2 of the 64 positions .* at most 60"),
        ("prefix", {"tokens": 100}, "strategy.tokens: 100 virtual tokens leave 0 of the 64 positions"),
        ("peft", {"type": "ADALORA"}, "peft's ADALORA prunes after every step, which strategy=adalora does"),
        ("peft", {"type": "LORA", "settings": {"init_lora_weights": "eva"}}, "use strategy=lora strategy.init=eva"),
        ("ia3", {"outputs": "keys"}, "strategy.outputs: 'keys' matches no matrix .*did you mean 'key'"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_base_are_refused(
    name: str, settings: dict[str, Any], message: str, load_base: Callable[[], Base]
) -> None:
    with pytest.raises(UserError, match=message):
        strategies.get(name)(**settings).wrap(load_base())


@pytest.mark.parametrize("strategy", ["lora", "adalora", "vera", "low_rank"])
def test_empty_targets_are_refused(strategy: str, recipe_file: Path) -> None:
    with pytest.raises(UserError, match=r"strategy.targets: is empty"):
        recipes.load(str(recipe_file), [f"strategy={strategy}", "strategy.targets=[]"])


def test_targets_by_role_name_and_path(load_base: Callable[[], Base]) -> None:
    from pefttools.bases import targets

    base = load_base()
    assert targets.resolve(base, ("down",)) == [f"bert.encoder.layer.{i}.output.dense" for i in (0, 1)]
    assert targets.resolve(base, ("*.1.attention.output.dense",)) == [OUTPUT.replace(".0.", ".1.")]
    assert len(targets.resolve(base, ("all",))) == 12
    assert targets.resolve(base, ("value", "query"))[0] == QUERY  # in the model's order


def test_virtual_tokens_reduce_the_maximum_length(load_base: Callable[[], Base]) -> None:
    base = load_base()
    strategies.get("prefix")(tokens=10).wrap(base)
    assert base.tokenizer.model_max_length == 54


@pytest.mark.slow
def test_loaded_prefix_reduces_the_maximum_length(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["strategy=prefix", "task.max_length=64", "train.epochs=0.1"]
    run, _ = train_tiny(recipe_file, tmp_path / "run", *overrides)
    loaded = load(run)
    assert loaded.base.tokenizer.model_max_length == 44
    (prediction,) = predict_rows(run, [{"text": "apple " * 200}])
    assert set(prediction["probabilities"]) == {"colour", "fruit", "tool"}


def tiny(architecture: str) -> Base:
    """A model of another family, with random weights."""
    from pefttools.compatibility import tiny_models

    return tiny_models.base(
        TextClassification.example(), architecture, False, tiny_models.ARCHITECTURES[architecture].sizes
    )


def test_bitfit_trains_biases_with_other_names() -> None:
    for settings, biases in (({}, ("q_bias", "v_bias")), ({"biases": "subset"}, ("q_bias",))):
        model = strategies.get("bitfit")(**settings).wrap(tiny("deberta"))
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        assert {f"deberta.encoder.layer.0.attention.self.{name}" for name in biases} <= names
        assert ("deberta.encoder.layer.0.attention.self.v_bias" in names) == (not settings)


@pytest.mark.parametrize(
    ("architecture", "low"),
    [
        ("bart", ("model.decoder.layernorm_embedding", "model.decoder.embed_positions", "model.shared")),
        ("deberta-v2", ("deberta.encoder.LayerNorm", "deberta.encoder.rel_embeddings")),
    ],
)
def test_modules_below_the_blocks_get_the_lowest_learning_rate(architecture: str, low: tuple[str, ...]) -> None:
    base = tiny(architecture)
    names = {path for path, _ in base.model.named_modules()}
    assert set(low) & names
    assert not set(low) & module_paths.above_blocks(base.model)
    full = strategies.get("full")()
    settings = TrainSettings(learning_rate=1.0, layer_decay=0.5)
    groups = optimizer_setup.build(full.wrap(base), full, settings).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    blocks = module_paths.blocks(base.model)
    for path in set(low) & names:
        assert {rates[id(p)] for p in base.model.get_submodule(path).parameters()} <= {0.5 ** len(blocks)}


def test_ia3_vectors_are_not_decayed(load_base: Callable[[], Base]) -> None:
    strategy = strategies.get("ia3")()
    model = strategy.wrap(load_base())
    names = {id(p): name for name, p in model.named_parameters()}
    groups = optimizer_setup.build(model, strategy, TrainSettings(learning_rate=1e-3)).param_groups
    decayed = {names[id(p)] for group in groups for p in group["params"] if group["weight_decay"]}
    assert decayed == {"base_model.model.classifier.modules_to_save.default.weight"}


@pytest.mark.slow
def test_texts_are_truncated_to_the_length_that_the_strategy_leaves(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of tokenised rows is not shared between strategies with different lengths."""
    long = [{**row, "text": row["text"] + " word1" * 70} for row in make_rows(60)]
    rows = write_rows(tmp_path / "long.jsonl", long)
    common = [f"data.train={rows}", "task.max_length=64", "train.epochs=0.5"]
    lengths = []
    for strategy in ("lora", "prefix", "lora"):
        ready = prepare(recipes.load(str(recipe_file), [*common, f"strategy={strategy}"]).recipe)
        lengths.append(max(len(ids) for ids in ready.encoded["train"]["input_ids"]))
    assert lengths == [64, 44, 64]


def test_modules_named_as_head_stay_pretrained(bases: Callable[[str], Path]) -> None:
    from pefttools.regularizers.base import pretrained_and_new
    from pefttools.training.penalties import mark_pretrained

    settings = BaseSettings(source=str(bases("bert")), head=("bert.embeddings",))
    base = TextClassification(labels=("a", "b")).load(settings)
    mark_pretrained(base)
    model = strategies.get("lora")().wrap(base)
    pretrained, new = pretrained_and_new(model, base.new)
    assert any("word_embeddings" in name for name in pretrained)
    assert not any("embeddings" in name for name in new)
    assert any("classifier" in name for name in new)


@pytest.mark.slow
def test_penalty_data_is_found_from_another_working_directory(
    recipe_file: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows_file.parent)
    overrides = ["strategy=full", f"regularizers.ewc.data={rows_file.name}", "regularizers.ewc.rows=8"]
    run, _ = train_tiny(recipe_file, tmp_path / "run", *overrides, "train.epochs=0.2")
    monkeypatch.chdir(tmp_path)
    again = recipes.load(str(run / "recipe.yaml")).recipe
    assert again.regularizers["ewc"].data.source == str(rows_file)  # type: ignore[attr-defined]
