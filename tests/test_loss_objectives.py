"""`class_weights`, `focal`, `r_drop`, `mixup` and `neftune` by hand, and their composition, in numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence
from torch.nn import functional

from pefttools.bases.loading import BaseSettings
from pefttools.data import packing
from pefttools.data.rows import Splits
from pefttools.errors import UserError
from pefttools.nn import divergence
from pefttools.objectives._composition import Composed, composed
from pefttools.objectives.base import BoundObjective, Context
from pefttools.objectives.class_weights import ClassWeights, class_counts
from pefttools.objectives.focal import Focal
from pefttools.objectives.label_smoothing import LabelSmoothing
from pefttools.objectives.mixup import Mixup
from pefttools.objectives.neftune import Neftune, noise
from pefttools.objectives.r_drop import RDrop
from pefttools.objectives.sam import Sam
from pefttools.strategies.lora import Lora
from pefttools.tasks import tasks
from pefttools.tasks.regression import Regression
from pefttools.tasks.text_classification import TextClassification
from pefttools.tasks.token_classification import TokenClassification

NAMES = ("a", "b", "c")
TASK = TextClassification(labels=NAMES)
LABELS = torch.tensor([0, 2, 1, 1, 0])
BATCH = {"labels": LABELS}


class Outputs:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def some_logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (5, 3)), generator=torch.Generator().manual_seed(seed)).requires_grad_()


def context(task: Any = TASK, encoded: Dataset | None = None, model: Any = None, **values: Any) -> Context:
    return Context(task, Lora(), None, model or nn.Linear(1, 1), encoded=encoded, **values)  # type: ignore[arg-type]


def loss_of_logits(chosen: dict[str, Any], *passes: Tensor, of: Context | None = None, batch: Any = BATCH) -> Tensor:
    """The loss where the model's passes return these logits, again and again."""
    waiting: list[Tensor] = []

    def forward(batch: Any, embeddings: Any = None) -> Outputs:
        waiting.extend(() if waiting else passes)
        return Outputs(waiting.pop(0))

    return composed(chosen, of or context()).loss(forward, batch)


def assert_same_loss_and_gradient(found: Tensor, expected: Tensor, *logits: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    gradients = (torch.autograd.grad(loss, logits, retain_graph=True) for loss in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize(
    ("settings", "counts", "expected"),
    [
        ({}, [1, 3], [2, 2 / 3]),
        ({}, [7, 7, 7], [1, 1, 1]),
        ({}, [2, 0, 2], [1, 0, 1]),
        ({"by": "effective_number", "beta": 0.5}, [1, 3], [28 / 19, 16 / 19]),  # 1 and 4/7
        ({"by": "effective_number"}, [50, 50], [1, 1]),
        ({"by": "effective_number", "beta": 0}, [9, 1], [1, 1]),
        ({"weights": {"b": 3}}, [3, 1], [2 / 3, 2]),
        ({"weights": {"a": 5, "b": 5}}, [3, 1], [1, 1]),
    ],
)
def test_class_weights_by_hand(settings: dict[str, Any], counts: list[int], expected: list[float]) -> None:
    names = NAMES[: len(counts)]
    found = ClassWeights(**settings).of(counts, names)
    assert found == pytest.approx(expected, abs=1e-9)
    assert sum(n * weight for n, weight in zip(counts, found, strict=True)) == pytest.approx(sum(counts))


def test_effective_number_lies_between_equal_and_inverse_weights() -> None:
    def ratio(**settings: Any) -> float:
        rare, frequent = ClassWeights(**settings).of([10, 1000], NAMES[:2])
        return rare / frequent

    betas = [ratio(by="effective_number", beta=beta) for beta in (0, 0.9, 0.99, 0.999, 1 - 1e-9)]
    assert betas == sorted(betas)
    assert (betas[0], betas[-1], ratio()) == (1, pytest.approx(100, rel=1e-4), pytest.approx(100))


def test_weighted_loss_equals_torch() -> None:
    logits, rows = some_logits(), Dataset.from_dict({"labels": [0, 0, 0, 0, 0, 0, 1, 1, 2]})
    found = loss_of_logits({"class_weights": ClassWeights()}, logits, of=context(encoded=rows))
    weights = torch.tensor([1 / 2, 3 / 2, 3])
    assert_same_loss_and_gradient(
        found, functional.cross_entropy(logits, LABELS, weight=weights, reduction="sum"), logits
    )


def test_equal_counts_give_the_unweighted_loss() -> None:
    logits, rows = some_logits(), Dataset.from_dict({"labels": [0, 1, 2] * 7})
    for by in ("inverse", "effective_number"):
        found = loss_of_logits({"class_weights": ClassWeights(by=by)}, logits, of=context(encoded=rows))
        assert_same_loss_and_gradient(found, functional.cross_entropy(logits, LABELS, reduction="sum"), logits)


def test_counts_are_those_of_targets() -> None:
    assert class_counts(Dataset.from_dict({"labels": [2, 0, 2]}), 4) == [1, 0, 2, 0]
    assert class_counts(Dataset.from_dict({"labels": [[-100, 0, 1, -100], [1], [-100]]}), 2) == [1, 2]


def test_weights_of_tags_ignore_tokens_without_a_target() -> None:
    task = TokenClassification(labels=("O", "B-X"), read_as="bio")
    labels, logits = torch.tensor([[-100, 0, 0, -100], [-100, 1, -100, -100]]), some_logits(2, 4, 2)
    of = context(task, Dataset.from_dict({"labels": labels.tolist()}))
    batch = {"labels": labels, "input_ids": torch.ones(2, 4)}
    found = loss_of_logits({"class_weights": ClassWeights()}, logits, of=of, batch=batch)
    weights = torch.tensor([3 / 4, 3 / 2])
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weights, reduction="sum")
    assert_same_loss_and_gradient(found, expected, logits)


def test_weights_of_unknown_or_unused_classes_are_refused() -> None:
    rows = Dataset.from_dict({"labels": [0, 1]})
    with pytest.raises(UserError, match=r"class_weights\.weights: unknown class 'd'.* Known: a, b, c"):
        ClassWeights(weights={"d": 2}).bind(context(encoded=rows))
    with pytest.raises(UserError, match=r"weights: no training row has 'c', so its weight has no effect; remove it"):
        ClassWeights(weights={"a": 2, "c": 2}).bind(context(encoded=rows))


def focal_by_hand(logits: Tensor, gamma: float) -> Tensor:
    p = logits.softmax(-1)[torch.arange(len(LABELS)), LABELS]
    return -((1 - p) ** gamma * p.log()).sum()


@pytest.mark.parametrize("gamma", [0.5, 1, 2, 5])
def test_focal_by_hand(gamma: float) -> None:
    logits = some_logits()
    found = loss_of_logits({"focal": Focal(gamma=gamma)}, logits)
    assert_same_loss_and_gradient(found, focal_by_hand(logits, gamma), logits)


def test_focal_with_gamma_zero_is_cross_entropy() -> None:
    logits = some_logits()
    assert type(Focal(gamma=0).bind(context())) is BoundObjective
    assert torch.equal(
        loss_of_logits({"focal": Focal(gamma=0)}, logits), functional.cross_entropy(logits, LABELS, reduction="sum")
    )


@pytest.mark.parametrize("gamma", [0.1, 0.5, 2])
@pytest.mark.parametrize("far", [30.0, 1000.0])
def test_focal_is_finite_where_the_prediction_is_certain(gamma: float, far: float) -> None:
    certain = torch.full((5, 3), -far).scatter(1, LABELS[:, None], far)
    for logits in (certain.requires_grad_(), (-certain).detach().requires_grad_()):
        loss = loss_of_logits({"focal": Focal(gamma=gamma)}, logits)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert gradient.isfinite().all()


def test_choices_that_do_not_exist_change_no_loss() -> None:
    """Rows of multiple choice have the logit −inf for choices that they lack."""
    logits = some_logits(5, 4)
    lacking = torch.cat([logits, torch.full((5, 2), -math.inf)], dim=1)
    for chosen in ({"focal": Focal()}, {"focal": Focal(), "label_smoothing": LabelSmoothing()}, {"r_drop": RDrop()}):
        assert_same_loss_and_gradient(loss_of_logits(chosen, lacking), loss_of_logits(chosen, logits), logits)


def test_composition_of_losses_of_targets() -> None:
    """In the order of the recipe: smoothing, then weights, then the focal factor; and the other way round."""
    logits, rows = some_logits(), Dataset.from_dict({"labels": [0, 0, 0, 0, 0, 0, 1, 1, 2]})
    log_p, weights = logits.log_softmax(-1), torch.tensor([1 / 2, 3 / 2, 3])[LABELS]
    right = log_p[torch.arange(5), LABELS]
    factor, uniform = (1 - right.exp()) ** 2, -log_p.mean(-1)
    smooth, weight, focal = LabelSmoothing(smoothing=0.2), ClassWeights(), Focal()
    of = context(encoded=rows)
    found = loss_of_logits({"label_smoothing": smooth, "class_weights": weight, "focal": focal}, logits, of=of)
    expected = (factor * weights * (0.8 * -right + 0.2 * uniform)).sum()
    assert_same_loss_and_gradient(found, expected, logits)
    found = loss_of_logits({"focal": focal, "class_weights": weight, "label_smoothing": smooth}, logits, of=of)
    assert_same_loss_and_gradient(found, (0.8 * weights * factor * -right + 0.2 * uniform).sum(), logits)
    found = loss_of_logits({"sam": Sam(), "class_weights": weight}, logits, of=of)
    assert_same_loss_and_gradient(found, (weights * -right).sum(), logits)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 5.0])
def test_r_drop_by_hand(alpha: float) -> None:
    one, other = some_logits(seed=1), some_logits(seed=2)
    found = loss_of_logits({"r_drop": RDrop(alpha=alpha)}, one, other)
    logs = one.log_softmax(-1), other.log_softmax(-1)
    divergences = [functional.kl_div(q, p, log_target=True, reduction="sum") for p, q in (logs, logs[::-1])]
    losses = [functional.cross_entropy(logits, LABELS, reduction="sum") for logits in (one, other)]
    expected = torch.stack(losses).sum() / 2 + alpha / 2 * torch.stack(divergences).sum()
    assert_same_loss_and_gradient(found, expected, one, other, tolerance=1e-5)


def test_r_drop_after_losses_of_targets() -> None:
    one, other = some_logits(seed=1), some_logits(seed=2)
    found = loss_of_logits({"focal": Focal(), "r_drop": RDrop(alpha=0.5)}, one, other)
    expected = (focal_by_hand(one, 2) + focal_by_hand(other, 2)) / 2 + divergence.of_classes(one, other).sum() / 4
    assert_same_loss_and_gradient(found, expected, one, other)


def jeffreys(one: Any, other: Any) -> Tensor:
    return (kl_divergence(one, other) + kl_divergence(other, one)).sum()


def test_divergences_of_tasks() -> None:
    one, other = (some_logits(seed=seed) for seed in (1, 2))
    outputs = Outputs(one), Outputs(other)
    several = TASK.with_values(multi_label=True)
    expected = jeffreys(Bernoulli(logits=one), Bernoulli(logits=other))
    torch.testing.assert_close(several.divergence(*outputs, BATCH), expected)
    numbers = Regression(label_mean=1.0, label_scale=2.0)
    normal = (Normal(logits[:, 0] / 2, 0.5**0.5) for logits in (one, other))
    torch.testing.assert_close(numbers.divergence(*outputs, BATCH), jeffreys(*normal))


def test_divergence_of_answers_is_the_mean_over_start_and_end(bases: Callable[[str], Path]) -> None:
    cls = tasks.get("question_answering")
    task = cls(max_length=32)
    rows = [task.read(dict(row)) for row in cls.samples]
    task = task.fit(Splits(rows, rows, rows))
    base = task.load(BaseSettings(source=str(bases("bert"))))
    batch = task.collate(task.encode(rows, base.tokenizer), base.tokenizer, 4)
    base.model.train()
    torch.manual_seed(0)
    outputs = [base.model(**task.inputs_of(batch)) for _ in range(2)]
    possible = batch["context"].clone()
    possible[torch.arange(len(rows)), batch["not_here"]] = True
    expected = torch.tensor(0.0)
    for row, mask in enumerate(possible):
        for side in ("start_logits", "end_logits"):
            expected += jeffreys(*(Categorical(logits=getattr(one, side)[row, mask]) for one in outputs)) / 2
    assert expected > 0
    torch.testing.assert_close(task.divergence(*outputs, batch), expected)


def test_divergence_of_tags_counts_targets_only() -> None:
    task = TokenClassification(labels=("O", "B-X"), read_as="bio")
    one, other = some_logits(1, 4, 2, seed=1), some_logits(1, 4, 2, seed=2)
    batch = {"labels": torch.tensor([[-100, 0, 1, -100]]), "input_ids": torch.ones(1, 4)}
    found = task.divergence(Outputs(one), Outputs(other), batch)
    parts = (Categorical(logits=logits[0, 1:3]) for logits in (one, other))
    torch.testing.assert_close(found, jeffreys(*parts))


class Table(nn.Module):
    """A model that adds up the embeddings of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"is_encoder_decoder": False})()
        self.words = nn.Embedding(9, 3)

    def get_input_embeddings(self) -> nn.Module:
        return self.words


def mixed_batch(seed: int, alpha: float = 0.4) -> tuple[Tensor, dict[str, Any], Tensor, Tensor, Table, Any]:
    """The loss, what the model was given, λ and the partners of a batch of three rows, and the model and the batch."""
    torch.manual_seed(0)
    model, seen = Table(), {}
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 1, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([0, 1, 2])}

    def forward(batch: Any, embeddings: Any = None) -> Outputs:
        seen.update(batch, embeddings=embeddings)
        return Outputs(embeddings.sum(1))

    bound = composed({"mixup": Mixup(alpha=alpha)}, context(model=model))
    torch.manual_seed(seed)
    loss = bound.loss(forward, batch)
    torch.manual_seed(seed)
    share = torch.distributions.Beta(alpha, alpha).sample()
    cycle = torch.randperm(3)
    partner = torch.empty_like(cycle)
    partner[cycle] = cycle.roll(1)
    return loss, seen, share, partner, model, batch


@pytest.mark.parametrize("seed", range(4))
def test_mixup_by_hand(seed: int) -> None:
    loss, seen, share, partner, model, batch = mixed_batch(seed)
    assert sorted(partner.tolist()) == [0, 1, 2]
    assert all(one != other for one, other in enumerate(partner.tolist()))
    vectors = model.words(batch["input_ids"]) * batch["attention_mask"][..., None]
    mixed = share * vectors + (1 - share) * vectors[partner]
    torch.testing.assert_close(seen["embeddings"], mixed)
    assert torch.equal(seen["attention_mask"], batch["attention_mask"] | batch["attention_mask"][partner])
    for row, other in enumerate(partner.tolist()):
        lengths = batch["attention_mask"].sum(1)
        longer = other if lengths[other] > lengths[row] else row
        assert torch.equal(seen["input_ids"][row], batch["input_ids"][longer])
    one_hot = torch.eye(3)[batch["labels"]]
    soft = share * one_hot + (1 - share) * one_hot[partner]
    torch.testing.assert_close(soft.sum(-1), torch.ones(3))
    expected = functional.cross_entropy(mixed.sum(1), soft, reduction="sum")
    assert_same_loss_and_gradient(loss, expected, model.words.weight)


def test_mixup_of_one_row_is_the_row() -> None:
    bound = composed({"mixup": Mixup()}, context(model=Table()))
    logits = some_logits(1, 3)
    loss = bound.loss(lambda batch, embeddings=None: Outputs(logits), {"labels": LABELS[:1]})
    assert torch.equal(loss, functional.cross_entropy(logits, LABELS[:1], reduction="sum"))


def test_noise_is_bounded_and_uniform() -> None:
    torch.manual_seed(0)
    lengths, width, alpha = (4, 25, 100), 64, 5.0
    mask = torch.stack([(torch.arange(100) < length).long() for length in lengths])
    found = noise({"input_ids": mask, "attention_mask": mask}, torch.zeros(3, 100, width), alpha)
    assert not found[mask == 0].any()
    for row, length in zip(found, lengths, strict=True):
        bound = alpha / math.sqrt(length * width)
        values = row[:length]
        assert values.abs().max() <= bound
        assert values.abs().max() > 0.95 * bound
        assert values.mean().abs() < 0.15 * bound
        assert values.var().item() == pytest.approx(bound**2 / 3, rel=0.15)


def test_noise_of_choices_and_of_packed_rows_depends_on_their_own_tokens() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[[1, 2, 0, 0], [1, 2, 3, 4]]])
    found = noise({"input_ids": ids, "attention_mask": (ids > 0).long()}, torch.zeros(1, 2, 4, 1000), 1.0)
    assert found.abs().amax(-1)[ids > 0].tolist() == pytest.approx([2000**-0.5] * 2 + [4000**-0.5] * 4, rel=0.02)
    columns = {"input_ids": [[1, 2], [3, 4, 5, 6]], "labels": [[1, 2], [3, 4, 5, 6]]}
    packed = packing.packed(columns, 6, 1, 0, -100)
    found = noise(packed, torch.zeros(1, 6, 1000), 1.0)
    sizes = [(1000 * n) ** -0.5 for n in ((2, 2, 4, 4, 4, 4) if packed["input_ids"][0, 0] == 1 else (4, 4, 4, 4, 2, 2))]
    assert found.abs().amax(-1)[0].tolist() == pytest.approx(sizes, rel=0.02)


def test_neftune_with_alpha_zero_does_nothing() -> None:
    assert type(Neftune(alpha=0).bind(context())) is BoundObjective


def test_neftune_adds_to_the_embeddings_of_other_objectives() -> None:
    given: list[Tensor] = []
    mine, model = torch.randn(2, 3, 4), Table()
    bound = Neftune().bind(context(model=model))

    def forward(batch: Any, embeddings: Tensor | None = None) -> Any:
        assert embeddings is not None
        given.append(embeddings)
        return embeddings.sum()

    Composed(lambda forward, batch: forward(batch, mine), {"neftune": bound}).loss(
        forward,
        {"input_ids": torch.ones(2, 3, dtype=torch.long)},
    )
    assert 0 < (given[0] - mine).abs().max() <= 5 / math.sqrt(3 * 4)


def test_losses_of_targets_must_come_first() -> None:
    with pytest.raises(UserError, match=r"objectives\.focal: .* must come before r_drop; .* order \[focal, r_drop\]"):
        composed({"r_drop": RDrop(), "focal": Focal()}, context())
