"""The benchmark against Trainer: equal training, measures, stored results, and the tables of the report."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pefttools.data.splitting import load_splits
from pefttools.strategies.base import trained

FOLDER = Path(__file__).parents[1] / "benchmarks" / "speed"
TRAINED = ("lora", "lora-all", "full", "head", "last-2", "bitfit", "adapter", "smollm")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it


@pytest.fixture(scope="module")
def speed() -> Iterator[Any]:
    """Name -> module of the benchmark."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(FOLDER))

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield module
    patch.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speed")


def measured(case: str, contender: str, number: int, **values: Any) -> dict[str, Any]:
    """The measures of a training on 100 rows of 10 tokens in 10 seconds."""
    usual = {
        "full": False, "seconds": 10.0, "wall_seconds": 12.0, "rows": 100, "tokens": 1000, "loaded_bytes": 10**9,
        "peak_bytes": 2 * 10**9, "score": 0.8, "trainable": 7, "operations_per_token": 10**6,
        "product_rates": {"fp32": 10**9, "bf16": 2 * 10**9},
    }  # fmt: skip
    return {"case": case, "contender": contender, "round": number, **usual, **values}


@pytest.mark.parametrize("case", TRAINED)
def test_both_contenders_train_the_same_parameters(case: str, speed: Any, folder: Path) -> None:
    import torch

    cases, trainer_models = speed("cases"), speed("trainer_models")
    recipe = cases.recipe_of(cases.Order(case, "trainer", 0, str(folder), 64, smoke=True))
    task = recipe.task.fit(load_splits(recipe.data, recipe.task))
    _, theirs = trainer_models.build(recipe, task)
    torch.manual_seed(recipe.seed)
    ours = recipe.strategy.wrap(task.load(recipe.base))
    shapes = [{name: p.shape for name, p in trained(model).items()} for model in (theirs, ours)]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_contenders_report_the_same_measures(speed: Any, folder: Path) -> None:
    cases, ours, trainer = speed("cases"), speed("ours"), speed("trainer")
    recipe = cases.recipe_of(cases.Order("lora", "trainer", 0, str(folder), 64, smoke=True))
    mine, theirs = ours.run(recipe), trainer.run(recipe, tuned=True)
    assert mine.keys() == theirs.keys()
    assert all(mine[name] == theirs[name] for name in ("trainable", "rows", "tokens"))
    for measures in (mine, theirs):
        assert 0 < measures["seconds"] < measures["wall_seconds"]
        assert measures["loaded_bytes"] <= measures["peak_bytes"]
        assert 0 <= measures["score"] <= 1


@pytest.mark.slow
def test_clock_excludes_evaluation(speed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = speed("clock")
    now = iter(range(100))
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: float(next(now))))
    made = clock.Clock()  # 0
    with made.bar("test, baseline", 1, "rows"):  # 1 to 2, when training begins
        pass
    with made.bar("training", 2, "steps") as bar:  # memory is measured from 3 to 4; 5
        bar.advance(1)  # 6
        with made.bar("validation", 1, "rows"):  # 7 to 8
            pass
        bar.advance(1)  # 9
    assert made.seconds == (9 - 2) - (4 - 3) - (8 - 7)
    assert made.wall_seconds == 9 - (2 - 1) - (4 - 3) - (8 - 7)


@pytest.mark.slow
def test_operations_per_token_by_hand(speed: Any, folder: Path) -> None:
    cases, work = speed("cases"), speed("work")
    a_block = 4 * 32 * 32 + 2 * 32 * 64
    lora = 2 * 8 * (32 + 32)
    passes = {"full": 3 * 2 * a_block, "head": 2 * a_block, "lora": 2 * (2 * a_block + 3 * lora)}
    for case, expected in passes.items():
        recipe = cases.recipe_of(cases.Order(case, "trainer", 0, str(folder), 64, smoke=True))
        task = recipe.task.fit(load_splits(recipe.data, recipe.task))
        assert work.operations_per_token(recipe, task) == 2 * expected
        assert work.operations_per_token(recipe, task, training=False) == 2 * 2 * a_block


def test_texts_have_the_exact_number_of_tokens(speed: Any, folder: Path) -> None:
    exact, smoke = speed("exact"), speed("smoke")
    import json

    from pefttools.bases.loading import load_tokenizer

    tokenizer = load_tokenizer(smoke.base("bert", folder), "it")
    exact.write(folder / "exact", tokenizer, 10, 12)
    texts = [json.loads(line)["text"] for line in (folder / "exact" / "train.jsonl").read_text().splitlines()]
    assert [len(ids) for ids in tokenizer(texts)["input_ids"]] == [12] * 10


def test_measures_are_stored_and_settings_compared(speed: Any, tmp_path: Path) -> None:
    store, cases = speed("store"), speed("cases")
    order = cases.Order("lora", "trainer", 1, str(tmp_path), 64)
    measures = store.Store(tmp_path)
    measures.set_settings({"rows": 64})
    assert not measures.has(order.identity)
    measures.add({**order.identity, "seconds": 1.0})
    with measures.file.open("a") as stream:
        stream.write('{"case": "lo')  # cut short
    again = store.Store(tmp_path)
    again.set_settings({"rows": 64})
    assert again.has(order.identity)
    again.add({**order.identity, "round": 2})
    assert [one["round"] for one in store.Store(tmp_path).measures] == [1, 2]
    with pytest.raises(SystemExit, match="rows was 64 and is 65 now"):
        store.Store(tmp_path).set_settings({"rows": 65})


def test_unequal_numbers_of_parameters_are_refused(speed: Any) -> None:
    store = speed("store")
    one, other = measured("lora", "trainer", 0), measured("lora", "pefttools", 0)
    store.refuse_unequal([one, other])
    with pytest.raises(SystemExit, match="parameters: trainer 7, pefttools 8"):
        store.refuse_unequal([one, {**other, "trainable": 8}])


def test_report_tables(speed: Any) -> None:
    report = speed("report")
    measures = [
        *(measured("lora", "trainer", i, seconds=seconds) for i, seconds in enumerate((10, 20, 30))),
        *(measured("lora", "trainer_tuned", i, seconds=5.0) for i in range(3)),
        *(measured("lora", "pefttools", i, seconds=2.0, peak_bytes=15 * 10**8) for i in range(3)),
        measured("lora", "trainer", 0, full=True, score=0.90),
        measured("lora", "pefttools", 0, full=True, score=0.89),
        {"case": "fixed", "contender": "step", "round": 0, "full": False, "forward_ms": 10.0, "peft_ms": 29.0,
         "pefttools_ms": 26.0, "peft_forwards": 2.9, "pefttools_forwards": 2.6},
        {"case": "cold", "contender": "pefttools_cached", "round": 0, "full": False, "seconds": 9.0,
         "scoring_seconds": 4.0},
    ]  # fmt: skip
    text = report.text(measures, {"rows": 100, "threads": 1})
    for line in (
        "| lora | rows/s compared with trainer | ≥ 4.5× | 10.00 (5.00 to 15.00) | yes |",
        "| lora | rows/s compared with trainer_tuned | ≥ 1.6× | 2.50 (2.50 to 2.50) | yes |",
        "| lora | peak memory over the model compared with trainer | ≤ 0.6× | 0.50 (0.50 to 0.50) | yes |",
        "| fixed | bare bf16 forwards a step | ≤ 2.5 | 2.60 (2.60 to 2.60) | **no** |",
        "| lora | test accuracy compared with trainer | ≥ -0.5 points | -1.00 points, 1 seeds | **no** |",
        "| pefttools_cached | 9.00 (9.00 to 9.00) | 5.00 (5.00 to 5.00) |",
        "| lora | pefttools | 50.0 (50.0 to 50.0) | 10.00 (5.00 to 15.00) | 2.50 (2.50 to 2.50) | 500 | 12.0 | 1,431"
        " | 477 | 0.50 | 0.50 | 25.0% | 0.8 |",
    ):
        assert line in text
    assert "## Limits" not in report.text(measures, {"smoke": True})


def test_fits_recover_their_parameters(speed: Any) -> None:
    fits = speed("fits")
    xs = [1, 2, 4, 8, 16]
    law = fits.power(xs, [3 * x**1.5 for x in xs])
    assert (law.c, law.k, law.r2) == pytest.approx((3, 1.5, 1))
    straight = fits.line(xs, [2 + 0.5 * x for x in xs])
    assert (straight.a, straight.b, straight.r2) == pytest.approx((2, 0.5, 1))
    assert fits.line(xs, [x**2 for x in xs]).r2 < 1
    measures = {x: [{"step_seconds": x * n, "peak_bytes": 2**20 * math.sqrt(x)} for n in (1, 2, 3)] for x in xs}
    sweep = fits.Sweep.of("rows", {**measures, 99: []})
    assert sweep.values == tuple(xs)
    assert sweep.spreads["step_seconds"][1] == (4, 2, 6)
    assert sweep.power("peak_bytes").k == pytest.approx(0.5)
    assert "| rows | seconds a step | 1.00 | 1.000 | " in fits.report([sweep], {"rows": 32}, "here")


@pytest.mark.slow
def test_growth_plot_is_written(speed: Any, tmp_path: Path) -> None:
    fits, plot = speed("fits"), speed("plot")
    values = {x: [{"step_seconds": x, "peak_bytes": x}] for x in (1, 2)}
    plot.draw([fits.Sweep.of("rows", values)], tmp_path / "growth.json")
    assert {file.name for file in tmp_path.iterdir()} == {"growth.svg", "growth.png"}
