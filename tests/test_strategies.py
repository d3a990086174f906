"""The contract of every strategy in the registry; a new strategy file is tested without an edit here."""

from __future__ import annotations

import ast
import copy
import importlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_rows

from pefttools.bases.loading import Base, BaseSettings, prepare_libraries
from pefttools.errors import UserError
from pefttools.recipe.train_settings import TrainSettings
from pefttools.registry import plugin_kinds
from pefttools.settings import explain_field
from pefttools.strategies import strategies
from pefttools.strategies.base import Strategy, restore, trained
from pefttools.tasks.text_classification import TextClassification
from pefttools.training import optimizer_setup

TASK = TextClassification(labels=("colour", "fruit", "tool"), max_length=32)
FAMILIES = ("bert", *(pytest.param(family, marks=pytest.mark.slow) for family in ("llama", "bart")))
VARIANTS = [(name, variant) for name in strategies.names() for variant in ("", *strategies.get(name).variants)]


@pytest.fixture(params=VARIANTS, ids=lambda pair: "-".join(filter(None, pair)))
def strategy(request: pytest.FixtureRequest) -> Strategy:
    """Every strategy with its default settings, and each of its variants."""
    name, variant = request.param
    cls = strategies.get(name)
    return cls(**cls.variants[variant]) if variant else cls()


@pytest.fixture(scope="module")
def load(bases: Callable[[str], Path]) -> Callable[[str, int], Base]:
    """Family and seed -> a copy of the base that was loaded with that seed."""
    read: dict[tuple[str, int], tuple[Base, torch.Tensor]] = {}

    def copied(family: str, seed: int) -> Base:
        if (family, seed) not in read:
            torch.manual_seed(seed)
            base = TASK.load(BaseSettings(source=str(bases(family)), dropout=0.0))
            read[family, seed] = base, torch.get_rng_state()
        prepare_libraries()  # every load does this, and pytest resets warning filters for each test
        base, state = read[family, seed]
        torch.set_rng_state(state)
        return copy.deepcopy(base)

    return copied


@pytest.fixture(scope="module")
def refusals(load: Callable[[str, int], Base]) -> Callable[[Strategy, str], str | None]:
    """Strategy and family -> the error if it does not fit, or None; tests/test_support.py tests the matrix of these."""
    found: dict[tuple[str, str], str | None] = {}

    def refusal(strategy: Strategy, family: str) -> str | None:
        key = (repr(strategy.as_dict()), family)
        if key not in found:
            try:
                strategy.wrap(load(family, 0))
                found[key] = None
            except UserError as error:
                found[key] = str(error)
        return found[key]

    return refusal


@pytest.fixture(params=FAMILIES)
def load_base(
    request: pytest.FixtureRequest,
    load: Callable[[str, int], Base],
    refusals: Callable[[Strategy, str], str | None],
    strategy: Strategy,
) -> Callable[..., Base]:
    """Loads a base that the strategy fits."""
    family = request.param
    if refusal := refusals(strategy, family):
        pytest.skip(refusal)
    return lambda seed=0: load(family, seed)


def logits(model: Any, base: Base) -> torch.Tensor:
    model.eval()
    batch = batch_of(base, 16)
    with torch.no_grad():
        return model(**{k: v for k, v in batch.items() if k != "labels"}).logits


def batch_of(base: Base, number: int) -> dict[str, torch.Tensor]:
    columns = TASK.encode(make_rows(number, seed=5), base.tokenizer)
    return TASK.collate(columns, base.tokenizer, 8)


def wrapped(strategy: Strategy, base: Base) -> Any:
    """The model as training wraps it, with data-driven initialisation."""
    model = strategy.wrap(base)
    strategy.start(model, [{k: v for k, v in batch_of(base, 16).items() if k != "labels"}])
    return model


def learn(model: Any, base: Base, strategy: Strategy, num_steps: int = 5) -> list[float]:
    """The losses of a few steps like those of the loop, with the strategy's optimizer and learning rates."""
    if not strategy.trains:
        return []
    settings = TrainSettings(learning_rate=strategy.start_lr(), weight_decay=0.0)
    optimizer = optimizer_setup.build(model, strategy, settings)
    batch, losses = batch_of(base, 48), []
    model.train()
    for step in range(1, num_steps + 1):
        outputs = model(**{k: v for k, v in batch.items() if k != "labels"})
        loss = TASK.loss(outputs, batch) / 48
        penalty = strategy.penalty(model)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        strategy.updated(model, step, num_steps)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_start_is_exact_where_claimed(strategy: Strategy, load_base: Callable[..., Base]) -> None:
    base = load_base()
    plain = logits(base.model, base)
    difference = (logits(wrapped(strategy, load_base()), base) - plain).abs().max()
    if not strategy.exact_start:
        assert difference < 1  # it starts near zero, or lossy
    elif strategy.rewrites_base:
        assert difference <= 1e-5
    else:
        assert difference == 0


def test_exactly_the_trained_parameters_change(strategy: Strategy, load_base: Callable[..., Base]) -> None:
    base = load_base()
    model = wrapped(strategy, base)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = set(trained(model))
    learn(model, base, strategy)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == names
    for path in base.head if strategy.trains else ():
        assert any(f".{path}." in f".{name}" for name in names), f"the head's {path} is not trained"


@pytest.mark.slow
def test_loss_falls(strategy: Strategy, load_base: Callable[..., Base]) -> None:
    base = load_base()
    losses = learn(wrapped(strategy, base), base, strategy, 12)
    assert not strategy.trains or losses[-1] < losses[0]


def test_save_and_load_are_bit_equal(strategy: Strategy, load_base: Callable[..., Base], tmp_path: Path) -> None:
    base = load_base()
    model = wrapped(strategy, base)
    learn(model, base, strategy)
    strategy.save(model, tmp_path)
    again = strategy.load(load_base(seed=99), tmp_path)  # another random head, so that a head that was not saved shows
    assert torch.equal(logits(model, base), logits(again, base))
    if strategy.loads_by_peft:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unsupported layer type|lora with eva")  # peft's own warnings
            plain = PeftModel.from_pretrained(load_base(seed=98).model, str(tmp_path))
        assert torch.equal(logits(model, base), logits(plain, base))


def load_all(folder: Path, base_folder: Path) -> list[str]:
    """Load every saved strategy; returns the names of those whose logits differ. It runs in a new process."""
    wrong = []
    for saved in sorted(folder.iterdir()):
        torch.manual_seed(99)  # another random head
        base = TASK.load(BaseSettings(source=str(base_folder), dropout=0.0))
        strategy, problems = strategies.parse(yaml.safe_load((saved / "strategy.yaml").read_text()), "strategy")
        assert strategy is not None, problems
        if not torch.equal(logits(strategy.load(base, saved), base), torch.load(saved / "logits.pt")):
            wrong.append(saved.name)
    return wrong


@pytest.mark.slow
def test_save_and_load_in_a_new_process_are_bit_equal(bases: Callable[[str], Path], tmp_path: Path) -> None:
    for name, variant in VARIANTS:
        cls = strategies.get(name)
        strategy = cls(**cls.variants[variant]) if variant else cls()
        torch.manual_seed(0)
        base = TASK.load(BaseSettings(source=str(bases("bert")), dropout=0.0))
        model = wrapped(strategy, base)
        learn(model, base, strategy)
        saved = tmp_path / f"{name}-{variant}"
        saved.mkdir()
        strategy.save(model, saved)
        (saved / "strategy.yaml").write_text(yaml.safe_dump(strategy.as_dict()))
        torch.save(logits(model, base), saved / "logits.pt")
    code = "import sys, json, pathlib, test_strategies as t, torch; torch.set_num_threads(int(sys.argv[3]));"
    code += "from pefttools.bases.loading import prepare_libraries; prepare_libraries();"
    code += "print(json.dumps(t.load_all(*map(pathlib.Path, sys.argv[1:3]))))"
    command = [sys.executable, "-c", code, str(tmp_path), str(bases("bert")), str(torch.get_num_threads())]
    process = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == []


def test_merged_model_has_the_same_logits(strategy: Strategy, load_base: Callable[..., Base]) -> None:
    base = load_base()
    model = wrapped(strategy, base)
    if not strategy.mergeable:
        assert "use --to adapter" in strategy.why_not_merged
        return
    learn(model, base, strategy)
    before = logits(model, base)
    merged = strategy.merge(model)
    assert (logits(merged, base) - before).abs().max() <= 1e-5
    foreign = {type(m).__module__.split(".")[0] for m in merged.modules()} - {"torch", "transformers"}
    assert not foreign


def test_settings_survive_yaml(strategy: Strategy) -> None:
    again, problems = strategies.parse(yaml.safe_load(yaml.safe_dump(strategy.as_dict())), "strategy")
    assert not problems
    assert again == strategy


def test_every_setting_is_explained(strategy: Strategy) -> None:
    for name, field in type(strategy).model_fields.items():
        assert explain_field(field), f"{strategy.name}.{name} has no docstring under it"


def test_learning_rate_is_in_its_range(strategy: Strategy) -> None:
    low, high = strategy.lr_range
    assert low <= strategy.default_lr <= high
    assert low <= strategy.start_lr() <= max(high, 10 * strategy.default_lr)


@pytest.mark.parametrize("package", plugin_kinds())
def test_siblings_do_not_import_each_other(package: str) -> None:
    module = importlib.import_module(f"pefttools.{package}")
    ours = Path(str(module.__file__)).parent
    files = [
        file for file in getattr(module, package).files().values() if file.parent == ours
    ]  # plug-ins may extend a sibling
    assert files
    for file in files:
        imported = {
            n.module for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom) and n.module
        }
        siblings = {f"pefttools.{package}.{other.stem}" for other in files if other != file}
        assert not imported & siblings


def test_missing_tensor_is_refused(bases: Callable[[str], Path]) -> None:
    base = TASK.load(BaseSettings(source=str(bases("bert"))))
    model = strategies.get("full")().wrap(base)
    tensors = dict(list(trained(model).items())[1:])
    with pytest.raises(UserError, match="do not match the trained parameters of this model"):
        restore(model, tensors, "here")  # type: ignore[arg-type]
