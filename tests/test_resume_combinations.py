"""A run that died is resumed bit for bit, whatever strategy, objective, penalty and optimizer it combines.

By default every choice of each registry is in at least one case. `ALL_COMBINATIONS=1 pytest
tests/test_resume_combinations.py` tests every strategy with every objective, with penalties and optimizers in turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import train_tiny
from resuming import assert_resumes_exactly

from pefttools.errors import UserError
from pefttools.objectives import objectives
from pefttools.optimizers import optimizers
from pefttools.regularizers import regularizers
from pefttools.strategies import strategies

NONE = "none"
STRATEGIES = [name for name in strategies.names() if name not in ("frozen", "peft")]
OBJECTIVES = [NONE, *objectives.names()]
PENALTIES = [NONE, *regularizers.names()]
OPTIMIZERS = [name for name in optimizers.names() if not name.startswith("paged")]
TAUGHT = ("distillation", "layer_matching")
SHORT = ["data.train_rows=60", "data.validation_share=0.1", "data.test_share=0.1", "train.epochs=2"]
COMMON = [*SHORT, "base.dropout=0.1", "train.batch_size=12", "train.micro_batch_tokens=64", "train.evaluate_every=0.7"]

Case = tuple[str, str, str, str]


def combination(i: int, j: int) -> Case:
    """The strategy i with the objective j, and a penalty and an optimizer that vary with both."""
    return (
        STRATEGIES[i % len(STRATEGIES)],
        OBJECTIVES[j % len(OBJECTIVES)],
        PENALTIES[(i + 2 * j) % len(PENALTIES)],
        OPTIMIZERS[(i + 4 * j) % len(OPTIMIZERS)],
    )


def few() -> Iterator[Case]:
    for i in range(max(len(STRATEGIES), len(OBJECTIVES))):
        yield combination(i, i)


def every() -> Iterator[Case]:
    for i in range(len(STRATEGIES)):
        for j in range(len(OBJECTIVES)):
            yield combination(i, j)


CASES = list(every() if "ALL_COMBINATIONS" in os.environ else few())


@pytest.fixture
def candidates(finished_run: Path) -> Callable[[Case], Iterator[list[str]]]:
    """Case -> overrides, at first all of it, then without the optimizer, without the penalty, and without both."""

    def overrides(case: Case) -> Iterator[list[str]]:
        strategy, objective, penalty, optimizer = case
        words = [*COMMON, f"strategy={strategy}"]
        if objective in TAUGHT:
            words.append(f"objectives.{objective}.teacher={finished_run}")
        elif objective != NONE:
            words.append(f"objectives=[{objective}]")
        penalties = [] if penalty == NONE else [f"regularizers=[{penalty}]"]
        chosen = [f"train.optimizer={optimizer}"]
        for extra in ([*penalties, *chosen], penalties, chosen, []):
            yield [*words, *extra]

    return overrides


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_resumed_run_equals_an_uninterrupted_one(
    case: Case, candidates: Callable[[Case], Iterator[list[str]]], recipe_file: Path, tmp_path: Path
) -> None:
    refusal = None
    for overrides in candidates(case):
        try:
            whole, expected = train_tiny(recipe_file, tmp_path / "whole", *overrides)
        except UserError as error:
            refusal = error
            continue
        assert expected["train"]["steps"] == 10
        assert_resumes_exactly(recipe_file, tmp_path / "died", overrides, whole, expected, died_after=3)
        return
    pytest.skip(f"refused: {refusal}")


def test_every_choice_is_in_a_case() -> None:
    used = [set(names) for names in zip(*few(), strict=True)]
    assert used == [set(STRATEGIES), set(OBJECTIVES), set(PENALTIES), set(OPTIMIZERS)]
