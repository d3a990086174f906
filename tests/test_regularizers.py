"""The contract of every regularizer in the registry (a new file is tested without an edit), and what is pretrained."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from regularized import HEAD, QUERIES, TASK, TRAINS, WRAPPINGS, Tiny, Wrapped, mark, move, value_of

from pefttools.bases.loading import BaseSettings
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.regularizers import regularizers
from pefttools.regularizers.base import Regularizer, pretrained_and_new
from pefttools.settings import explain_field
from pefttools.strategies.base import trained


@pytest.fixture(params=regularizers.names())
def regularizer(request: pytest.FixtureRequest) -> Regularizer:
    cls = regularizers.get(request.param)
    required = {n: f.annotation for n, f in cls.model_fields.items() if f.is_required()}
    return cls(**{name: {FileSettings: "rows.jsonl"}[kind] for name, kind in required.items()})


@pytest.mark.slow
@pytest.mark.parametrize("how", WRAPPINGS)
def test_gradient_equals_finite_differences(
    regularizer: Regularizer, how: str, wrapped: Callable[[str], Wrapped]
) -> None:
    made = wrapped(how)
    if regularizer.affects not in TRAINS[how]:
        with pytest.raises(UserError, match=rf"^regularizers\.{regularizer.name}: has no effect: there is no "):
            made.bind(regularizer)
        return
    penalty = made.bind(regularizer)
    move(made.model)
    value = penalty.value()
    if value is None:
        return  # it perturbs weights instead; its gradients are tested in test_ewc_and_mixout.py
    assert value.shape == ()
    assert value.item() > 0
    parameters = list(trained(made.model).values())
    gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    assert any(g.any() for g in gradients)
    torch.manual_seed(4)
    for i in range(3):  # all parameters, then each half, so that two errors cannot cancel
        chosen = [i == 0 or j % 2 == i - 1 for j in range(len(parameters))]
        directions = [torch.randn_like(p) * on for p, on in zip(parameters, chosen, strict=True)]
        expected = sum((g * w).sum() for g, w in zip(gradients, directions, strict=True))
        ends = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for p, w in zip(parameters, directions, strict=True):
                    p += sign * 1e-6 * w
            ends.append(value_of(penalty))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(expected), rel=2e-5, abs=1e-7)


def test_binding_changes_nothing(regularizer: Regularizer, wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped(next(how for how in WRAPPINGS if regularizer.affects in TRAINS[how]))
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    penalty = made.bind(regularizer)
    penalty.value()
    with penalty.perturbed():
        pass
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in made.model.named_parameters())


def test_model_without_trained_parameters_is_refused(
    regularizer: Regularizer, wrapped: Callable[[str], Wrapped]
) -> None:
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


def test_every_float_setting_must_be_positive(regularizer: Regularizer) -> None:
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


@pytest.mark.slow
def test_reading_a_recipe_does_not_import_torch() -> None:
    code = (
        "import sys; from pefttools.regularizers import regularizers as r;"
        "assert r.names(); [r.get(n) for n in r.names()];"
        "assert 'torch' not in sys.modules and 'peft' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What is pretrained.


def test_parameters_outside_the_head_are_pretrained_under_full(wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped("full")
    pretrained, new = pretrained_and_new(made.model, made.head)
    assert pretrained
    assert new
    assert all(any(f".{path}." in f".{name}" for path in made.head) for name in new)
    assert set(pretrained) | set(new) == set(trained(made.model))


def test_head_is_new_even_if_marked_as_pretrained() -> None:
    model = Tiny()
    mark(model, ())
    assert set(pretrained_and_new(model, HEAD)[1]) == {"classifier.weight", "classifier.bias"}


def test_factors_and_head_are_new_under_lora(wrapped: Callable[[str], Wrapped]) -> None:
    made = wrapped("lora")
    pretrained, new = pretrained_and_new(made.model, made.head)
    assert not pretrained
    assert any("lora_A" in name for name in new)
    assert any(".classifier.modules_to_save." in name for name in new)


def test_copies_that_peft_trains_are_pretrained(wrapped: Callable[[str], Wrapped]) -> None:
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
