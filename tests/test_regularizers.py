"""One contract over the registry, then every formula by hand, and the facts the method sheet promises."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_rows
from torch import Tensor, nn

from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.models import Base, BaseSettings
from pefttools.nn.low_rank import LowRankLinear
from pefttools.nn.orthogonal import off_orthonormal, orthogonality
from pefttools.regularizers import regularizers
from pefttools.regularizers.base import Penalty, Regularizer, pretrained_and_new, product_square
from pefttools.settings import explain_field
from pefttools.strategies import strategies
from pefttools.strategies.base import trained
from pefttools.tasks.text_classification import TextClassification

TASK = TextClassification(labels=("colour", "fruit", "tool"), max_length=32)
QUERIES = [f"bert.encoder.layer.{i}.attention.self.query" for i in range(2)]
HEAD = ("classifier",)


def mark(model: nn.Module, head: Sequence[str]) -> None:
    """What models.load does."""
    for name, parameter in model.named_parameters():
        if not any(f".{path}." in f".{name}" for path in head):
            parameter.pretrained = True  # type: ignore[attr-defined]


def by_strategy(name: str) -> Callable[[Base], Any]:
    return lambda base: strategies.get(name)().wrap(base)


def by_peft(config_name: str, **values: Any) -> Callable[[Base], Any]:
    def wrap(base: Base) -> Any:
        import peft

        values.setdefault("target_modules", QUERIES)
        config = getattr(peft, config_name)(task_type="SEQ_CLS", modules_to_save=list(base.head), **values)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # peft's, about the norms it tunes
            return peft.get_peft_model(base.model, config)

    return wrap


def by_projection(base: Base) -> Any:
    base.model.requires_grad_(False)
    base.model.get_submodule("classifier").requires_grad_(True)
    for path in QUERIES:
        thin = LowRankLinear(base.model.get_submodule(path), 4, keep_start=True)
        base.model.set_submodule(path, thin)
        assert thin.bias is not None
        thin.bias.requires_grad_(False)
    return base.model


def by_biases(base: Base) -> Any:
    for name, parameter in base.model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") and "classifier" not in name)
    return base.model


WRAPPINGS: dict[str, Callable[[Base], Any]] = {
    "full": by_strategy("full"),
    "lora": by_strategy("lora"),
    "rslora": by_peft("LoraConfig", r=4, use_rslora=True),
    "dora": by_peft("LoraConfig", r=4, use_dora=True),
    "adalora": by_peft("AdaLoraConfig", init_r=4, target_r=2, total_step=10),
    "vera": by_peft("VeraConfig", r=4),
    "ln_tuning": by_peft("LNTuningConfig", target_modules=["LayerNorm"]),
    "projection": by_projection,
    "biases": by_biases,
}
NOTHING_OLD = ["lora", "rslora", "dora", "adalora", "vera", "projection"]
"""What trains nothing that was pretrained."""
REFUSED = {
    "ewc": NOTHING_OLD,
    "frobenius": ["biases", "ln_tuning"],
    "l2": ["biases"],
    "mixout": [*NOTHING_OLD, "biases", "ln_tuning"],
    "orthogonal": ["biases", "full", "ln_tuning", "projection", "vera"],
}
"""What has nothing to do with what."""


class Wrapped:
    """A tiny BERT in float64, its head, and the losses of its rows."""

    def __init__(self, folder: Path, how: str) -> None:
        torch.manual_seed(0)
        self.base = TASK.load(BaseSettings(source=str(folder), dropout=0.0))
        mark(self.base.model, self.base.head)
        self.head = self.base.head
        self.original = {n: p.detach().clone().double() for n, p in self.base.model.named_parameters()}
        self.model = WRAPPINGS[how](self.base).double().eval()

    def row_losses(self, data: FileSettings, rows: int) -> Iterator[Tensor]:
        for row in make_rows(min(rows, 4), seed=5):
            batch = TASK.collate(TASK.encode([row], self.base.tokenizer), self.base.tokenizer, 8)
            yield TASK.loss(self.model(**{k: v for k, v in batch.items() if k != "labels"}), batch)

    def bind(self, regularizer: Regularizer) -> Penalty:
        return regularizer.bind(self.model, self.head, self.row_losses)


@pytest.fixture
def wrapped(bases: Callable[[str], Path]) -> Callable[[str], Wrapped]:
    return lambda how: Wrapped(bases("bert"), how)


@pytest.fixture(params=regularizers.names())
def regularizer(request: pytest.FixtureRequest) -> Regularizer:
    cls = regularizers.get(request.param)
    required = {n: f.annotation for n, f in cls.model_fields.items() if f.is_required()}
    return cls(**{name: {FileSettings: "rows.jsonl"}[kind] for name, kind in required.items()})


class Tiny(nn.Module):
    """A pretrained matrix with its bias and norm, and a new head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.norm, self.classifier = nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2)
        mark(self, HEAD)
        self.double()


def no_rows(data: FileSettings, rows: int) -> Iterator[Tensor]:
    yield from ()


def make(name: str, **values: Any) -> Regularizer:
    return regularizers.get(name)(**values)


def bound(name: str, model: nn.Module, row_losses: Any = no_rows, **values: Any) -> Penalty:
    return make(name, **values).bind(model, HEAD, row_losses)


def value_of(penalty: Penalty) -> float:
    value = penalty.value()
    assert value is not None
    return value.item()


def move(model: nn.Module, by: float = 0.05, seed: int = 3) -> dict[str, Tensor]:
    """Move everything trained at random; answers the moves."""
    draw = torch.Generator().manual_seed(seed)
    moves = {n: by * torch.randn(p.shape, generator=draw, dtype=p.dtype) for n, p in trained(model).items()}
    with torch.no_grad():
        for name, p in trained(model).items():
            p += moves[name]
    return moves


def svd_projection(rank: int = 3, keep_start: bool = True) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    plain = nn.Linear(5, 7, bias=False).requires_grad_(False)
    model = nn.Module()
    model.add_module("inner", LowRankLinear(plain, rank, keep_start))
    return model.double(), plain.weight.detach().double()


# The contract: a new file is tested with no edit here.


@pytest.mark.parametrize("how", WRAPPINGS)
def test_gradient_is_that_of_finite_differences(
    regularizer: Regularizer, how: str, wrapped: Callable[[str], Wrapped]
) -> None:
    made = wrapped(how)
    if how in REFUSED.get(regularizer.name, []):
        with pytest.raises(UserError, match=rf"^regularizers\.{regularizer.name}: would do nothing: there is no "):
            made.bind(regularizer)
        return
    penalty = made.bind(regularizer)
    move(made.model)
    value = penalty.value()
    if value is None:
        return  # it perturbs: what it does to gradients is tested where it does
    assert value.shape == ()
    assert value.item() > 0
    parameters = list(trained(made.model).values())
    gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    assert any(g.any() for g in gradients)
    torch.manual_seed(4)
    for i in range(3):  # all of them, then each half apart: two errors cannot cancel
        chosen = [i == 0 or j % 2 == i - 1 for j in range(len(parameters))]
        ways = [torch.randn_like(p) * on for p, on in zip(parameters, chosen, strict=True)]
        expected = sum((g * w).sum() for g, w in zip(gradients, ways, strict=True))
        ends = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for p, w in zip(parameters, ways, strict=True):
                    p += sign * 1e-6 * w
            ends.append(value_of(penalty))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(expected), rel=2e-5, abs=1e-7)


def test_binding_changes_nothing(regularizer: Regularizer, wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped("adalora" if regularizer.name == "orthogonal" else "full")
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    penalty = made.bind(regularizer)
    penalty.value()
    with penalty.perturbed():
        pass
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in made.model.named_parameters())


def test_what_trains_nothing_is_refused(regularizer: Regularizer, wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped("full")
    made.model.requires_grad_(False)
    with pytest.raises(UserError, match=rf"^regularizers\.{regularizer.name}: .* 0 trained tensors \(none\)"):
        made.bind(regularizer)


def test_settings_survive_yaml(regularizer: Regularizer) -> None:
    again, problems = regularizers.parse(yaml.safe_load(yaml.safe_dump(regularizer.as_dict())), "regularizers.0")
    assert not problems
    assert again == regularizer


def test_every_setting_is_explained(regularizer: Regularizer) -> None:
    for name, field in type(regularizer).model_fields.items():
        assert explain_field(field), f"{regularizer.name}.{name} has no docstring under it"


def test_every_strength_is_positive(regularizer: Regularizer) -> None:
    numbers = [n for n, f in type(regularizer).model_fields.items() if f.annotation is float]
    assert numbers
    for name in numbers:
        _, problems = regularizers.parse({**regularizer.as_dict(), name: -0.5}, "regularizers.0")
        assert len(problems) == 1
        assert problems[0].startswith(f"regularizers.0.{name}: input should be greater than")


def test_first_line_names_the_file(regularizer: Regularizer) -> None:
    doc = ast.get_docstring(ast.parse(regularizers.files()[regularizer.name].read_text("utf-8"))) or ""
    assert doc.startswith(f"{regularizer.name}: ")
    assert regularizers.summaries()[regularizer.name] in doc


def test_no_torch_to_read_a_recipe() -> None:
    code = (
        "import sys; from pefttools.regularizers import regularizers as r;"
        "assert r.names(); [r.get(n) for n in r.names()];"
        "assert 'torch' not in sys.modules and 'peft' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_siblings_do_not_import_each_other() -> None:
    for file in regularizers.files().values():
        nodes = ast.walk(ast.parse(file.read_text("utf-8")))
        imported = {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
        assert not imported & {f"pefttools.regularizers.{other}" for other in regularizers.names()}


# What is pretrained.


def test_full_parts_base_from_head(wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped("full")
    pretrained, new = pretrained_and_new(made.model, made.head)
    assert pretrained
    assert new
    assert all(any(f".{path}." in f".{name}" for path in made.head) for name in new)
    assert set(pretrained) | set(new) == set(trained(made.model))


def test_the_head_is_new_whatever_its_mark() -> None:
    model = Tiny()
    mark(model, ())
    assert set(pretrained_and_new(model, HEAD)[1]) == {"classifier.weight", "classifier.bias"}


def test_factors_and_head_are_new_under_lora(wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped("lora")
    pretrained, new = pretrained_and_new(made.model, made.head)
    assert not pretrained
    assert any("lora_A" in name for name in new)
    assert any(".classifier.modules_to_save." in name for name in new)


def test_the_copies_peft_trains_are_pretrained(wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped("ln_tuning")
    pretrained, new = pretrained_and_new(made.model, made.head)
    assert pretrained
    assert all(".ln_tuning_layers." in name for name in pretrained)
    assert all(".modules_to_save." in name for name in new)


def test_a_copied_module_of_the_base_is_pretrained(bases: Callable[[str], Path]) -> None:
    import peft

    base = TASK.load(BaseSettings(source=str(bases("bert")), dropout=0.0))
    mark(base.model, base.head)
    more = "bert.encoder.layer.1.output.dense"
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=QUERIES, modules_to_save=[*base.head, more])
    pretrained, _ = pretrained_and_new(peft.get_peft_model(base.model, config), base.head)
    end = f"{more}.modules_to_save.default"
    assert {n.removeprefix("base_model.model.") for n in pretrained} == {f"{end}.weight", f"{end}.bias"}


# L1.


def test_l1_by_hand() -> None:
    model = Tiny()
    total = sum(p.abs().sum().item() for p in model.parameters())
    assert value_of(bound("l1", model, weight=0.5)) == pytest.approx(0.5 * total, rel=1e-12)
    penalty = bound("l1", model, weight=0.5, toward="start")
    assert value_of(penalty) == 0
    moves = move(model)
    old = sum(m.abs().sum().item() for n, m in moves.items() if "classifier" not in n)
    assert value_of(penalty) == pytest.approx(0.5 * old, rel=1e-9)


def test_l1_toward_the_start_wants_something_pretrained(wrapped: Callable[[str], Wrapped]) -> None:
    with pytest.raises(UserError, match=r"no pretrained parameter \(toward: start\) among the .*lora_A"):
        wrapped("lora").bind(make("l1", toward="start"))


# L2 and weight decay.


def test_l2_by_hand() -> None:
    model = Tiny()
    matrices = sum(m.weight.square().sum().item() for m in (model.inner, model.classifier))
    everything = sum(p.square().sum().item() for p in model.parameters())
    assert value_of(bound("l2", model, weight=0.3)) == pytest.approx(0.15 * matrices, rel=1e-12)
    assert value_of(bound("l2", model, weight=0.3, biases=True)) == pytest.approx(0.15 * everything, rel=1e-12)


def one_step(optimizer: Any, weight: float, **values: Any) -> Tensor:
    model = Tiny()
    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    loss = model.classifier(model.norm(model.inner(x))).square().sum()
    if weight:
        added = bound("l2", model, weight=weight, biases=True).value()
        assert added is not None
        loss = loss + added
    loss.backward()
    optimizer(model.parameters(), lr=0.01, **values).step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_l2_is_weight_decay_under_sgd_and_not_under_adam() -> None:
    def apart(optimizer: Any) -> float:
        return (one_step(optimizer, 0.2) - one_step(optimizer, 0.0, weight_decay=0.2)).abs().max().item()

    assert apart(torch.optim.SGD) <= 1e-7
    assert (one_step(torch.optim.SGD, 0.2) - one_step(torch.optim.SGD, 0.0)).abs().max() > 1e-4
    assert apart(torch.optim.AdamW) > 1e-4


# L2-SP.


def test_l2_sp_by_hand() -> None:
    model = Tiny()
    penalty = bound("l2_sp", model, alpha=0.6, beta=0.2)
    head = sum(p.square().sum().item() for p in model.classifier.parameters())
    assert value_of(penalty) == pytest.approx(0.1 * head, rel=1e-12), "the pretrained part is zero at the start"
    moves = move(model)
    old = sum(m.square().sum().item() for n, m in moves.items() if "classifier" not in n)
    head = sum(p.square().sum().item() for p in model.classifier.parameters())
    assert value_of(penalty) == pytest.approx(0.3 * old + 0.1 * head, rel=1e-9)


def test_l2_sp_without_beta_wants_something_pretrained(wrapped: Callable[[str], Wrapped]) -> None:
    assert value_of(wrapped("lora").bind(make("l2_sp"))) > 0
    with pytest.raises(UserError, match="no pretrained parameter"):
        wrapped("lora").bind(make("l2_sp", beta=0))


# Frobenius.


@pytest.mark.parametrize("how", ["full", "lora", "rslora", "dora", "adalora", "vera", "projection"])
def test_frobenius_is_the_distance_of_the_merged_matrices(how: str, wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped(how)
    penalty = made.bind(make("frobenius", weight=0.4))
    move(made.model)
    said = value_of(penalty)
    merged: nn.Module = made.model.merge_and_unload() if hasattr(made.model, "merge_and_unload") else made.model
    matrices = {n: p.detach() for n, p in merged.named_parameters()}
    matrices |= {f"{n}.weight": m.weight().detach() for n, m in merged.named_modules() if isinstance(m, LowRankLinear)}
    change = sum(
        (matrices[name] - w).square().sum().item()
        for name, w in made.original.items()
        if w.ndim == 2 and not any(name.startswith(f"{path}.") for path in made.head)
    )
    assert change > 1e-4
    assert said == pytest.approx(0.2 * change, rel=1e-6)


def test_frobenius_of_a_truncated_svd_start() -> None:
    model, weight = svd_projection(rank=3)
    value = bound("frobenius", model, weight=0.8).value()
    assert value is not None
    tail = torch.linalg.svdvals(weight)[3:].square().sum().item()
    assert value.item() == pytest.approx(0.4 * tail, rel=1e-6)
    gradients = torch.autograd.grad(value, list(model.parameters()))
    assert max(g.abs().max().item() for g in gradients) < 1e-5


def test_cheap_forms_are_the_built_ones() -> None:
    model, weight = svd_projection(rank=3)
    penalty = bound("frobenius", model, weight=2.0)
    move(model, by=0.3)
    inner: Any = model.get_submodule("inner")
    product = inner.U @ inner.V.T
    assert value_of(penalty) == pytest.approx((product - weight).square().sum().item(), rel=1e-10)
    assert product_square(inner.U, inner.V).item() == pytest.approx(product.square().sum().item(), rel=1e-10)
    assert value_of(bound("l2", model, weight=2.0, of="product")) == pytest.approx(product.square().sum().item())


def test_l2_of_the_factors_is_the_nuclear_norm_at_the_start() -> None:
    model, weight = svd_projection(rank=3)
    nuclear = torch.linalg.svdvals(weight)[:3].sum().item()
    assert value_of(bound("l2", model, weight=1.0)) == pytest.approx(nuclear, rel=1e-6)


def test_l2_of_the_product_counts_the_head_as_it_is(wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped("projection")
    head = sum(p.square().sum() for n, p in trained(made.model).items() if p.ndim == 2 and n.startswith("classifier"))
    inner = sum(m.weight().square().sum() for m in made.model.modules() if isinstance(m, LowRankLinear))
    said = value_of(made.bind(make("l2", weight=0.5, of="product")))
    assert said == pytest.approx(0.25 * torch.as_tensor(head + inner).item(), rel=1e-9)


def test_l2_of_the_product_wants_a_product(wrapped: Callable[[str], Wrapped]) -> None:
    with pytest.raises(UserError, match=r"no low-rank projection \(of: product\)"):
        wrapped("full").bind(make("l2", of="product"))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_frobenius_refuses_a_start_that_edits_the_base(start: str, bases: Callable[[str], Path]) -> None:
    base = TASK.load(BaseSettings(source=str(bases("bert")), dropout=0.0))
    model = by_peft("LoraConfig", r=4, init_lora_weights=start)(base)
    with pytest.raises(UserError, match=rf"regularizers\.frobenius: a start by {start} edits"):
        make("frobenius").bind(model, base.head, no_rows)


def test_frobenius_refuses_a_change_it_cannot_follow(wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped("vera")
    layer: Any = next(m for m in made.model.modules() if hasattr(m, "vera_lambda_b"))
    layer.get_delta_weight = lambda adapter: torch.zeros(2, 2)
    with pytest.raises(UserError, match="has no formula to train by"):
        made.bind(make("frobenius"))


def test_frobenius_without_its_start_is_our_mistake() -> None:
    assert regularizers.get("frobenius").needs_start
    with pytest.raises(AssertionError, match="inner was wrapped without its start"):
        bound("frobenius", svd_projection(keep_start=False)[0])


# Orthogonality.


def test_off_orthonormal_by_hand() -> None:
    assert off_orthonormal(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).item() == 4.0**2 + 2 * 6.0**2 + 8.0**2
    assert off_orthonormal(torch.eye(2, 5)).item() == 0


@pytest.mark.parametrize("how", ["lora", "adalora"])
def test_orthogonal_sums_over_both_factors_of_every_pair(how: str, wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped(how)
    penalty = made.bind(make("orthogonal", weight=0.3))
    move(made.model)
    total = 0.0
    for name, p in trained(made.model).items():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            total += (gram - torch.eye(len(gram))).square().sum().item()
    assert value_of(penalty) == pytest.approx(0.3 * total, rel=1e-9)


def test_orthogonality_is_none_without_factors() -> None:
    assert orthogonality(Tiny()) is None


# EWC.


def linear_rows(model: Tiny, num_rows: int = 3) -> Callable[[FileSettings, int], Iterator[Tensor]]:
    """The loss of row i is ½(Σ w ⊙ i)², of which the gradient is known."""

    def row_losses(data: FileSettings, rows: int) -> Iterator[Tensor]:
        assert data.source == "old.csv"
        for i in range(1, min(rows, num_rows) + 1):
            yield (i * model.inner.weight.sum()).square() / 2

    return row_losses


def test_ewc_fisher_by_hand() -> None:
    model = Tiny()
    penalty = bound("ewc", model, linear_rows(model), weight=0.6, data="old.csv", rows=2)
    total = model.inner.weight.sum().item()
    fisher = ((1 * total) ** 2 + (4 * total) ** 2) / 2  # the gradient of row i is i²·Σw, everywhere the same
    assert value_of(penalty) == 0
    moves = move(model)
    expected = 0.3 * fisher * moves["inner.weight"].square().sum().item()
    assert value_of(penalty) == pytest.approx(expected, rel=1e-9)


def test_ewc_refuses_what_holds_nothing() -> None:
    model = Tiny()
    with pytest.raises(UserError, match=r"every Fisher value is zero over 2 rows of old\.csv"):
        bound("ewc", model, lambda data, rows: (model.classifier.weight.sum() for _ in range(2)), data="old.csv")
    with pytest.raises(UserError, match=r"regularizers\.ewc\.data: old\.csv has no rows"):
        bound("ewc", model, no_rows, data="old.csv")


def test_ewc_data_in_a_recipe() -> None:
    ewc, problems = regularizers.parse({"name": "ewc", "data": "old.csv"}, "regularizers.0")
    assert not problems
    assert ewc is not None
    assert ewc.data == FileSettings(source="old.csv")
    assert regularizers.parse("ewc", "regularizers.0")[1] == ["regularizers.0.data: is required"]
    _, problems = regularizers.parse({"name": "ewc", "data": {"sourc": "x"}}, "regularizers.0")
    assert any("did you mean 'source'?" in problem for problem in problems)


# Mixout.


def mixed_once(penalty: Penalty, weight: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    with penalty.perturbed():
        return weight.detach().clone()


def test_mixout_is_right_on_average() -> None:
    model = Tiny()
    start = model.inner.weight.detach().clone()
    penalty = bound("mixout", model, p=0.7)
    assert (mixed_once(penalty, model.inner.weight, 0) - start).abs().max() < 1e-12, "at the start it changes nothing"
    move(model, by=0.5)
    weight = model.inner.weight.detach().clone()
    draws = torch.stack([mixed_once(penalty, model.inner.weight, seed) for seed in range(2000)])
    swapped = (draws - start).abs() < 1e-9
    assert torch.allclose(draws[~swapped], ((weight - 0.7 * start) / 0.3).expand_as(draws)[~swapped])
    assert swapped.double().mean().item() == pytest.approx(0.7, abs=0.01)
    assert (draws.mean(0) - weight).abs().max() < 4 * (weight - start).abs().max() * (0.7 / 0.3 / 2000) ** 0.5


def test_mixout_restores_bit_for_bit_even_after_an_error() -> None:
    model = Tiny().float()
    penalty = bound("mixout", model)
    move(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyError), penalty.perturbed():
        assert not torch.equal(model.inner.weight, before["inner.weight"])
        for name in ("inner.bias", "norm.weight", "classifier.weight"):
            assert torch.equal(model.state_dict()[name], before[name]), "neither vectors nor the new are mixed"
        raise KeyError
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_mixout_gradient_is_that_of_the_mixed_loss() -> None:
    model = Tiny()
    penalty = bound("mixout", model, p=0.4)
    move(model)
    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)

    def step(backward: bool) -> float:
        torch.manual_seed(11)
        with penalty.perturbed():
            total = 0.0
            for row in x:  # two passes accumulate
                loss = model.classifier(model.inner(row)).square().sum()
                if backward:
                    loss.backward()
                total += loss.item()
        return total

    step(backward=True)
    gradients = {id(p): p.grad for p in model.parameters()}
    model.zero_grad()
    for p in (model.inner.weight, model.inner.bias, model.classifier.weight):
        gradient = gradients[id(p)]
        assert gradient is not None
        way = torch.randn_like(p)
        ends = []
        for sign in (1, -2):
            with torch.no_grad():
                p += sign * 1e-6 * way
            ends.append(step(backward=False))
        with torch.no_grad():
            p += 1e-6 * way
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx((gradient * way).sum().item(), rel=1e-6)
    mixed = gradients[id(model.inner.weight)]
    assert mixed is not None
    assert (mixed == 0).any(), "what was swapped gets no gradient"


def test_mixout_draws_anew_each_step_and_alike_on_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny()
    penalty: Any = bound("mixout", model, p=0.5)
    masks = [penalty.masks()[0] for _ in range(20)]
    assert any(not torch.equal(masks[0], mask) for mask in masks[1:])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: tensor.fill_(7))
    assert all(torch.equal(penalty.masks()[0], penalty.masks()[0]) for _ in range(20))
