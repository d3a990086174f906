"""Objectives: gradients, resuming and processes under every strategy; `label_smoothing` and `sam` by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import losses, make_rows, train_in_two, train_tiny, write_recipe, write_rows
from datasets import Dataset
from resuming import assert_resumes_exactly
from test_train import assert_same_weights
from torch import nn
from torch.nn import functional

from pefttools import cli
from pefttools.bases.loading import BaseSettings
from pefttools.data.rows import Splits
from pefttools.errors import UserError
from pefttools.nn import embedding_grad
from pefttools.nn.input_embeddings import substituted
from pefttools.objectives import objectives
from pefttools.objectives._composition import Composed, composed
from pefttools.objectives.base import Context
from pefttools.objectives.sam import Sam
from pefttools.recipe import recipes
from pefttools.strategies import strategies
from pefttools.strategies.base import trained
from pefttools.tasks import tasks
from pefttools.tasks.text_classification import TextClassification
from pefttools.training.penalties import Penalties
from pefttools.training.run import Run
from pefttools.training.step import MicroBatch, Update

PLANTED = Path(__file__).parent / "planted"
SHORT = ("train.epochs=1", "data.train_rows=200")
SMOOTH = {"adapter": {"activation": "gelu"}}
"""Settings that make a strategy differentiable everywhere, as finite differences require."""
FAMILIES = {"bert": "text_classification", "llama": "causal_lm", "bart": "seq2seq"}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTTOOLS_PLUGINS", str(PLANTED), prepend=os.pathsep)


@pytest.mark.slow
def test_empty_objectives_change_nothing(recipe_file: Path, tmp_path: Path) -> None:
    plain, _ = train_tiny(recipe_file, tmp_path / "plain", *SHORT)
    again, result = train_tiny(recipe_file, tmp_path / "again", *SHORT, "objectives=[]")
    assert losses(plain) == losses(again)
    assert_same_weights(plain, again)
    assert result["digest"] == Run(plain).result()["digest"]
    assert result["objectives"] == []
    _, other = train_tiny(recipe_file, tmp_path / "other", *SHORT, "objectives=label_smoothing")
    assert (other["objectives"], other["digest"] != result["digest"]) == (["label_smoothing"], True)


@pytest.mark.slow
def test_smoothing_of_zero_changes_nothing(recipe_file: Path, tmp_path: Path) -> None:
    plain, _ = train_tiny(recipe_file, tmp_path / "plain", *SHORT)
    zero, _ = train_tiny(recipe_file, tmp_path / "zero", *SHORT, "objectives.label_smoothing.smoothing=0")
    assert losses(plain) == losses(zero)
    assert_same_weights(plain, zero)


def test_label_smoothing_equals_torch() -> None:
    logits = torch.randn(5, 3, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    batch = {"labels": torch.tensor([0, 2, 1, 1, 0])}
    task = TextClassification(labels=("a", "b", "c"))
    bound = objectives.get("label_smoothing")(smoothing=0.2).bind(Context(task, *[None] * 3))  # type: ignore[arg-type]
    found = Composed(lambda forward, batch: task.loss(forward(batch), batch), {"it": bound}).loss(
        lambda batch, embeddings=None: type("Outputs", (), {"logits": logits}), batch
    )
    torch.testing.assert_close(
        found, functional.cross_entropy(logits, batch["labels"], reduction="sum", label_smoothing=0.2)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in tasks.names() if tasks.get(name).example().has_target_logits])
def test_label_smoothing_trains_every_task_with_classes(
    name: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    cls = tasks.get(name)
    family = {"AutoModelForCausalLM": "llama", "AutoModelForSeq2SeqLM": "bart"}.get(cls.auto_class, "bert")
    rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in cls.samples] * 4)
    data = {"validation": str(rows), "test": str(rows), "deduplicate": "none"}
    task = {"name": name, "max_length": 32, **cls.sample_settings}
    file = write_recipe(tmp_path / "tiny.yaml", bases(family), rows, data=data, task=task, train={"epochs": 2})
    _, result = train_tiny(file, tmp_path / "run", "objectives=label_smoothing")
    assert result["validation"]["loss"] < result["before"]["loss"]


def keep_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Casts to float32 leave float64 tensors unchanged; norms and softmax of some models cast whatever their input."""
    to_float, to = torch.Tensor.float, torch.Tensor.to

    def to_unless_narrower(x: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        to_float32 = torch.float32 in arguments or named.get("dtype") is torch.float32
        return x if to_float32 and x.dtype == torch.float64 else to(x, *arguments, **named)

    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else to_float(x))
    monkeypatch.setattr(torch.Tensor, "to", to_unless_narrower)


class Differences:
    """Gradients of a micro-batch that also measure the losses' central differences along a random direction.

    Weights move only while a loss is computed. What an objective computes between two losses, such as a perturbation
    of the embeddings, is a constant of the gradient, and so it is here.
    """

    STEPS = (1e-4, 1e-5, 1e-6, 1e-7)
    """A small step is inexact by rounding, a large one by curvature."""

    def __init__(self, parameters: list[Any]) -> None:
        draw = torch.Generator().manual_seed(1)
        self.parameters = parameters
        self.direction = [torch.randn(p.shape, dtype=p.dtype, generator=draw) for p in parameters]
        self.restart()

    def restart(self) -> None:
        """Forget the differences, at the start of a pass; SAM clears the gradients then."""
        self.differences = [0.0] * len(self.STEPS)

    def add(self, loss: Callable[[], torch.Tensor], more: bool = False) -> torch.Tensor:
        del more

        def seeded() -> torch.Tensor:
            torch.manual_seed(1)  # an objective that draws random numbers draws the same ones every time
            return loss()

        for i, step in enumerate(self.STEPS):
            values = []
            for sign in (1, -2, 1):
                with torch.no_grad():
                    for p, w in zip(self.parameters, self.direction, strict=True):
                        p.add_(w, alpha=sign * step)
                values.append(float(seeded().detach()))
            self.differences[i] += (values[0] - values[1]) / (2 * step)
        value = seeded()
        value.backward()
        return value.detach()

    def of(self, loss: Callable[[], torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss(), tensor)[0]

    def share(self, loss: torch.Tensor) -> torch.Tensor:
        return loss.detach()

    @property
    def slope(self) -> float:
        pairs = zip(self.parameters, self.direction, strict=True)
        return sum(float((p.grad * w).sum()) for p, w in pairs if p.grad is not None)


@pytest.mark.parametrize("objective", sorted({*objectives.names(), "twice", "nudged"}))
@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[] if family == "bert" else pytest.mark.slow) for family in FAMILIES]
)
@pytest.mark.parametrize("name", strategies.names())
@pytest.mark.usefixtures("planted")
def test_gradients_equal_finite_differences_of_the_loss(
    name: str, family: str, objective: str, bases: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against central differences in float64, along one random direction of all trained parameters."""
    keep_float64(monkeypatch)
    of_task = tasks.get(FAMILIES[family])
    unfitted = of_task.model_validate({"max_length": 32, **of_task.sample_settings})
    rows = [unfitted.read(dict(row)) for row in of_task.samples]
    task = unfitted.fit(Splits(rows, rows, rows))
    torch.manual_seed(0)
    base = task.load(BaseSettings(source=str(bases(family))))
    try:
        strategy = strategies.get(name)(**SMOOTH.get(name, {}))
        model: Any = strategy.wrap(base)
    except UserError as error:
        pytest.skip(str(error))
    if not strategy.trains:
        pytest.skip("trains nothing")
    model.double().eval()
    columns = task.encode(rows, base.tokenizer)
    batch = task.collate(columns, base.tokenizer, 1)
    cls = objectives.get(objective)
    chosen = {objective: cls(**cls.sample_settings)}
    if reason := chosen[objective].problem(task, strategy):
        pytest.skip(reason)
    encoded = (
        None if "teacher" in cls.sample_settings else Dataset.from_dict(columns)
    )  # without rows, a teacher is the student
    acting = composed(chosen, Context(task, strategy, base, model, encoded=encoded))

    def forward(batch: Any, embeddings: Any = None) -> Any:
        with substituted(model, batch["input_ids"], embeddings):
            return model(**task.inputs_of(batch))

    found = Differences(list(trained(model).values()))

    def accumulate_gradients() -> torch.Tensor:
        found.restart()
        return acting.add_gradients(forward, batch, found)

    acting.run_passes(accumulate_gradients)
    errors = [abs(difference - found.slope) / (abs(found.slope) + 0.1) for difference in found.differences]
    assert min(errors) < 1e-3, errors


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["[twice]", "[nudged]", "[label_smoothing, twice, sam]", "[sam, nudged]"])
@pytest.mark.usefixtures("planted")
def test_loss_independent_of_micro_batch_size(chosen: str, recipe_file: Path, tmp_path: Path) -> None:
    common = [f"objectives={chosen}", *SHORT, "train.batch_size=8"]
    whole, _ = train_tiny(recipe_file, tmp_path / "whole", *common)
    parts, _ = train_tiny(recipe_file, tmp_path / "parts", *common, "train.micro_batch_size=2")
    assert losses(parts) == pytest.approx(losses(whole), abs=2e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("planted")
def test_resumed_run_equals_an_uninterrupted_one(recipe_file: Path, tmp_path: Path) -> None:
    common = ["objectives=[label_smoothing, twice, nudged, sam]", "base.dropout=0.1", *SHORT, "train.batch_size=8"]
    whole, expected = train_tiny(recipe_file, tmp_path / "whole", *common)
    assert_resumes_exactly(recipe_file, tmp_path / "died", common, whole, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("planted")
def test_two_processes_give_the_losses_of_one(recipe_file: Path, tmp_path: Path) -> None:
    common = ["objectives=[twice, nudged, sam]", *SHORT, "train.batch_size=14"]
    one = train_tiny(recipe_file, tmp_path / "one", *common)[0]
    train_in_two(recipe_file, tmp_path / "two", *common)
    assert Run(tmp_path / "two").result()["train"]["processes"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(one), abs=2e-5)


def test_sam_takes_the_gradient_at_the_perturbed_weights() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False)
    rows = torch.randn(6, 3)

    def run(batch: Any, embeddings: Any = None) -> Any:
        return model(batch["x"])

    def loss(forward: Any, batch: Any) -> torch.Tensor:
        return forward(batch).square().sum()

    start = model.weight.detach().clone()
    weights = start.clone().requires_grad_()
    (first,) = torch.autograd.grad((rows @ weights.T).square().sum() / 6, weights)
    perturbed = (start + 0.3 * first / first.norm()).requires_grad_()
    (second,) = torch.autograd.grad((rows @ perturbed.T).square().sum() / 6, perturbed)
    seen: list[torch.Tensor] = []
    strategy: Any = type("Nothing", (), {"penalty": lambda self, model: None})()
    composed_loss = Composed(loss, {"sam": Sam(rho=0.3).bind(Context(None, strategy, None, model))})  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    update = Update(
        composed_loss, Penalties(strategy, model), optimizer, torch.Tensor.backward, lambda: 0.0,
        on_loss_gradients=lambda: seen.append(model.weight.detach().clone()),
    )  # fmt: skip
    update.step(lambda: (MicroBatch({"x": half}, run) for half in rows.split(3)), 6)
    assert torch.equal(seen[0], start)  # the weights are restored before the optimizer changes them
    torch.testing.assert_close(model.weight.detach(), start - 0.1 * second)


@pytest.mark.slow
@pytest.mark.usefixtures("planted")
def test_feature_cache_and_embedding_grad_are_off_if_an_objective_needs_embeddings(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    plain = embedding_grad.replace_embeddings
    monkeypatch.setattr(embedding_grad, "replace_embeddings", lambda model: called.append("it") or plain(model))
    head = ("strategy=top_layers", "strategy.layers=0", *SHORT, "train.epochs=2")
    _, without = train_tiny(recipe_file, tmp_path / "without", *head)
    assert without["train"]["feature_cache"]
    number = len(called)
    assert number
    _, result = train_tiny(recipe_file, tmp_path / "run", *head, "objectives=nudged")
    assert result["train"]["feature_cache"] is None
    assert len(called) == number


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objectives=label_smothing"], "unknown objective 'label_smothing'; did you mean 'label_smoothing'?"),
        (["objectives.label_smoothing.smoothing=1.5"], "objectives.label_smoothing.smoothing: input should be less"),
        (["objectives.label_smoothing.epsilon=0.1"], "unknown key 'epsilon'"),
        (
            ["objectives=label_smoothing", "task=regression"],
            "objectives.label_smoothing: task=regression has no targets",
        ),
        (["objectives=label_smoothing", "task.multi_label=true"], "task=text_classification has no targets that are"),
        (["objectives=sam", "strategy=frozen"], "objectives.sam: strategy=frozen trains nothing"),
    ],
)
def test_invalid_objectives_are_refused(
    overrides: list[str], message: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(recipe_file), *overrides, "--out", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_objectives_that_exclude_each_other_are_refused(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sam, "excludes", ("label_smoothing",))
    with pytest.raises(UserError, match=r"objectives\.sam: cannot be combined with label_smoothing"):
        recipes.load(str(recipe_file), ["objectives=[label_smoothing, sam]"])


@pytest.mark.slow
def test_objectives_are_listed_and_planned(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "objectives", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objectives"].keys() >= {"label_smoothing", "sam"}
    peaks = []
    for chosen in ("[]", "[label_smoothing, sam]"):
        assert cli.run(["plan", str(recipe_file), f"objectives={chosen}", "--json"]) == 0
        planned = json.loads(capsys.readouterr().out)["bytes"]
        peaks.append(sum(planned[part] for part in ("weights", "gradients", "optimizer", "activations")))
    assert peaks[1] >= peaks[0] > 0


@pytest.mark.slow
def test_training_with_several_objectives_learns(recipe_file: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(300))
    _, result = train_tiny(recipe_file, tmp_path / "run", f"data.train={rows}", "objectives=[label_smoothing, sam]")
    assert result["test"]["accuracy"] >= 0.9
