"""What the papers say of single methods, on tiny matrices or the tiny BERT: by hand, or against another's code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_rows, train_tiny, write_rows
from torch import nn

from pefttools.bases.loading import Base, BaseSettings
from pefttools.errors import UserError
from pefttools.inference.prediction import predict_rows
from pefttools.nn import low_rank, module_paths
from pefttools.nn.bottleneck import Bottleneck, after, beside
from pefttools.nn.galore import GaLoreAdamW
from pefttools.nn.loftq import decompose
from pefttools.optimizers import optimizers
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
def fresh(bases: Callable[[str], Path]) -> Callable[[], Base]:
    def load() -> Base:
        torch.manual_seed(0)
        return TextClassification(labels=("a", "b", "c")).load(BaseSettings(source=str(bases("bert")), dropout=0.0))

    return load


def test_low_rank_starts_where_pissa_starts(fresh: Callable[[], Base]) -> None:
    """PiSSA at α = r keeps W - BA in the base: its BA is the truncated singular value decomposition, made by peft."""
    thin: Any = strategies.get("low_rank")(rank=5).wrap(fresh()).get_submodule(QUERY)
    pissa: Any = strategies.get("lora")(rank=5, alpha=5.0, init="pissa").wrap(fresh())
    delta = pissa.get_submodule(f"base_model.model.{QUERY}").get_delta_weight("default")
    assert torch.allclose(thin.weight(), delta, atol=1e-6)


def test_low_rank_reports_what_the_truncation_takes(fresh: Callable[[], Base]) -> None:
    base = fresh()
    linears: dict[str, Any] = {path: base.model.get_submodule(path) for path in module_paths.linears(base.model)}
    weights = {path: linear.weight.detach().clone() for path, linear in linears.items()}
    strategy = strategies.get("low_rank")(rank=7)
    model = strategy.wrap(base)
    built = {path: model.get_submodule(path).weight().detach() for path in weights}  # type: ignore[operator]
    lost = sum((built[path] - weight).square().sum() for path, weight in weights.items())
    energy = sum(w.square().sum() for w in weights.values())
    assert strategy.facts(model)["reconstruction_error"] == pytest.approx(float(lost / energy), rel=1e-4)


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_rank_by_energy_is_the_smallest(share: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 9)
    values = torch.linalg.svdvals(weight).square()
    rank = low_rank.rank_for_energy(weight, share)
    assert values[:rank].sum() >= share * values.sum() * (1 - 1e-6)
    assert values[: rank - 1].sum() < share * values.sum()


@pytest.mark.slow
def test_rank_by_budget_keeps_to_it(fresh: Callable[[], Base]) -> None:
    whole = sum(fresh().model.get_submodule(p).weight.numel() for p in module_paths.linears(fresh().model))  # type: ignore
    for budget, limit in ((0.5, whole // 2), (5000.0, 5000)):
        model = strategies.get("low_rank")(budget=budget, biases=False).wrap(fresh())
        used = sum(m.U.numel() + m.V.numel() for m in model.modules() if isinstance(m, low_rank.LowRankLinear))
        assert 0.8 * limit < used <= limit
    with pytest.raises(UserError, match=r"strategy.budget: 10 is too small; rank 1 takes [\d,]+ parameters"):
        strategies.get("low_rank")(budget=10).wrap(fresh())


def test_sequential_and_parallel_adapters_by_hand() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    adapter = Bottleneck(4, 2, nn.ReLU(), 1.0)
    adapter.start_near_identity(0.5)
    one = nn.Linear(4, 4)
    plain = one(x)
    after(one, adapter)
    inner = torch.relu(plain @ adapter.down.weight.T + adapter.down.bias)
    assert torch.allclose(one(x), plain + inner @ adapter.up.weight.T + adapter.up.bias)

    adapter = Bottleneck(4, 2, nn.ReLU(), 4.0)
    adapter.start_near_identity(0.5)
    first, last = nn.Linear(4, 8), nn.Linear(8, 4)
    plain = last(torch.tanh(first(x)))
    beside(first, last, adapter)
    inner = torch.relu(x @ adapter.down.weight.T + adapter.down.bias)
    expected = plain + 4 * (inner @ adapter.up.weight.T + adapter.up.bias)
    assert torch.allclose(last(torch.tanh(first(x))), expected)
    assert adapter.seen is None


def test_houlsby_starts_inside_two_standard_deviations(fresh: Callable[[], Base]) -> None:
    base = fresh()
    model: Any = strategies.get("adapter")(variant="houlsby").wrap(base)
    places = [path for path, m in model.named_modules() if isinstance(m, Bottleneck)]
    assert len(places) == 4  # twice a block, not in the pooler
    assert f"{OUTPUT}.adapter" in places
    weights = torch.cat([model.get_submodule(p).down.weight.flatten() for p in places])
    assert weights.abs().max() <= 0.02
    assert 0.007 < weights.std() < 0.01  # of N(0, .01²) cut at 2σ: .0088


def test_an_adapter_takes_any_activation_and_one_width(fresh: Callable[[], Base]) -> None:
    model: Any = strategies.get("adapter")(activation="silu", reduction=4).wrap(fresh())
    adapter = model.get_submodule("bert.encoder.layer.1.output.dense.adapter")
    assert adapter.down.out_features == 8
    with pytest.raises(ValueError, match="unknown activation 'silo'; did you mean 'silu'"):
        strategies.get("adapter")(activation="silo")
    with pytest.raises(ValueError, match="takes bottleneck or reduction, not both"):
        strategies.get("adapter")(bottleneck=8, reduction=4)


def test_lora_plus_and_vera_learn_at_two_rates(fresh: Callable[[], Base]) -> None:
    for name, settings, fast, slow, ratio in (
        ("lora", {"lr_ratio": 16.0}, ".lora_B.", ".lora_A.", 16),
        ("vera", {}, "vera_lambda", "classifier", 2.5),
    ):
        strategy = strategies.get(name)(**settings)
        model = strategy.wrap(fresh())
        names = {id(p): n for n, p in model.named_parameters()}
        groups = optimizer_setup.build(model, strategy, TrainSettings(learning_rate=1e-3)).param_groups
        rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
        high, low = ({rate for n, rate in rates.items() if word in n} for word in (fast, slow))
        assert len(high) == len(low) == 1
        assert high.pop() == pytest.approx(ratio * low.pop())


def test_galore_by_hand() -> None:
    """One step: P of the gradient's singular value decomposition, Adam's first move in its space, scaled back."""
    torch.manual_seed(0)
    start, gradient = torch.randn(6, 4), torch.randn(6, 4)
    parameter = nn.Parameter(start.clone())
    parameter.grad = gradient.clone()
    group = {"params": [parameter], "rank": 2, "scale": 3.0, "every": 10, "weight_decay": 0.1, "lr": 0.01}
    optimizer = GaLoreAdamW([group], fused=True)
    optimizer.step()
    right = torch.linalg.svd(gradient)[2][:2].T
    small = gradient @ right
    move = small / (small.abs() + 1e-8)  # with bias correction Adam's first step is the sign
    expected = start * (1 - 0.01 * 0.1) - 0.01 * 3 * move @ right.T
    assert torch.allclose(parameter, expected, atol=1e-5)
    state = optimizer.state[parameter]
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == (6, 2)
    for step in range(1, 11):
        kept = state["projection"].clone()
        parameter.grad = torch.randn(6, 4)
        optimizer.step()
        assert torch.equal(state["projection"], kept) == (step != 10)


def test_galore_keeps_a_small_state_and_plain_adamw_elsewhere(fresh: Callable[[], Base]) -> None:
    strategy = strategies.get("galore")(rank=2)
    model: Any = strategy.wrap(fresh())
    optimizer = optimizer_setup.build(model, strategy, TrainSettings(learning_rate=1e-3))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    state = optimizer.state[model.get_submodule(QUERY).weight]
    assert state["exp_avg"].shape == (2, 32)
    table = model.bert.embeddings.word_embeddings.weight
    assert optimizer.state[table]["exp_avg"].shape == table.shape
    with pytest.raises(UserError, match="galore works only with adamw, got sgd"):
        optimizer_setup.build(model, strategy, TrainSettings(learning_rate=1e-3, optimizer=optimizers.get("sgd")()))


def test_loftq_loses_less_than_quantising() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    plain, _, _ = decompose(weight, 1, 1)
    quantised, left, right = decompose(weight, 8, 4)
    assert (quantised + left @ right - weight).norm() < 0.9 * (plain - weight).norm()
    again, _, _ = decompose(quantised, 1, 1)
    assert torch.allclose(again, quantised, atol=1e-6)  # Q is a value of NF4
    with pytest.raises(ValueError, match="alpha must equal rank"):
        strategies.get("lora")(init="loftq", alpha=16.0)


def test_eva_starts_from_the_inputs(fresh: Callable[[], Base]) -> None:
    """A's rows are orthonormal right singular vectors of what the matrix is given."""
    base = fresh()
    torch.manual_seed(1)
    batch = {"input_ids": torch.randint(5, 50, (64, 12)), "attention_mask": torch.ones(64, 12, dtype=torch.long)}
    inputs: list[torch.Tensor] = []
    hook = base.model.get_submodule(QUERY).register_forward_hook(lambda m, x, y: inputs.append(x[0].detach()))
    base.model.eval()
    base.model(**batch)
    hook.remove()
    strategy = strategies.get("lora")(init="eva", rank=4)
    model: Any = strategy.wrap(base)
    strategy.start(model, [batch] * 4)
    a = model.get_submodule(f"base_model.model.{QUERY}").lora_A["default"].weight
    top = torch.linalg.svd(inputs[0].flatten(0, 1), full_matrices=False)[2][:2]
    assert torch.allclose(a @ a.T, torch.eye(4), atol=1e-4)
    # the space A spans holds the strongest directions (peft centres the inputs as it goes)
    assert ((top @ a.T).norm(dim=1) > 0.8).all()


@pytest.mark.slow
def test_adalora_prunes_to_its_target_and_keeps_its_term(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["strategy=adalora", "strategy.init_rank=6", "strategy.target_rank=2", "strategy.every=5"]
    _, result = train_tiny(recipe_file, tmp_path / "run", *overrides)
    ranks = result["facts"]["ranks"]
    assert len(ranks) == 12
    assert sum(ranks.values()) == 2 * len(ranks)
    assert len(set(ranks.values())) > 1  # by importance, not alike
    assert result["train"]["best_step"] >= 0.7 * result["train"]["steps"]  # not kept before it has pruned
    lines = [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"penalty"' in line]
    assert all('"penalty": 0.0' not in line for line in lines)
    with pytest.raises(ValueError, match="target_rank: 9 is more than init_rank, which is 6"):
        strategies.get("adalora")(init_rank=6, target_rank=9)


def test_the_strategy_for_any_method_of_peft(fresh: Callable[[], Base]) -> None:
    cls = strategies.get("peft")
    model: Any = cls(type="oft", settings={"oft_block_size": 4}).wrap(fresh())
    assert model.peft_config["default"].oft_block_size == 4
    with pytest.raises(ValueError, match="unknown peft_type 'OFFT'; did you mean 'OFT'"):
        cls(type="OFFT")
    with pytest.raises(ValueError, match="unknown setting 'oft_block'; did you mean"):
        cls(type="OFT", settings={"oft_block": 4})
    with pytest.raises(UserError, match="strategy"):
        cls(type="OFT", settings={"r": 5, "oft_block_size": 7}).wrap(fresh())
    assert cls(type="LOKR").mergeable
    assert not cls(type="P_TUNING").mergeable


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lora", {"targets": "querry"}, r"strategy.targets: 'querry' matches no matrix .*did you mean 'query'"),
        ("lora", {"targets": ["value", "nope"]}, r"'nope' matches no matrix .*There are: query \(2\), key \(2\)"),
        ("lora", {"rank": 33}, "strategy.rank: 33 is more than .* allows, whose smaller side is 32"),
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
def test_what_does_not_fit_is_refused(
    name: str, settings: dict[str, Any], message: str, fresh: Callable[[], Base]
) -> None:
    with pytest.raises(UserError, match=message):
        strategies.get(name)(**settings).wrap(fresh())


@pytest.mark.parametrize("strategy", ["lora", "adalora", "vera", "low_rank"])
def test_no_targets_at_all_are_refused(strategy: str, recipe_file: Path) -> None:
    with pytest.raises(UserError, match=r"strategy.targets: tuple should have at least 1 item"):
        recipes.load(str(recipe_file), [f"strategy={strategy}", "strategy.targets=[]"])


def test_targets_by_role_name_and_path(fresh: Callable[[], Base]) -> None:
    from pefttools.bases import targets

    base = fresh()
    assert targets.resolve(base, ("down",)) == [f"bert.encoder.layer.{i}.output.dense" for i in (0, 1)]
    assert targets.resolve(base, ("*.1.attention.output.dense",)) == [OUTPUT.replace(".0.", ".1.")]
    assert len(targets.resolve(base, ("all",))) == 12
    assert targets.resolve(base, ("value", "query"))[0] == QUERY  # in the model's order


def test_longer_texts_are_cut_for_virtual_tokens(fresh: Callable[[], Base]) -> None:
    base = fresh()
    strategies.get("prefix")(tokens=10).wrap(base)
    assert base.tokenizer.model_max_length == 54


@pytest.mark.slow
def test_a_loaded_prefix_leaves_room_too(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["strategy=prefix", "task.max_length=64", "train.epochs=0.1"]
    run, _ = train_tiny(recipe_file, tmp_path / "run", *overrides)
    loaded = load(run)
    assert loaded.base.tokenizer.model_max_length == 44
    (answer,) = predict_rows(run, [{"text": "apple " * 200}])
    assert set(answer["probabilities"]) == {"colour", "fruit", "tool"}


def tiny(architecture: str) -> Base:
    """A model of another family, without a checkpoint."""
    from pefttools.compatibility import tiny_models

    return tiny_models.base(
        TextClassification.example(), architecture, False, tiny_models.ARCHITECTURES[architecture].sizes
    )


def test_bitfit_finds_biases_by_other_names() -> None:
    for settings, there in (({}, ("q_bias", "v_bias")), ({"biases": "subset"}, ("q_bias",))):
        model = strategies.get("bitfit")(**settings).wrap(tiny("deberta"))
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        assert {f"deberta.encoder.layer.0.attention.self.{name}" for name in there} <= names
        assert ("deberta.encoder.layer.0.attention.self.v_bias" in names) == (not settings)


@pytest.mark.parametrize(
    ("architecture", "low"),
    [
        ("bart", ("model.decoder.layernorm_embedding", "model.decoder.embed_positions", "model.shared")),
        ("deberta-v2", ("deberta.encoder.LayerNorm", "deberta.encoder.rel_embeddings")),
    ],
)
def test_what_feeds_the_blocks_is_not_above_them(architecture: str, low: tuple[str, ...]) -> None:
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


def test_vectors_written_as_matrices_are_not_decayed(fresh: Callable[[], Base]) -> None:
    strategy = strategies.get("ia3")()
    model = strategy.wrap(fresh())
    names = {id(p): name for name, p in model.named_parameters()}
    groups = optimizer_setup.build(model, strategy, TrainSettings(learning_rate=1e-3)).param_groups
    decayed = {names[id(p)] for group in groups for p in group["params"] if group["weight_decay"]}
    assert decayed == {"base_model.model.classifier.modules_to_save.default.weight"}


def test_a_damaged_loftq_adapter_is_refused(fresh: Callable[[], Base], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    strategy = strategies.get("lora")(init="loftq", alpha=8.0)
    strategy.save(strategy.wrap(fresh()), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors.pop(next(name for name in tensors if "lora_A" in name))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"the adapter is incomplete: .*lora_A"):
        strategy.load(fresh(), tmp_path)


@pytest.mark.slow
def test_texts_are_cut_to_what_the_strategy_leaves(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of tokenised rows must not hand one strategy's lengths to another."""
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
def test_a_penalty_file_is_found_from_anywhere(
    recipe_file: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows_file.parent)
    overrides = ["strategy=full", f"regularizers.ewc.data={rows_file.name}", "regularizers.ewc.rows=8"]
    run, _ = train_tiny(recipe_file, tmp_path / "run", *overrides, "train.epochs=0.2")
    monkeypatch.chdir(tmp_path)
    again = recipes.load(str(run / "recipe.yaml")).recipe
    assert again.regularizers["ewc"].data.source == str(rows_file)  # type: ignore[attr-defined]


def test_eva_gives_up_where_it_finds_no_directions(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pefttools.strategies import lora

    monkeypatch.setattr(lora, "MIN_PASSES", 1)
    monkeypatch.setattr(lora, "MAX_ROUNDS", 0)
    with pytest.raises(UserError, match=r"eva finds no stable directions in .* batches of training rows"):
        train_tiny(recipe_file, tmp_path / "run", "strategy.init=eva")
    assert not (tmp_path / "run").exists()
