"""`class_weights`, `focal`, `r_drop`, `mixup` and `neftune` in whole runs: composed, resumed, in parts, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import conftest
import pytest
from conftest import losses, make_rows, train_in_two, train_tiny, write_recipe, write_rows
from resuming import assert_resumes_exactly
from test_train import assert_same_weights

from pefttools import cli
from pefttools.errors import Paused
from pefttools.planning.planner import plan
from pefttools.recipe import recipes
from pefttools.training.driver import train
from pefttools.training.run import Run

SHORT = ("train.epochs=1", "data.train_rows=120", "train.batch_size=8")
DROPOUT = "base.dropout=0.1"
WEIGHTS = "objectives.class_weights.weights.tool=4"


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        "[class_weights,focal]",
        "[label_smoothing,class_weights,r_drop]",
        "[focal,mixup,neftune]",
        "[class_weights,mixup,sam]",
        "[focal,r_drop,neftune,sam]",
    ],
)
def test_composed_objectives_learn_and_resume_exactly(chosen: str, recipe_file: Path, tmp_path: Path) -> None:
    """A resumed run draws the same dropout, noise, partners and λ as an uninterrupted one."""
    common = [f"objectives={chosen}", DROPOUT, *SHORT, "train.micro_batch_size=4"]
    whole, expected = train_tiny(recipe_file, tmp_path / "whole", *common)
    assert expected["validation"]["loss"] < expected["before"]["loss"]
    assert_resumes_exactly(recipe_file, tmp_path / "died", common, whole, expected)


@pytest.mark.slow
def test_losses_of_targets_do_not_depend_on_micro_batches_or_processes(recipe_file: Path, tmp_path: Path) -> None:
    common = ["objectives=[class_weights,focal,sam]", WEIGHTS, *SHORT, "train.batch_size=14"]
    whole, _ = train_tiny(recipe_file, tmp_path / "whole", *common)
    parts, _ = train_tiny(recipe_file, tmp_path / "parts", *common, "train.micro_batch_size=2")
    assert losses(parts) == pytest.approx(losses(whole), abs=2e-5)
    train_in_two(recipe_file, tmp_path / "two", *common)
    assert losses(tmp_path / "two") == pytest.approx(losses(whole), abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["[focal,r_drop]", "[mixup,neftune]"])
def test_random_objectives_train_in_two_processes(chosen: str, recipe_file: Path, tmp_path: Path) -> None:
    """Every process draws its own numbers, so the losses differ from those of one process, like those of dropout."""
    train_in_two(recipe_file, tmp_path / "two", f"objectives={chosen}", DROPOUT, *SHORT)
    result = Run(tmp_path / "two").result()
    assert result["train"]["processes"] == 2
    assert result["validation"]["loss"] < result["before"]["loss"]


def _until_step_7(recipe_file: Path, out: Path, *overrides: str) -> None:
    with pytest.raises(Paused):
        train(recipes.load(str(recipe_file), overrides).recipe, out, stop_after=7)


def _resumed(recipe_file: Path, out: Path, *overrides: str) -> None:
    train_tiny(recipe_file, out, *overrides, resume=True)


@pytest.mark.slow
def test_every_process_resumes_its_own_draws(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["objectives=[focal,mixup,neftune]", DROPOUT, *SHORT]
    train_in_two(recipe_file, tmp_path / "whole", *common)
    for part in (_until_step_7, _resumed):
        monkeypatch.setattr(conftest, "_train", part)
        train_in_two(recipe_file, tmp_path / "parts", *common)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["objectives.focal.gamma=0", "objectives.neftune.alpha=0"])
def test_settings_of_zero_change_nothing(chosen: str, recipe_file: Path, tmp_path: Path) -> None:
    plain, _ = train_tiny(recipe_file, tmp_path / "plain", *SHORT, DROPOUT)
    zero, _ = train_tiny(recipe_file, tmp_path / "zero", *SHORT, DROPOUT, chosen)
    assert losses(plain) == losses(zero)
    assert_same_weights(plain, zero)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["class_weights", "focal", "r_drop", "mixup", "neftune"])
def test_evaluations_are_unchanged(chosen: str, recipe_file: Path, tmp_path: Path) -> None:
    """With a learning rate of almost zero the validation loss stays that of the base."""
    still = [*SHORT, DROPOUT, "data.train_rows=60", "train.learning_rate=1e-12"]
    extra = [WEIGHTS] if chosen == "class_weights" else []
    plain, before = train_tiny(recipe_file, tmp_path / "plain", *still)
    run, result = train_tiny(recipe_file, tmp_path / "run", *still, f"objectives={chosen}", *extra)
    assert result["before"] == before["before"]
    assert result["validation"]["loss"] == pytest.approx(before["validation"]["loss"], abs=1e-6)
    assert losses(run) != losses(plain)


@pytest.mark.slow
def test_r_drop_uses_cached_features(bert_recipe: Path, tmp_path: Path) -> None:
    """Frozen blocks use no dropout, so both passes take the same outputs of them."""
    runs = []
    for name, cache in (("with", "memory"), ("without", "off")):
        common = ["objectives=r_drop", "strategy=top_layers", "strategy.layers=1", f"train.feature_cache={cache}"]
        run, result = train_tiny(bert_recipe, tmp_path / name, *common)
        assert bool(result["train"]["feature_cache"]) == (cache == "memory")
        runs.append(run)
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["mixup", "neftune"])
def test_changed_embeddings_use_no_cached_features(chosen: str, bert_recipe: Path, tmp_path: Path) -> None:
    _, result = train_tiny(
        bert_recipe, tmp_path / "run", f"objectives={chosen}", "strategy=top_layers", "strategy.layers=1"
    )
    assert result["train"]["feature_cache"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objectives=r_drop"], "objectives.r_drop: two passes over the same rows are identical"),
        (["objectives=[r_drop,focal]"], "objectives.focal: changes the loss of every target, so it must come before"),
        (["objectives=[mixup,r_drop]"], "objectives.mixup: cannot be combined with r_drop"),
        (["objectives=mixup", "train.micro_batch_size=1"], "objectives.mixup: every micro-batch has one row only"),
        (["objectives=mixup", "train.batch_size=1"], "objectives.mixup: every micro-batch has one row only"),
        (["objectives=mixup", "train.micro_batch_tokens=4"], "objectives.mixup: every micro-batch has one row only"),
        (["objectives=mixup", "task=regression"], "objectives.mixup: mixes rows that have one class each"),
        (["objectives.class_weights.weights.tol=2"], "unknown class 'tol'; did you mean 'tool'?"),
        (["objectives.class_weights.weights.tool=0"], "objectives.class_weights.weights.tool: input should be greater"),
        (["objectives.class_weights.beta=0.9"], "beta=0.9 has no effect: it needs by=effective_number"),
        (["objectives=class_weights", "task.multi_label=true"], "weights belong to rows with one class"),
        (["objectives=class_weights", "task=regression"], "task=regression has no fixed classes"),
        (["objectives=focal", "task=regression"], "objectives.focal: task=regression has no targets"),
        (["objectives.focal.gamma=-1"], "objectives.focal.gamma: input should be greater"),
        (["objectives.mixup.alpha=0"], "objectives.mixup.alpha: input should be greater"),
    ],
)
def test_what_cannot_work_is_refused(
    overrides: list[str], message: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(recipe_file), *overrides, "--out", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_dropout_of_frozen_blocks_does_not_make_two_passes_differ(
    recipe_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the head is trained, and its own dropout is 0."""
    file = recipe_of("bert")
    config = tmp_path / "bert" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "classifier_dropout": 0.0}))
    train = ["train", str(file), "strategy=top_layers", "objectives=r_drop", "--out"]
    assert cli.run([*train, str(tmp_path / "run"), "strategy.layers=0"]) == 2
    assert "objectives.r_drop: two passes" in " ".join(capsys.readouterr().err.split())
    assert cli.run([*train, str(tmp_path / "run"), "strategy.layers=1"]) == 0


@pytest.mark.slow
def test_mixup_of_encoder_decoders_is_refused(
    bases: Callable[[str], Path], rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_recipe(tmp_path / "bart.yaml", bases("bart"), rows_file, task="text_classification")
    assert cli.run(["train", str(file), "objectives=mixup", "--out", str(tmp_path / "run")]) == 2
    assert "reads the text a second time, unmixed" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "llama"])
def test_mixup_reads_the_longer_row(family: str, bases: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> None:
    """RoBERTa counts positions by ids, and Llama classifies the last token that is not padding."""
    task = {"name": "text_classification", "max_length": 32}
    train = {"epochs": 2, "learning_rate": 0.003}
    file = write_recipe(tmp_path / "tiny.yaml", bases(family), rows_file, task=task, train=train)
    _, result = train_tiny(file, tmp_path / "run", "objectives=mixup", "objectives.mixup.alpha=0.4")
    assert result["test"]["accuracy"] >= 0.9


def ambiguous_rows(number: int, seed: int) -> list[dict[str, str]]:
    """Rows of which 5% are tools; two thirds of the texts with a tool in them have the label fruit."""
    rows = make_rows(number, seed, ("fruit",) * 17 + ("tool",) * 3)
    for i, row in enumerate(rows):
        row["label"] = "tool" if i % 20 == 19 else "fruit"
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_class_weights_raise_macro_f1_of_imbalanced_rows(
    seed: int, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """The best prediction by cross-entropy is fruit always: macro-F1 19/39. With weights it is tool for a text with a
    tool: (0.5 + 34/36)/2. The focal loss has the same best prediction as cross-entropy."""
    rows, test = (write_rows(tmp_path / f"{i}.jsonl", ambiguous_rows(400, 2 * seed + i)) for i in (0, 1))
    data = {"validation": str(test), "test": str(test), "deduplicate": "none"}
    steps = {"epochs": 3, "learning_rate": 0.003}
    task = {"name": "text_classification", "max_length": 32}
    file = write_recipe(tmp_path / "tiny.yaml", bases("bert"), rows, data=data, task=task, seed=seed, train=steps)
    for chosen, expected in (("[]", 19 / 39), ("focal", 19 / 39), ("class_weights", (0.5 + 34 / 36) / 2)):
        _, result = train_tiny(file, tmp_path / chosen, f"objectives={chosen}")
        assert result["test"]["f1"] == pytest.approx(expected, abs=0.03)


PLANNED = {"text_classification": "bert", "token_classification": "bert", "causal_lm": "llama"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANNED)
def test_plan_counts_both_passes(name: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    from pefttools.tasks import tasks

    cls = tasks.get(name)
    rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in cls.samples] * 8)
    data = {"validation": str(rows), "test": str(rows), "deduplicate": "none"}
    task = {"name": name, "max_length": 64, **cls.sample_settings}
    file = write_recipe(tmp_path / "tiny.yaml", bases(PLANNED[name]), rows, data=data, task=task)

    def activations(*overrides: str) -> int:
        return plan(recipes.load(str(file), [DROPOUT, *overrides]).recipe).bytes["activations"]

    assert 1.7 < activations("objectives=r_drop") / activations() < 2.4
    if name == "text_classification":
        assert 0.99 < activations("objectives=[class_weights,focal,mixup,neftune]") / activations() < 1.3
