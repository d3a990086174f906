"""Single methods against their papers, on tiny matrices or a tiny BERT: by hand or by other code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_bases
import torch
from conftest import train_tiny
from torch import nn

from pefttools.bases.loading import Base
from pefttools.errors import UserError
from pefttools.nn import low_rank, module_paths
from pefttools.nn.bottleneck import Bottleneck, after, parallel
from pefttools.nn.galore import GaLoreAdamW
from pefttools.nn.loftq import decompose
from pefttools.optimizers import optimizers
from pefttools.recipe.train_settings import TrainSettings
from pefttools.strategies import strategies
from pefttools.training import optimizer_setup

QUERY = "bert.encoder.layer.0.attention.self.query"
OUTPUT = "bert.encoder.layer.0.attention.output.dense"


@pytest.fixture
def load_base(bases: Callable[[str], Path]) -> Callable[[], Base]:
    return lambda: tiny_bases.load_classifier(bases("bert"))


def test_low_rank_starts_with_the_weights_of_pissa(load_base: Callable[[], Base]) -> None:
    """PiSSA at α = r keeps W - BA in the base: its BA is the truncated singular value decomposition, made by peft."""
    thin: Any = strategies.get("low_rank")(rank=5).wrap(load_base()).get_submodule(QUERY)
    pissa: Any = strategies.get("lora")(rank=5, alpha=5.0, init="pissa").wrap(load_base())
    delta = pissa.get_submodule(f"base_model.model.{QUERY}").get_delta_weight("default")
    assert torch.allclose(thin.weight(), delta, atol=1e-6)


def test_low_rank_reports_the_reconstruction_error(load_base: Callable[[], Base]) -> None:
    base = load_base()
    linears: dict[str, Any] = {path: base.model.get_submodule(path) for path in module_paths.linears(base.model)}
    weights = {path: linear.weight.detach().clone() for path, linear in linears.items()}
    strategy = strategies.get("low_rank")(rank=7)
    model = strategy.wrap(base)
    built = {path: model.get_submodule(path).weight().detach() for path in weights}  # type: ignore[operator]
    lost = sum((built[path] - weight).square().sum() for path, weight in weights.items())
    energy = sum(w.square().sum() for w in weights.values())
    assert strategy.facts(model)["reconstruction_error"] == pytest.approx(float(lost / energy), rel=1e-4)


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_rank_for_energy_is_the_smallest_that_suffices(share: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 9)
    values = torch.linalg.svdvals(weight).square()
    rank = low_rank.rank_for_energy(weight, share)
    assert values[:rank].sum() >= share * values.sum() * (1 - 1e-6)
    assert values[: rank - 1].sum() < share * values.sum()


@pytest.mark.slow
def test_rank_by_budget_stays_within_the_budget(load_base: Callable[[], Base]) -> None:
    whole = sum(load_base().model.get_submodule(p).weight.numel() for p in module_paths.linears(load_base().model))  # type: ignore
    for budget, limit in ((0.5, whole // 2), (5000.0, 5000)):
        model = strategies.get("low_rank")(budget=budget, biases=False).wrap(load_base())
        used = sum(m.U.numel() + m.V.numel() for m in model.modules() if isinstance(m, low_rank.LowRankLinear))
        assert 0.8 * limit < used <= limit
    with pytest.raises(UserError, match=r"strategy.budget: 10 is too small; rank 1 needs [\d,]+ parameters"):
        strategies.get("low_rank")(budget=10).wrap(load_base())


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
    parallel(first, last, adapter)
    inner = torch.relu(x @ adapter.down.weight.T + adapter.down.bias)
    expected = plain + 4 * (inner @ adapter.up.weight.T + adapter.up.bias)
    assert torch.allclose(last(torch.tanh(first(x))), expected)
    assert adapter.saved_input is None


def test_houlsby_weights_start_within_two_standard_deviations(load_base: Callable[[], Base]) -> None:
    base = load_base()
    model: Any = strategies.get("adapter")(variant="houlsby").wrap(base)
    paths = [path for path, m in model.named_modules() if isinstance(m, Bottleneck)]
    assert len(paths) == 4  # twice a block, not in the pooler
    assert f"{OUTPUT}.adapter" in paths
    weights = torch.cat([model.get_submodule(p).down.weight.flatten() for p in paths])
    assert weights.abs().max() <= 0.02
    assert 0.007 < weights.std() < 0.01  # N(0, .01²) truncated at 2σ has a standard deviation of .0088


def test_adapter_takes_any_activation_and_one_width_setting(load_base: Callable[[], Base]) -> None:
    model: Any = strategies.get("adapter")(activation="silu", reduction=4).wrap(load_base())
    adapter = model.get_submodule("bert.encoder.layer.1.output.dense.adapter")
    assert adapter.down.out_features == 8
    with pytest.raises(ValueError, match="unknown activation 'silo'; did you mean 'silu'"):
        strategies.get("adapter")(activation="silo")
    with pytest.raises(ValueError, match="set either bottleneck or reduction, not both"):
        strategies.get("adapter")(bottleneck=8, reduction=4)


def test_lora_plus_and_vera_have_two_learning_rates(load_base: Callable[[], Base]) -> None:
    for name, settings, fast, slow, ratio in (
        ("lora", {"lr_ratio": 16.0}, ".lora_B.", ".lora_A.", 16),
        ("vera", {}, "vera_lambda", "classifier", 2.5),
    ):
        strategy = strategies.get(name)(**settings)
        model = strategy.wrap(load_base())
        names = {id(p): n for n, p in model.named_parameters()}
        groups = optimizer_setup.build(model, strategy, TrainSettings(learning_rate=1e-3)).param_groups
        rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
        high, low = ({rate for n, rate in rates.items() if word in n} for word in (fast, slow))
        assert len(high) == len(low) == 1
        assert high.pop() == pytest.approx(ratio * low.pop())


def test_galore_by_hand() -> None:
    """One step: P of the gradient's singular value decomposition, Adam's first update in its space, projected back."""
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
        projection = state["projection"].clone()
        parameter.grad = torch.randn(6, 4)
        optimizer.step()
        assert torch.equal(state["projection"], projection) == (step != 10)


def test_galore_state_is_low_rank_for_matrices_of_blocks_only(load_base: Callable[[], Base]) -> None:
    strategy = strategies.get("galore")(rank=2)
    model: Any = strategy.wrap(load_base())
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


def test_loftq_error_is_smaller_than_that_of_quantizing() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    plain, _, _ = decompose(weight, 1, 1)
    quantised, left, right = decompose(weight, 8, 4)
    assert (quantised + left @ right - weight).norm() < 0.9 * (plain - weight).norm()
    again, _, _ = decompose(quantised, 1, 1)
    assert torch.allclose(again, quantised, atol=1e-6)  # Q is a value of NF4
    with pytest.raises(ValueError, match="alpha must equal rank"):
        strategies.get("lora")(init="loftq", alpha=16.0)


def test_eva_starts_with_singular_vectors_of_the_inputs(load_base: Callable[[], Base]) -> None:
    """A's rows are orthonormal right singular vectors of the inputs of the matrix."""
    base = load_base()
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
    # A spans the strongest directions (peft centres the inputs)
    assert ((top @ a.T).norm(dim=1) > 0.8).all()


@pytest.mark.slow
def test_adalora_prunes_to_its_target_rank_and_adds_its_penalty(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["strategy=adalora", "strategy.init_rank=6", "strategy.target_rank=2", "strategy.every=5"]
    _, result = train_tiny(recipe_file, tmp_path / "run", *overrides)
    ranks = result["facts"]["ranks"]
    assert len(ranks) == 12
    assert sum(ranks.values()) == 2 * len(ranks)
    assert len(set(ranks.values())) > 1  # by importance, not equally
    assert result["train"]["best_step"] >= 0.7 * result["train"]["steps"]  # no step is the best one before pruning ends
    lines = [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"penalty"' in line]
    assert all('"penalty": 0.0' not in line for line in lines)
    with pytest.raises(ValueError, match="target_rank: 9 is more than init_rank, which is 6"):
        strategies.get("adalora")(init_rank=6, target_rank=9)


def test_strategy_peft_takes_any_method_of_peft(load_base: Callable[[], Base]) -> None:
    cls = strategies.get("peft")
    model: Any = cls(type="oft", settings={"oft_block_size": 4}).wrap(load_base())
    assert model.peft_config["default"].oft_block_size == 4
    with pytest.raises(ValueError, match="unknown peft_type 'OFFT'; did you mean 'OFT'"):
        cls(type="OFFT")
    with pytest.raises(ValueError, match="unknown setting 'oft_block'; did you mean"):
        cls(type="OFT", settings={"oft_block": 4})
    with pytest.raises(UserError, match="strategy"):
        cls(type="OFT", settings={"r": 5, "oft_block_size": 7}).wrap(load_base())
    assert cls(type="LOKR").mergeable
    assert not cls(type="P_TUNING").mergeable


def test_a_damaged_loftq_adapter_is_refused(load_base: Callable[[], Base], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    strategy = strategies.get("lora")(init="loftq", alpha=8.0)
    strategy.save(strategy.wrap(load_base()), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors.pop(next(name for name in tensors if "lora_A" in name))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"the adapter is incomplete: .*lora_A"):
        strategy.load(load_base(), tmp_path)


def test_eva_without_stable_directions_is_refused(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pefttools.strategies import lora

    monkeypatch.setattr(lora, "MIN_PASSES", 1)
    monkeypatch.setattr(lora, "MAX_ROUNDS", 0)
    with pytest.raises(UserError, match=r"eva finds no stable directions in .* batches of training rows"):
        train_tiny(recipe_file, tmp_path / "run", "strategy.init=eva")
    assert not (tmp_path / "run").exists()
