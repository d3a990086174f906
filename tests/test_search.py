"""The points of a search: what is refused, what applies to which choice, and that they can be repeated."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pefttools import cli
from pefttools.bench import trial
from pefttools.bench.proposals import LAG
from pefttools.bench.pruning import Earlier, Pruning
from pefttools.bench.search import Search
from pefttools.bench.space import Space
from pefttools.bench.space_checks import build
from pefttools.bench.tune_summary import kind_of
from pefttools.errors import UserError

RATE = "train.learning_rate=1e-4..1e-2"
NONE = Path("none")


@pytest.fixture
def refusal(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `pefttools tune` on invalid input and returns its error; nothing was written."""

    def run(*words: str) -> str:
        out = tmp_path / "out"
        assert cli.run(["tune", str(recipe_file), *words, "--out", str(out)]) == 2
        assert not out.exists()
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.learning_rate", "is not KEY=RANGE"),
        ("train.learning_rate=", "its range is empty"),
        ("train.learning_rate=1e-2..1e-4", "is upside down; write train.learning_rate=1e-4..1e-2"),
        ("train.learning_rate=1e-3..1e-3", "is one value only"),
        ("train.learning_rate=1e-4..", "is not a range; write two numbers"),
        ("train.learning_rate=1..1e999", "has no end"),
        ("train.learning_rate=0..1e-2:log", "has no logarithmic scale, which starts above 0"),
        ("train.learning_rate=1e-4..1e-2:lin", "unknown scale 'lin'; use :log or :linear"),
        ("train.learning_rate=0..1e-2", "train.learning_rate: input should be greater than 0"),
        ("train.learning_rat=1e-4..1e-2", "did you mean 'learning_rate'?"),
        ("strategy.rnak=4,8", "did you mean 'rank'?"),
        ("strategy.rank=4", "has one value only, '4'"),
        ("strategy.rank=4,8,4", "lists 4 twice"),
        ("strategy.dropout=0.1,0.10", "0.1 and 0.10 are the same"),
        ("strategy.rank=4,,8", "cannot be read"),
        ("strategy.rank=1.5..8", "is a whole number, so the ends of its range must be"),
        ("strategy.rank=0..8", "strategy.rank: input should be greater than or equal to 1"),
        ("strategy.dropout=0..1", "strategy.dropout: input should be less than 1"),
        ("strategy.init=1..2", "is not a number, so 1..2 is no range of it"),
        ("strategy=lora,lroa", "did you mean 'lora'?"),
        ("strategy.rank=8,4096", "strategy.rank: 4096"),
        ("train.log_every=1,10", "changes nothing that is learnt"),
        ("strategy.loftq_steps=1..4", "has no effect: it needs strategy.init=loftq"),
        ("seed=0..9", "--seeds are those of the comparison"),
        ("task=text_classification,regression", "have different metrics"),
        ("data.validation_share=0.1,0.2", "changes the validation or test rows"),
    ],
)
def test_wrong_ranges_are_refused(refusal: Callable[..., str], word: str, message: str) -> None:
    assert message in refusal("--search", word)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train.learning_rate=0.1", "--search", RATE), "is also set to 0.1 for all trials"),
        (("strategy=lora", "--search", "strategy.name=lora,bitfit"), "strategy: is also set to lora"),
        (("--search", RATE, RATE), "is searched twice"),
        (("--trials", "0"), "--trials: must be at least 1, got 0"),
        (("--workers", "0"), "--workers: must be at least 1, got 0"),
        (("--timeout", "soon"), "--timeout: must be a time like"),
        (("--seeds", "1", "1"), "--seeds: must be different"),
        (("--sampler", "grid"), "needs finitely many points"),
        (("strategy=frozen",), "trains nothing, so there is no learning rate to search"),
        (("--search", "strategy=bitfit,adapter", "strategy.rank=4,8"), "unknown key 'rank'"),
        (("--storage", "nothing://here"), "--storage: nothing://here cannot be reached"),
        (("--storage", "postgresql://127.0.0.1:1/none"), "--storage: postgresql://127.0.0.1:1/none cannot be reached"),
        (("--storage", "mysql://me:secret@here/db"), "--storage: mysql://me:***@here/db cannot be reached"),
    ],
)
def test_wrong_options_are_refused(refusal: Callable[..., str], words: tuple[str, ...], message: str) -> None:
    assert message in refusal(*words)


def test_without_a_search_the_strategy_declares_the_range(recipe_file: Path) -> None:
    assert build(str(recipe_file), [], []).as_dict() == {"train.learning_rate": "0.0001 to 0.005, logarithmic"}
    found = build(str(recipe_file), [], ["strategy=lora,frozen,bitfit", "train.learning_rate=auto"]).as_dict()
    assert list(found) == ["strategy", "train.learning_rate of lora", "train.learning_rate of bitfit"]


def test_scales_and_whole_numbers(recipe_file: Path) -> None:
    words = ["train.learning_rate=1e-4..5e-4", "strategy.rank=2..20", "strategy.dropout=0..0.5", "train.epochs=1..9"]
    assert build(str(recipe_file), [], words).as_dict() == {
        "train.learning_rate": "0.0001 to 0.0005, linear", "strategy.rank": "2 to 20, logarithmic",
        "strategy.dropout": "0 to 0.5, linear", "train.epochs": "1 to 9, linear",
    }  # fmt: skip
    ranks = {point["strategy.rank"] for point in sampled(build(str(recipe_file), [], ["strategy.rank=2..20"]), 12)}
    assert all(rank.isdigit() and 2 <= int(rank) <= 20 for rank in ranks)


def test_keys_apply_to_the_choices_that_have_them(recipe_file: Path) -> None:
    space = build(str(recipe_file), [], ["strategy.rank=4,8", "strategy=lora,bitfit", "regularizers.l2_sp.alpha=0.1,1"])
    points = space.points()
    assert points is not None
    assert len(points) == 2 * 2 + 2
    assert {("strategy.rank" in point) for point in points if point["strategy"] == "bitfit"} == {False}
    digests = {space.recipe(point).digest for point in points}
    assert len(digests) == 6


def test_the_first_point_has_the_recipes_own_values(recipe_file: Path) -> None:
    words = ["strategy=bitfit,lora", "train.learning_rate=auto", "strategy.rank=4,8"]
    own = {"strategy": "lora", "train.learning_rate": "0.003", "strategy.rank": "8"}
    space = build(str(recipe_file), [], words)
    assert space.default_point == own
    assert space.recipe(own).digest == space.defaults.digest
    assert build(str(recipe_file), [], ["strategy=bitfit,lora"]).default_point is None  # a choice resets the rate
    assert build(str(recipe_file), [], ["strategy.rank=2,4"]).default_point is None


def test_values_in_brackets_are_one_choice(recipe_file: Path) -> None:
    space = build(str(recipe_file), [], ["strategy.targets=[query,value],[all]"])
    recipes = [space.recipe(point).strategy.as_dict()["targets"] for point in space.points() or []]
    assert recipes == [["query", "value"], ["all"]]


def record_of(space: Space, texts: dict[str, str]) -> dict[str, Any]:
    """A made-up record: the score is best at a rate of 0.001 and a rank of 8; rates above 0.005 fail."""
    rate, rank = float(texts["train.learning_rate"]), int(texts["strategy.rank"])
    digest = space.recipe(texts).digest
    about = {"format": trial.FORMAT, "digest": digest, "versions": trial.versions()}
    if rate > 5e-3:
        return {**about, "status": "failed", "reason": "the loss of step 3 is nan; its rows are 1"}
    score = 0.9 - 0.1 * abs(math.log10(rate) + 3) - 0.02 * abs(math.log2(rank) - 3)
    curve = [{"step": 1, "progress": 0.5, "score": score - 0.1, "loss": 1.0},
             {"step": 2, "progress": 1.0, "score": score, "loss": 1.0}]  # fmt: skip
    scores = {"accuracy": score, "loss": 1.0 - score}
    return {**about, "status": "done", "metric": "accuracy", "validation": scores, "curve": curve}


def planted(texts: Mapping[str, str]) -> float:
    """A score that is best, 0.9, at a rate of 0.001 and a rank of 8."""
    rate, rank = math.log10(float(texts["train.learning_rate"])), math.log2(int(texts["strategy.rank"]))
    return 0.9 - 0.1 * (rate + 3) ** 2 - 0.02 * (rank - 3) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_twenty_trials_end_near_the_best_of_a_full_grid(recipe_file: Path, seed: int) -> None:
    grid = build(str(recipe_file), [], ["train.learning_rate=1e-4,1e-3,3e-3,1e-2", "strategy.rank=2,8,32"]).points()
    assert grid is not None
    assert len(grid) == 12
    search = Search(
        build(str(recipe_file), [f"seed={seed}"], [RATE, "strategy.rank=2,8,32"]), NONE, "", "tpe", "none", 20
    )
    while jobs := list(search.missing()):
        texts = dict(jobs[0].cell.texts)  # type: ignore[attr-defined]
        scores = {"accuracy": planted(texts), "loss": 1 - planted(texts)}
        search.add(jobs[0], {"status": "done", "metric": "accuracy", "validation": scores, "curve": []})
    best = search.best()
    assert best is not None
    assert planted(best.texts) > max(map(planted, grid)) - 0.005


def sampled(space: Space, number: int, order: int = 0, sampler: str = "tpe") -> list[Any]:
    """The points of a search whose trials end in a random order, at most `LAG` of them running at once."""
    search, draw = Search(space, NONE, "title", sampler, "median", number), random.Random(order)
    while jobs := list(search.missing()):
        job = draw.choice(jobs[:LAG])
        texts = {"train.learning_rate": "0.001", "strategy.rank": "8", **dict(job.cell.texts)}  # type: ignore[attr-defined]
        search.add(job, {**record_of(space, texts), "digest": job.digest})
    return [dict(one.texts) for one in search.proposals]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_points_do_not_depend_on_which_trial_ends_first(recipe_file: Path, sampler: str) -> None:
    space = build(str(recipe_file), [], [RATE, "strategy.rank=4..16"])
    first = sampled(space, 16, 0, sampler)
    assert len({tuple(point.items()) for point in first}) == 16
    assert first[0] == {"train.learning_rate": "0.003", "strategy.rank": "8"}  # the recipe's own values
    assert all(sampled(space, 16, order, sampler) == first for order in (1, 2))
    assert sampled(space, 20, 3, sampler)[:16] == first  # a longer search continues


@pytest.mark.slow
def test_tpe_goes_where_scores_are_high(recipe_file: Path) -> None:
    space = build(str(recipe_file), ["train.learning_rate=0.001"], ["strategy.rank=1..1024"])
    ranks = [int(point["strategy.rank"]) for point in sampled(space, 40)]
    early, late = (statistics.fmean(abs(math.log2(rank) - 3) for rank in part) for part in (ranks[:10], ranks[-10:]))
    assert late < early


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_a_finite_space_is_tried_once(recipe_file: Path, sampler: str) -> None:
    space = build(str(recipe_file), [], ["strategy.rank=2,4,8,16", "train.learning_rate=0.001,0.002,0.003"])
    points = sampled(space, 50, 0, sampler)
    assert len(points) == len({tuple(sorted(point.items())) for point in points}) == 12


def curve(*scores: float) -> list[dict[str, float]]:
    return [{"progress": (i + 1) / 4, "score": score, "loss": 1.0, "step": i} for i, score in enumerate(scores)]


@pytest.mark.parametrize("lower", [False, True])
def test_median_pruning_stops_the_worse_half(lower: bool) -> None:
    sign = -1 if lower else 1
    earlier = tuple(
        Earlier(i, curve(*(sign * (0.5 + i / 10 + step / 100) for step in range(4))), True) for i in range(5)
    )
    pruning = Pruning("median", 9, earlier, lower)
    assert pruning.is_hopeless(curve(sign * 0.55))
    assert not pruning.is_hopeless(curve(sign * 0.75))
    assert pruning.is_hopeless(curve(sign * 0.69, sign * 0.69))
    assert not pruning.is_hopeless(curve(*[sign * 0.1] * 4))  # it has ended
    assert not Pruning("none", 9, earlier, lower).is_hopeless(curve(sign * 0.1))
    assert not Pruning("median", 9, earlier[:4], lower).is_hopeless(curve(sign * 0.1))  # too few to tell


def test_pruning_compares_runs_of_other_lengths() -> None:
    """An earlier trial counts with its last evaluation up to the same share of the run."""
    earlier = tuple(
        Earlier(i, [{"progress": p / 10, "score": 0.5 + p / 20, "loss": 1.0} for p in range(1, 11)], True)
        for i in range(5)
    )
    pruning = Pruning("median", 5, earlier, False)
    assert not pruning.is_hopeless(curve(0.61))  # at a quarter the others had 0.60
    assert pruning.is_hopeless(curve(0.59))


def test_hyperband_prunes_some_brackets() -> None:
    earlier = tuple(Earlier(i, curve(*(0.5 + i / 50 + step / 100 for step in range(4))), True) for i in range(12))
    decisions = {Pruning("hyperband", n, earlier, False).is_hopeless(curve(0.1)) for n in range(12, 24)}
    assert decisions == {True, False}
    assert not any(Pruning("hyperband", n, earlier, False).is_hopeless(curve(0.99)) for n in range(12, 24))


@pytest.mark.slow
def test_points_that_the_recipe_refuses_are_drawn_again_and_told(recipe_file: Path) -> None:
    space = build(str(recipe_file), ["strategy.rank=4"], ["strategy.init=default,loftq", "strategy.alpha=4,16"])
    search = Search(space, NONE, "title", "random", "none", 9)
    for _ in range(9):
        for job in list(search.missing()):
            search.add(
                job, {**record_of(space, {"train.learning_rate": "0.001", "strategy.rank": "4"}), "digest": job.digest}
            )
    assert len(search.proposals) == 3
    assert search.is_exhausted
    assert "alpha must equal rank" in next(iter(search.refused.values()))


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("the loss of step 3 is nan; its rows are 1, 2 of the training rows", "diverged"),
        ("the gradient norm of step 3 is inf; its rows are 1", "diverged"),
        ("the loss has exploded: it was 1 in the first steps and is 900 at step 40", "diverged"),
        ("the process was killed by SIGKILL; perhaps there was not enough memory", "out of memory"),
        ("EnvironmentFault: step 1 ran out of memory even with one row at a time", "out of memory"),
        ("RuntimeError: it was made to", "error"),
    ],
)
def test_failures_have_a_kind(reason: str, kind: str) -> None:
    assert kind_of(reason) == kind


def test_an_invalid_recipe_is_refused_as_by_train() -> None:
    with pytest.raises(UserError, match="unknown recipe 'question-typ-lora'; did you mean 'question-type-lora'"):
        build("question-typ-lora", [], [RATE])
