"""The contract of every task in the registry; a new task file is tested without an edit here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pefttools.bases.loading import Base, BaseSettings
from pefttools.data.encoding import Encoded, columns_of
from pefttools.data.splitting import Splits
from pefttools.errors import UserError
from pefttools.settings import NOT_IN_DIGEST, explain_field
from pefttools.strategies import strategies
from pefttools.strategies.base import trained
from pefttools.tasks import tasks
from pefttools.tasks.base import LABELS, Task
from pefttools.training.evaluation import Evaluator, aggregated

FAMILIES = ("bert", "llama", "bart")


@pytest.fixture(params=tasks.names())
def cls(request: pytest.FixtureRequest) -> type[Task]:
    return tasks.get(request.param)


@pytest.fixture
def rows(cls: type[Task]) -> list[dict[str, Any]]:
    return [cls(**cls.sample_settings).read(json.loads(json.dumps(values))) for values in cls.samples]


@pytest.fixture
def task(cls: type[Task], rows: list[dict[str, Any]]) -> Task:
    return cls(max_length=32, **cls.sample_settings).fit(Splits(rows, rows, rows))


@pytest.fixture
def base(task: Task, bases: Callable[[str], Path]) -> Base:
    """A base of the first family that has a class for the task."""
    for family in FAMILIES:
        torch.manual_seed(0)
        try:
            return task.load(BaseSettings(source=str(bases(family)), dropout=0.0))
        except UserError:
            continue
    raise AssertionError(f"{task.name} fits none of {FAMILIES}")


def test_sample_rows_use_the_fields_and_survive_json(cls: type[Task], rows: list[dict[str, Any]]) -> None:
    assert len(rows) >= 4
    for values in cls.samples:
        assert set(values) <= set(cls.fields)
        assert {name for name, needed in cls.fields.items() if needed} <= set(values)
    assert json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert all(field in row for field in cls.inputs[:1])


def test_targets_are_not_needed_to_predict(task: Task, cls: type[Task]) -> None:
    for values in cls.samples:
        row = task.read({name: value for name, value in values.items() if name not in cls.targets})
        assert row


def test_every_setting_is_explained_and_survives_yaml(cls: type[Task], task: Task) -> None:
    for name, field in cls.model_fields.items():
        assert explain_field(field), f"{cls.name}.{name} has no docstring under it"
    again, problems = tasks.parse(yaml.safe_load(yaml.safe_dump(task.as_dict())), "task")
    assert not problems
    assert again == task


def test_loss_has_gradients_in_training_and_evaluation(task: Task, base: Base, rows: list[dict[str, Any]]) -> None:
    strategy = strategies.get("lora")()
    model = strategy.wrap(base)
    for training in (True, False):
        columns = columns_of(rows, task, base.tokenizer, training)
        assert {"input_ids", "num_targets", "cut", "length", "row"} <= set(columns)
        assert len({len(values) for values in columns.values()}) == 1
        if not training:
            assert sorted(set(columns["row"])) == list(range(len(rows)))
        collate = task.collate_training if training else task.collate
        batch = collate(columns, base.tokenizer, 8)
        assert LABELS in batch
        loss = task.loss(model(**task.inputs_of(batch)), batch)
        assert loss.shape == ()
        assert loss.isfinite()
        assert sum(columns["num_targets"]) > 0
        loss.backward()
    with_gradient = [name for name, p in trained(model).items() if p.grad is not None and p.grad.any()]
    assert any("lora_B" in name for name in with_gradient)
    for path in base.head:
        assert any(f".{path}." in f".{name}" for name in with_gradient), f"the head's {path} gets no gradient"


def test_predictions_are_scored_and_serializable(task: Task, base: Base, rows: list[dict[str, Any]]) -> None:
    model = base.model.eval()
    encoded = Encoded(columns_of(rows, task, base.tokenizer))
    window_predictions = {}
    for indices, batch, outputs in Evaluator(model, task, base.tokenizer).outputs(
        encoded, range(len(encoded["length"]))
    ):
        assert len(task.logits(outputs, batch)) == len(indices)
        window_predictions.update(zip(indices, task.predict(outputs, batch), strict=True))
    predictions = aggregated(task, rows, encoded, window_predictions)
    if task.generates:
        with torch.inference_mode():
            texts = dict(task.generate(model, rows, base.tokenizer))
        assert sorted(texts) == list(range(len(rows)))
        predictions = [{**p, **texts[i]} for i, p in enumerate(predictions)]
    assert all("prediction" in p for p in predictions)
    json.dumps(predictions)
    metrics = task.metrics(predictions, [task.reference(row) for row in rows])
    assert isinstance(metrics[task.primary], float)
    json.dumps(metrics)
    baseline = task.majority_baseline(rows, rows)
    assert set(baseline) <= set(metrics)


def test_loss_independent_of_padding(task: Task, base: Base, rows: list[dict[str, Any]]) -> None:
    columns = columns_of(rows, task, base.tokenizer)
    losses = []
    for multiple in (1, 16):
        batch = task.collate(columns, base.tokenizer, multiple)
        with torch.inference_mode():
            losses.append(task.loss(base.model.eval()(**task.inputs_of(batch)), batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_fitted_settings_are_not_part_of_the_digest(task: Task, cls: type[Task]) -> None:
    plain = dict(cls(max_length=32, **cls.sample_settings))
    fitted = {name for name, value in dict(task).items() if value != plain[name]}
    marked = {name for name in fitted if cls.model_fields[name].json_schema_extra == NOT_IN_DIGEST}
    assert fitted == marked, "settings that fit fills in must not be part of the digest"


def test_the_docstring_is_a_summary(cls: type[Task]) -> None:
    summary = tasks.summaries()[cls.name]
    assert re.fullmatch(r".{20,160}", summary)
