"""Perturbed embeddings: fgm, pgd, freelb and smart by hand, and in runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import losses, make_rows, train_in_two, train_tiny, write_recipe, write_rows
from resuming import assert_resumes_exactly
from torch import Tensor, nn
from torch.nn import functional

from pefttools import cli
from pefttools.errors import UserError
from pefttools.nn import divergence
from pefttools.nn.input_embeddings import substituted
from pefttools.objectives import objectives
from pefttools.objectives._composition import Composed
from pefttools.objectives._perturbation import Rows
from pefttools.objectives.base import Context
from pefttools.planning.planner import plan
from pefttools.recipe import recipes
from pefttools.tasks import tasks
from pefttools.training.penalties import Penalties
from pefttools.training.run import Run
from pefttools.training.step import MicroBatch, StepGradients, Update

ATTACKS = ("fgm", "pgd", "freelb", "smart")
SHORT = ("train.epochs=1", "data.train_rows=80")
NOTICEABLE = ("objectives.smart.epsilon=0.01", "objectives.smart.sigma=0.01", "objectives.smart.weight=100")
"""Settings with which smart has an effect on a tiny model without dropout."""
PAD = 0


def overrides(name: str) -> list[str]:
    return [f"objectives={name}", *(NOTICEABLE if name == "smart" else ())]


class Summing(nn.Module):
    """A row's logits are W · Σ e over its tokens, linear in the embeddings e."""

    def __init__(self, num_outputs: int = 1, width: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.table = nn.Embedding(7, width)
        self.out = nn.Linear(width, num_outputs, bias=False)
        self.seen: list[Tensor] = []
        """δ of every pass, at tokens and padding."""

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, batch: Any) -> Any:
        embeddings = self.table(batch["input_ids"])
        with torch.no_grad():
            self.seen.append(embeddings - self.table.weight[batch["input_ids"]])
        mask = batch["attention_mask"][..., None]
        return SimpleNamespace(logits=self.out((embeddings * mask).sum(-2)))


class Hand:
    """An objective on `Summing` and two rows of 3 tokens and 1 token; the task is linear, regression or classes."""

    def __init__(self, name: str, settings: dict[str, Any], task: Any, num_outputs: int = 1) -> None:
        self.model = Summing(num_outputs)
        self.weight = self.model.out.weight
        self.batch = {
            "input_ids": torch.tensor([[1, 2, 3, PAD], [4, PAD, PAD, PAD]]),
            "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]),
            "labels": torch.tensor([2.0, -0.5]),
        }
        self.lengths = torch.tensor([3.0, 1.0])
        base: Any = SimpleNamespace(model=self.model, tokenizer=SimpleNamespace(pad_token_id=PAD))
        strategy: Any = SimpleNamespace(penalty=lambda model: None)
        bound = objectives.get(name)(**settings).bind(Context(task, strategy, base, self.model))
        self.composed = Composed(lambda forward, batch: task.loss(forward(batch), batch), {name: bound})
        self.penalties = Penalties(strategy, self.model)

    @property
    def sums(self) -> Tensor:
        """Σ e of each row, (rows, width)."""
        return (self.model.table.weight[self.batch["input_ids"]] * self.batch["attention_mask"][..., None]).sum(1)

    def forward(self, batch: Any, embeddings: Tensor | None = None) -> Any:
        with substituted(self.model, batch["input_ids"], embeddings):
            return self.model(batch)

    def gradients(self) -> Tensor:
        """Leave the gradients of one step in `.grad`; returns the reported loss."""
        gradients = StepGradients(MicroBatch(self.batch, self.forward), 1, torch.Tensor.backward)
        return self.composed.run_passes(lambda: self.composed.add_gradients(self.forward, self.batch, gradients))

    @property
    def deltas(self) -> list[Tensor]:
        """Σ δ of each row, (rows, width), for every pass."""
        return [(delta * self.batch["attention_mask"][..., None]).sum(1) for delta in self.model.seen]


LINEAR = SimpleNamespace(loss=lambda outputs, batch: (outputs.logits[:, 0] * batch["labels"]).sum())
"""The loss y · W Σ e, whose gradient with respect to every token's e is y W."""
NUMBERS = SimpleNamespace(
    loss=lambda outputs, batch: (outputs.logits[:, 0] - batch["labels"]).square().sum(),
    divergence=lambda outputs, others, batch: 2 * (outputs.logits[:, 0] - others.logits[:, 0]).square().sum(),
)
CLASSES = SimpleNamespace(
    loss=lambda outputs, batch: functional.cross_entropy(outputs.logits, batch["labels"].long().abs(), reduction="sum"),
    divergence=lambda outputs, others, batch: divergence.of_classes(outputs.logits, others.logits).sum(),
)


def test_fgm_by_hand() -> None:
    """δ = ε · sign(y) W / (‖W‖ √n) at each of n tokens, so L(x + δ) = L(x) + ε |y| ‖W‖ √n."""
    hand = Hand("fgm", {"epsilon": 0.3}, LINEAR)
    w, y, n = hand.weight.detach(), hand.batch["labels"][:, None], hand.lengths[:, None]
    reported = hand.gradients()
    torch.testing.assert_close(reported, (hand.sums @ w.T * y).sum().detach())
    assert len(hand.model.seen) == 2
    torch.testing.assert_close(hand.deltas[1], 0.3 * y.sign() * w / w.norm() * n.sqrt())
    assert not hand.model.seen[1][hand.batch["attention_mask"] == 0].any()
    torch.testing.assert_close(hand.weight.grad, (y * (2 * hand.sums + hand.deltas[1])).sum(0, keepdim=True).detach())
    grad = hand.model.table.weight.grad
    assert grad is not None
    torch.testing.assert_close(grad[1:5], 2 * w * torch.tensor([2.0, 2.0, 2.0, -0.5])[:, None])  # both passes
    assert not grad[PAD].any()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_pgd_by_hand(steps: int) -> None:
    """On a linear loss all steps have one direction, and their sum is limited to ε."""
    hand = Hand("pgd", {"epsilon": 0.5, "step_size": 0.2, "steps": steps}, LINEAR)
    w, y, n = hand.weight.detach(), hand.batch["labels"][:, None], hand.lengths[:, None]
    reported = hand.gradients()
    torch.testing.assert_close(reported, (hand.sums @ w.T * y).sum().detach())
    delta = min(0.2 * steps, 0.5) * y.sign() * w / w.norm() * n.sqrt()
    torch.testing.assert_close(hand.deltas[-1], delta)
    torch.testing.assert_close(hand.weight.grad, (y * (2 * hand.sums + delta)).sum(0, keepdim=True).detach())
    assert len(hand.model.seen) == steps + 1


def test_freelb_by_hand() -> None:
    hand = Hand("freelb", {"epsilon": 0.5, "step_size": 0.2, "steps": 3}, LINEAR)
    w, y, n = hand.weight.detach(), hand.batch["labels"][:, None], hand.lengths[:, None]
    reported = hand.gradients()
    seen, mask = hand.model.seen, hand.batch["attention_mask"][..., None]
    assert len(seen) == 3
    assert (seen[0].abs() <= 0.5 / (n * 3).sqrt()[..., None] + 1e-6).all()
    assert (seen[0] != 0).equal((mask != 0).expand_as(seen[0]))
    direction = (y.sign() * w / w.norm() / n.sqrt())[:, None] * mask
    for before, after in pairwise(seen):
        there = before + 0.2 * direction
        torch.testing.assert_close(after, there * (0.5 / there.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None])
    means = hand.sums + sum(hand.deltas) / 3
    torch.testing.assert_close(reported, (y * (means @ w.T)).sum().detach())
    torch.testing.assert_close(hand.weight.grad, (y * means).sum(0, keepdim=True).detach())


def test_smart_of_numbers_by_hand() -> None:
    """D = 2 (W Σ δ)², and its gradient has the direction ±W, so with η far above ε, δ = ±ε sign(W) at each token."""
    hand = Hand("smart", {"weight": 3.0, "epsilon": 0.1, "sigma": 0.1, "step_size": 100.0}, NUMBERS)
    w, y, n = hand.weight.detach(), hand.batch["labels"][:, None], hand.lengths[:, None]
    hand.composed.run_passes(lambda: torch.tensor(0.0))  # a step's number, so that the next one is not the trial step
    reported = hand.gradients()
    error = (hand.sums @ w.T - y).detach()
    torch.testing.assert_close(reported, error.square().sum())
    change = 0.1 * w.abs().sum() * n  # |W Σ δ|
    sign = (hand.deltas[-1] @ w.T).sign()
    torch.testing.assert_close(hand.deltas[-1], sign * 0.1 * w.sign() * n)
    expected = (2 * error * hand.sums).sum(0) + 3 * (4 * change * 0.1 * w.sign() * n).sum(0)
    torch.testing.assert_close(hand.weight.grad, expected[None].detach())


def test_smart_of_classes_equals_both_divergences() -> None:
    hand = Hand("smart", {"weight": 2.0, "epsilon": 1.0, "sigma": 0.1, "step_size": 0.1}, CLASSES, num_outputs=3)
    reported = hand.gradients()
    w = hand.weight.detach().clone().requires_grad_()
    p, q = (((hand.sums.detach() + delta) @ w.T).log_softmax(-1) for delta in (hand.deltas[-1], torch.tensor(0.0)))
    both = [functional.kl_div(a, b, reduction="sum", log_target=True) for a, b in ((p, q), (q, p))]
    plain = functional.nll_loss(q, hand.batch["labels"].long().abs(), reduction="sum")
    torch.testing.assert_close(reported, plain.detach())
    (plain + 2 * (both[0] + both[1])).backward()
    torch.testing.assert_close(hand.weight.grad, w.grad, atol=1e-5, rtol=1e-4)
    start = hand.deltas[1]  # the ascent increases the divergence
    first = ((hand.sums.detach() + start) @ w.T).log_softmax(-1)
    assert both[0] > functional.kl_div(first, q, reduction="sum", log_target=True)


@pytest.mark.parametrize("name", ATTACKS)
def test_weights_and_their_gradients_stay_while_perturbations_are_searched(name: str) -> None:
    """Weights change in the optimizer's step only, and each pass over the weights adds to `.grad` once."""
    hand = Hand(name, {"epsilon": 0.1, **({"sigma": 0.1} if name == "smart" else {})}, NUMBERS)
    before = {key: value.clone() for key, value in hand.model.state_dict().items()}
    same: list[bool] = []

    def compare() -> None:
        same.append(all(torch.equal(value, before[key]) for key, value in hand.model.state_dict().items()))

    optimizer = torch.optim.SGD(hand.model.parameters(), lr=0.1)
    parts = [{key: value[i : i + 1] for key, value in hand.batch.items()} for i in range(2)]
    update = Update(
        hand.composed, hand.penalties, optimizer, torch.Tensor.backward, lambda: 0.0, on_loss_gradients=compare
    )
    update.step(lambda: (MicroBatch(part, hand.forward) for part in parts), 2)
    assert same == [True]
    assert not torch.equal(hand.model.out.weight, before["out.weight"])


@pytest.mark.parametrize("name", ATTACKS)
def test_only_the_last_pass_of_a_micro_batch_exchanges_gradients(name: str) -> None:
    hand = Hand(name, {"epsilon": 0.1, **({"sigma": 0.1} if name == "smart" else {})}, NUMBERS)
    inside: list[bool] = []
    backward: list[bool] = []

    @contextmanager
    def without_exchange() -> Iterator[None]:
        inside.append(True)
        yield
        inside.clear()

    def record(loss: Tensor) -> None:
        backward.append(not inside)
        loss.backward()

    for is_last in (True, False):
        backward.clear()
        one = MicroBatch(hand.batch, hand.forward, 1.0, without_exchange, is_last)
        gradients = StepGradients(one, 1, record)
        hand.composed.add_gradients(hand.forward, hand.batch, gradients)
        assert backward[-1] == is_last
        assert not any(backward[:-1])


def test_norms_and_random_starts_belong_to_rows() -> None:
    """Neither padding, nor the other rows, nor packing changes a row's norm or its random numbers."""
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(5, 4, generator=draw)
    ids, width = torch.tensor([5, 6, 7, 8, 9]), 4

    def uniform(values: Tensor, generator: torch.Generator) -> Tensor:
        return values.uniform_(-1, 1, generator=generator)

    def of(batch: dict[str, Tensor]) -> tuple[Rows, Tensor]:
        rows = Rows.of(batch, PAD)
        return rows, rows.random(torch.zeros(*batch["input_ids"].shape, width), (3, 1), uniform)

    alone, noise = of({"input_ids": ids[None, :3], "attention_mask": torch.ones(1, 3)})
    second, more = of({"input_ids": ids[None, 3:]})
    padded = {"input_ids": torch.tensor([[1, 2, 3, 4], [PAD, 5, 6, 7]])}
    rows, both = of({**padded, "attention_mask": (padded["input_ids"] != PAD).long()})
    assert torch.equal(both[1, 1:], noise[0])
    assert not both[1, 0].any()
    inside = torch.zeros(2, 4, width)
    inside[1, 1:], inside[1, 0] = values[:3], 9.0  # values at padding do not count
    assert rows.norm(inside)[1].item() == pytest.approx(values[:3].norm().item())
    assert rows.largest(inside)[1].item() == pytest.approx(values[:3].abs().max().item())
    assert rows.num_tokens().flatten().tolist() == [4, 3]
    packed, line = of({"input_ids": ids[None], "position_ids": torch.tensor([[0, 1, 2, 0, 1]])})
    assert torch.equal(line[0], torch.cat([noise[0], more[0]]))
    parts = [alone.norm(values[None, :3]).item(), second.norm(values[None, 3:]).item()]
    found = packed.norm(values[None]).flatten().tolist()
    assert found == pytest.approx([*[parts[0]] * 3, *[parts[1]] * 2])
    assert packed.largest(values[None]).flatten().tolist()[3:] == pytest.approx([values[3:].abs().max().item()] * 2)
    assert not torch.equal(
        noise, Rows.of({"input_ids": ids[None, :3]}, PAD).random(torch.zeros_like(noise), (3, 2), uniform)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fgm", "pgd", "freelb"])
def test_vanishing_perturbations_give_the_plain_step(name: str, recipe_file: Path, tmp_path: Path) -> None:
    """Also with dropout, because all passes draw the same masks; fgm and pgd then have twice the gradient."""
    common = [*SHORT, "base.dropout=0.1", "train.optimizer=sgd", "train.max_grad_norm=null", "train.weight_decay=0"]
    half = [] if name == "freelb" else ["train.learning_rate=0.0015"]
    plain, _ = train_tiny(recipe_file, tmp_path / "plain", *common)
    extra = [f"objectives={name}", f"objectives.{name}.epsilon=1e-9"]
    attacked, _ = train_tiny(recipe_file, tmp_path / "attacked", *common, *extra, *half)
    assert losses(attacked) == pytest.approx(losses(plain), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_perturbations_are_independent_of_micro_batches(name: str, recipe_file: Path, tmp_path: Path) -> None:
    common = [*overrides(name), *SHORT, "train.batch_size=8"]
    whole, _ = train_tiny(recipe_file, tmp_path / "whole", *common)
    ones, _ = train_tiny(recipe_file, tmp_path / "ones", *common, "train.micro_batch_size=1")
    padded, _ = train_tiny(
        recipe_file, tmp_path / "padded", *common, "train.micro_batch_size=4", "train.pad_multiple=32"
    )
    plain, _ = train_tiny(recipe_file, tmp_path / "plain", *SHORT, "train.batch_size=8")
    assert losses(ones) == pytest.approx(losses(whole), abs=2e-5)
    assert losses(padded) == pytest.approx(losses(whole), abs=2e-5)
    assert losses(plain) != pytest.approx(losses(whole), abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_resumed_run_equals_an_uninterrupted_one(name: str, recipe_file: Path, tmp_path: Path) -> None:
    common = [*overrides(name), "base.dropout=0.1", *SHORT, "train.batch_size=8", "train.micro_batch_size=4"]
    whole, expected = train_tiny(recipe_file, tmp_path / "whole", *common)
    assert_resumes_exactly(recipe_file, tmp_path / "died", common, whole, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strategy"), [("fgm", "full"), ("pgd", "lora"), ("freelb", "full"), ("smart", "lora")]
)
def test_two_processes_give_the_losses_of_one(name: str, strategy: str, recipe_file: Path, tmp_path: Path) -> None:
    common = [*overrides(name), f"strategy={strategy}", *SHORT, "train.batch_size=14", "train.micro_batch_size=3"]
    one = train_tiny(recipe_file, tmp_path / "one", *common)[0]
    train_in_two(recipe_file, tmp_path / "two", *common)
    assert Run(tmp_path / "two").result()["train"]["processes"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(one), abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["label_smoothing, fgm", "fgm, label_smoothing", "sam, fgm", "freelb, sam"])
def test_other_objectives_combine_in_any_order(chosen: str, recipe_file: Path, tmp_path: Path) -> None:
    names = chosen.split(", ")
    runs = [
        train_tiny(recipe_file, tmp_path / str(i), f"objectives=[{', '.join(order)}]", *SHORT)[0]
        for i, order in enumerate((names, names[::-1]))
    ]
    assert losses(runs[0]) == losses(runs[1])
    alone, _ = train_tiny(recipe_file, tmp_path / "alone", f"objectives={names[0]}", *SHORT)
    assert losses(alone) != pytest.approx(losses(runs[0]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fgm", "smart"])
@pytest.mark.parametrize("task_name", tasks.names())
def test_every_task_trains(task_name: str, name: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    cls = tasks.get(task_name)
    family = {"AutoModelForCausalLM": "llama", "AutoModelForSeq2SeqLM": "bart"}.get(cls.auto_class, "bert")
    rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in cls.samples] * 4)
    data = {"validation": str(rows), "test": str(rows), "deduplicate": "none"}
    task = {"name": task_name, "max_length": 32, **cls.sample_settings}
    file = write_recipe(
        tmp_path / "tiny.yaml",
        bases(family),
        rows,
        data=data,
        task=task,
        train={"epochs": 8, "learning_rate": 0.003, "log_every": 1},
    )
    weak = ["objectives.fgm.epsilon=0.1"] if name == "fgm" else []  # 1 is a large change for so small a model
    run, _ = train_tiny(file, tmp_path / "run", *overrides(name), *weak)
    assert losses(run)[-1] < losses(run)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    "how", ["train.precision=bf16", "train.gradient_checkpointing=true", "base.quantize=nf4", "strategy=prompt"]
)
def test_ways_to_compute_a_step(name: str, how: str, recipe_file: Path, tmp_path: Path) -> None:
    common = [how, *SHORT]
    if name == "smart" and "bf16" in how:
        with pytest.raises(UserError, match=r"train\.precision=fp32"):
            train_tiny(recipe_file, tmp_path / "run", *overrides(name), *common)
        return
    plain, _ = train_tiny(recipe_file, tmp_path / "plain", *common)
    run, result = train_tiny(recipe_file, tmp_path / "run", *overrides(name), *common)
    assert losses(run) != losses(plain)
    if how == "train.gradient_checkpointing=true":
        same, _ = train_tiny(recipe_file, tmp_path / "same", *overrides(name), *SHORT)
        assert losses(same) == pytest.approx(losses(run), abs=1e-6)
    assert result["train"]["feature_cache"] is None


@pytest.mark.slow
def test_a_head_alone_is_trained_on_perturbed_features(recipe_file: Path, tmp_path: Path) -> None:
    head = ("strategy=top_layers", "strategy.layers=0", *SHORT, "train.epochs=2")
    plain, with_features = train_tiny(recipe_file, tmp_path / "plain", *head)
    run, result = train_tiny(recipe_file, tmp_path / "run", *head, "objectives=fgm")
    assert with_features["train"]["feature_cache"]
    assert result["train"]["feature_cache"] is None
    assert losses(run)[0] == pytest.approx(losses(plain)[0], abs=1e-5)
    assert losses(run) != pytest.approx(losses(plain), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_packed_rows_are_perturbed_as_if_they_were_alone(
    name: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": row["text"]} for row in make_rows(60)])
    task = {"name": "causal_lm", "max_length": 32}
    file = write_recipe(tmp_path / "tiny.yaml", bases("llama"), rows, task=task, train={"epochs": 1, "log_every": 1})
    runs = [
        train_tiny(file, tmp_path / str(packing), *overrides(name), f"task.packing={packing}")[0]
        for packing in ("true", "false")
    ]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=1e-4)


@pytest.mark.slow
def test_plan_counts_the_passes(recipe_file: Path) -> None:
    def activations(*overrides: str) -> int:
        common = ("task.max_length=64", "train.micro_batch_tokens=100000", "train.batch_size=256")
        return plan(recipes.load(str(recipe_file), [*common, *overrides]).recipe).bytes["activations"]

    plain, both = activations(), activations("objectives=freelb")
    assert plain <= both < 1.3 * plain  # each pass is back-propagated before the next one
    assert activations("objectives=smart") > 1.5 * plain


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["objectives.fgm.epsilon=0"], "objectives.fgm.epsilon: input should be greater than 0, got 0"),
        (["objectives.pgd.step_size=-1"], "objectives.pgd.step_size: input should be greater than 0"),
        (["objectives.freelb.steps=0"], "objectives.freelb.steps: input should be greater than or equal to 1"),
        (["objectives=[fgm, freelb]"], "each of fgm, freelb replaces the passes over a micro-batch; use one of them"),
        (["objectives=smart", "train.precision=bf16"], "objectives.smart: compares predictions that differ by less"),
        (["objectives=smart"], "objectives.smart.epsilon: 1e-05 is too small for this model; the penalty is"),
        (["objectives=fgm", "strategy=frozen"], "objectives.fgm: strategy=frozen trains nothing"),
    ],
)
def test_invalid_settings_are_refused(
    given: list[str], message: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(recipe_file), *given, "--out", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_models_whose_embeddings_cannot_be_replaced_are_refused() -> None:
    hand = Hand("fgm", {}, LINEAR)
    hand.model.forward = lambda batch: SimpleNamespace(logits=torch.zeros(2, 1, requires_grad=True))  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"objectives\.fgm: Summing does not look up `input_ids`"):
        hand.gradients()
    model: Any = nn.Linear(2, 2)
    model.config = SimpleNamespace(is_encoder_decoder=False)
    base: Any = SimpleNamespace(model=model)
    with pytest.raises(UserError, match=r"objectives\.fgm: Linear does not look up `input_ids`"):
        objectives.get("fgm")().bind(Context(*[None] * 2, base, model))  # type: ignore[arg-type]
