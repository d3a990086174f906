"""`calibrate` on every task, through the command line, and what predict, evaluate and export make of it."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import train_tiny, write_recipe, write_rows
from predict_command import Predict
from sample_runs import SampleRuns

from pefttools import cli
from pefttools.errors import UserError
from pefttools.inference import conformal
from pefttools.inference.calibration import best_temperature, calibration_error, nll
from pefttools.inference.thresholds import Wanted, best_threshold
from pefttools.tasks import tasks
from pefttools.training import calibrated

WITHOUT = {"causal_lm", "seq2seq", "masked_lm", "masked_lm_pairs", "question_answering"}


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> SampleRuns:
    return SampleRuns(tmp_path_factory, bases)


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """Words of a command with --json -> exit code, the object and messages."""

    def command(*words: object) -> tuple[int, Any, str]:
        code = cli.run([*map(str, words), "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else None, " ".join(captured.err.split())

    return command


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.names())
def test_every_task_is_calibrated_or_refused(
    name: str, sample_run: SampleRuns, tmp_path: Path, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(sample_run(name), tmp_path / "run"))
    _, before, _ = call("evaluate", run)
    code, values, err = call("calibrate", run)
    if name in WITHOUT:
        assert code == 2
        assert "nothing to calibrate" in err
        return
    assert code == 0, err
    assert cli.run(["calibrate", str(run)]) == 0
    assert f"stored in {run}" in " ".join(capsys.readouterr().out.split())
    _, after, _ = call("evaluate", run)
    primary = tasks.get(name).primary
    assert after[primary] == before[primary]
    if name == "regression":
        assert values["temperature"] == 1.0
        assert after["loss"] == before["loss"]
    else:
        assert values["validation"]["after"]["nll"] <= values["validation"]["before"]["nll"] + 0.05
        if name != "prompted_classification":  # its loss is that of the labels' tokens
            assert after["loss"] == pytest.approx(values["test"]["after"]["nll"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_classification", "token_classification", "multiple_choice"])
@pytest.mark.parametrize("to", ["merged", "adapter", "onnx"])
def test_artifacts_have_the_temperature(name: str, to: str, sample_run: SampleRuns, tmp_path: Path, call: Any) -> None:
    run = Path(shutil.copytree(sample_run(name), tmp_path / "run"))
    plain = call("export", run, "--to", to, "--out", tmp_path / "plain")[1]
    _, found, _ = call("calibrate", run)
    code, manifest, err = call("export", run, "--to", to, "--out", tmp_path / "artifact")
    assert code == 0, err
    assert manifest["largest_logit"] * found["temperature"] == pytest.approx(plain["largest_logit"], rel=1e-4)
    assert manifest["exported"] == plain["exported"]
    assert f"divided by {found['temperature']:.3f}" in (tmp_path / "artifact" / "README.md").read_text()


def test_probabilities_are_those_of_the_divided_logits(run_copy: Path, call: Any, predict: Predict) -> None:
    text = ["--precision", "fp32", "--text", "word1 apple word2 saw", "--text", "word9 red"]
    before = predict(run_copy, *text)[1]
    temperature = call("calibrate", run_copy)[1]["temperature"]
    assert temperature != 1.0
    after = predict(run_copy, *text)[1]
    for one, other in zip(before, after, strict=True):
        assert one["prediction"] == other["prediction"]
        shares = {name: p ** (1 / temperature) for name, p in one["probabilities"].items()}
        expected = {name: share / sum(shares.values()) for name, share in shares.items()}
        assert other["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert cli.run(["calibrate", str(run_copy), "--remove"]) == 0
    assert predict(run_copy, *text)[1] == before


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Predict:
    return Predict(capsys)


def test_the_report_shows_both(run_copy: Path, call: Any) -> None:
    assert call("report", run_copy)[1]["calibrated"] is None
    _, values, _ = call("calibrate", run_copy)
    _, found, _ = call("report", run_copy)
    assert found["calibrated"]["temperature"] == values["temperature"]
    assert found["calibrated"]["accuracy"] == found["calibration"]["accuracy"]
    assert found["calibrated"]["brier"] != found["calibration"]["brier"]
    page = (run_copy / "report.html").read_text()
    assert 'id="calibrated"' in page
    assert f"temperature {values['temperature']:.3f}" in page


def test_unsure_rows_have_sets(run_copy: Path, call: Any, predict: Predict, tmp_path: Path) -> None:
    _, values, _ = call("calibrate", run_copy)
    known = json.loads((run_copy / "calibration.json").read_text())["errors"]
    assert len(known) == values["rows"]
    call("export", run_copy, "--to", "merged", "--out", tmp_path / "merged")
    for folder in (run_copy, tmp_path / "merged"):
        rows = predict(folder, "--error-rate", 0.2, "--top-k", 2, "--text", "word1 saw", "--text", "word2")[1]
        plain = predict(folder, "--text", "word1 saw", "--text", "word2")[1]
        for row, whole in zip(rows, plain, strict=True):
            q = conformal.quantile(known, 0.2)
            assert row["set"] == [n for n, p in conformal.by_probability(whole["probabilities"]) if 1 - p <= q]
            assert row["unsure"] == (row["set"] != [row["prediction"]])
            assert "probabilities" not in row
            best = sorted(whole["probabilities"].items(), key=lambda item: -item[1])[:2]
            assert [(one["class"], one["probability"]) for one in row["top"]] == best
    sure = predict(run_copy, "--threshold", 0.01, "--text", "word1 saw")[1]
    unsure = predict(run_copy, "--threshold", 0.999, "--text", "word1 apple saw")[1]
    assert [sure[0]["unsure"], unsure[0]["unsure"]] == [False, True]


def test_several_labels_get_thresholds(tmp_path: Path, bases: Any, call: Any, predict: Predict) -> None:
    draw = random.Random(0)
    rows = []
    for i in range(800):
        labels = [name for name in ("apple", "saw", "red") if draw.random() < 0.3]
        words = [f"word{draw.randrange(40)}" for _ in range(4)] + labels + [str(i)]
        rows.append({"text": " ".join(words), "label": labels})
    file = write_rows(tmp_path / "rows.jsonl", rows)
    task = {"name": "text_classification", "multi_label": True, "max_length": 32}
    train = {"epochs": 4, "learning_rate": 0.003}
    recipe = write_recipe(tmp_path / "r.yaml", bases("bert"), file, task=task, train=train)
    run, _ = train_tiny(recipe, tmp_path / "run")
    code, values, err = call("calibrate", run)
    assert code == 0, err
    assert set(values["thresholds"]) == {"apple", "saw", "red"}
    scores = {when: values["validation"][f"metrics_{when}"]["f1"] for when in ("before", "after")}
    assert scores["after"] >= scores["before"]
    _, evaluated, _ = call("evaluate", run)
    assert evaluated["f1"] == pytest.approx(values["test"]["metrics_after"]["f1"])
    code, _, err = call("export", run, "--to", "merged", "--out", tmp_path / "merged")
    assert code == 0, err
    of_run, of_artifact = (
        predict(folder, "--precision", "fp32", "--text", "word1 red word2")[1][0]
        for folder in (run, tmp_path / "merged")
    )
    assert of_run["prediction"] == of_artifact["prediction"]
    assert of_run["probabilities"] == pytest.approx(of_artifact["probabilities"], abs=1e-5)
    code, _, err = call("calibrate", run, "--recall", 0.99, "--of", "saw")
    assert code == 0, err
    assert set(call("calibrate", run, "--recall", 0.99, "--of", "saw")[1]["thresholds"]) == {"saw"}
    code, _, err = predict(run, "--error-rate", 0.1, "--text", "word1")
    assert code == 2
    assert "one of several classes" in err


def test_one_of_two_classes_reaches_a_precision(tmp_path: Path, bases: Any, call: Any) -> None:
    draw = random.Random(1)
    rows = []
    for i in range(600):
        is_spam = draw.random() < 0.4
        word = "apple" if is_spam != (draw.random() < 0.15) else "saw"  # 15% of the labels are wrong
        words = [f"word{draw.randrange(40)}" for _ in range(5)]
        rows.append({"text": f"{' '.join(words)} {word} {i}", "label": "spam" if is_spam else "ham"})
    file = write_rows(tmp_path / "rows.jsonl", rows)
    train = {"epochs": 2, "learning_rate": 0.003}
    recipe = write_recipe(tmp_path / "r.yaml", bases("bert"), file, train=train, task={"name": "text_classification"})
    run, _ = train_tiny(recipe, tmp_path / "run")
    assert call("calibrate", run)[1]["thresholds"] == {}
    _, values, _ = call("calibrate", run, "--recall", 0.95, "--of", "spam")
    (threshold,) = values["thresholds"].values()
    assert values["validation"]["classes"]["spam"]["recall"] >= 0.95
    _, found, _ = call("evaluate", run)
    assert found["per_class"]["spam"] == pytest.approx(values["test"]["classes"]["spam"])
    stored = calibrated.read(run, run / "adapter")
    assert stored
    assert stored.thresholds == {"spam": threshold}
    code, _, err = call("calibrate", run, "--precision", 1.0, "--of", "spam")
    assert code == 0
    assert "no threshold has a precision of 1" in err or call("calibrate", run)[1] is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--precision", 0.9, "--of", "tool"],
            "--precision, --of: thresholds are for several labels a row, or for two",
        ),
        (["--of", "tool"], "--of: thresholds are for several labels a row, or for two classes"),
        (["--remove", "--of", "tool"], "cannot be combined"),
    ],
)
def test_wrong_options_are_refused(words: list[Any], message: str, run_copy: Path, call: Any) -> None:
    code, _, err = call("calibrate", run_copy, *words)
    assert code == 2
    assert message in err
    assert not (run_copy / "calibration.json").exists()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(precision=1.5, of="spam"), "1.5 is not between 0 and 1"),
        (Wanted(precision=0.9, recall=0.9, of="spam"), "give one of the two"),
        (Wanted(of="spam"), "give --precision or --recall"),
        (Wanted(recall=0.9), "name the class that must reach it"),
        (Wanted(recall=0.9, of="sapm"), "did you mean 'spam'"),
    ],
)
def test_wrong_thresholds_of_two_classes_are_refused(wanted: Wanted, message: str) -> None:
    with pytest.raises(UserError, match=message):
        wanted.check(tasks.get("text_classification")(labels=("ham", "spam"), pair=False))  # type: ignore[call-arg]


def test_what_predict_refuses(run_copy: Path, predict: Predict, call: Any) -> None:
    for words, message in (
        (["--error-rate", 0.1], "is not calibrated"),
        (["--error-rate", 1.5], "1.5 is not above 0 and below 1"),
        (["--threshold", 0], "0 is not above 0 and below 1"),
        (["--top-k", 0], "at least 1"),
        (["--threshold", 0.5, "--error-rate", 0.1], "give one of the two"),
    ):
        code, rows, err = predict(run_copy, *words, "--text", "word1")
        assert code == 2
        assert message in " ".join(err.split())
        assert rows == []
    call("calibrate", run_copy)
    code, _, err = predict(run_copy, "--error-rate", 1e-6, "--text", "word1")
    assert code == 2
    assert "999999 validation rows" in " ".join(err.split())


def test_a_changed_calibration_is_refused(run_copy: Path, call: Any, finished_run: Path, predict: Predict) -> None:
    call("calibrate", run_copy)
    file = run_copy / "calibration.json"
    text = file.read_text()
    for damaged, reason in (
        (text.replace('"temperature": ', '"temperature": 1'), "checksum"),
        (text[: len(text) // 2], "damaged"),
        ("[]", "damaged"),
    ):
        file.write_text(damaged)
        code, _, err = predict(run_copy, "--text", "word1")
        assert code == 2
        assert reason in " ".join(err.split())
        assert "calibrate" in err
    other = calibrated.Calibration(2.0)
    other.write(run_copy, finished_run / "tensorboard" if (finished_run / "tensorboard").exists() else run_copy)
    code, _, err = predict(run_copy, "--text", "word1")
    assert code == 2
    assert "belongs to another trained model" in " ".join(err.split())


def test_continued_and_taught_runs_start_uncalibrated(
    run_copy: Path, recipe_file: Path, tmp_path: Path, call: Any
) -> None:
    """A run that goes on, and a student, learn from the trained weights, whether or not they are calibrated."""
    first = train_tiny(recipe_file, tmp_path / "a", f"start.source={run_copy}", "train.epochs=0.2")[1]
    call("calibrate", run_copy)
    again = train_tiny(recipe_file, tmp_path / "b", f"start.source={run_copy}", "train.epochs=0.2")[1]
    assert again["before"]["loss"] == first["before"]["loss"]
    assert again["test"] == first["test"]


def test_temperature_recovers_a_planted_one() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(20_000, 5)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = (shares.cumsum(1) > draw.random((len(logits), 1))).argmax(1)
    assert best_temperature(logits * 3, right) == pytest.approx(3, rel=0.03)
    assert best_temperature(logits / 2, right) == pytest.approx(0.5, rel=0.03)
    separated = np.eye(3)[[0, 1, 2] * 32]
    found = best_temperature(separated, np.array([0, 1, 2] * 32))
    assert 1 / (1 + 2 * math.exp(-1 / found)) == pytest.approx(97 / 98, abs=1e-4)  # not certain, though all are right
    assert nll(np.log([[0.25, 0.75]]), np.array([1])) == pytest.approx(-math.log(0.75))


def test_calibration_error_by_hand() -> None:
    confidence = np.repeat([0.6, 0.9], 30 * 15)
    right = np.concatenate((np.tile([1, 0], 15 * 15), np.ones(30 * 15)))
    assert calibration_error(confidence, right) == pytest.approx(0.5 * (0.1 + 0.1), abs=1e-2)
    assert calibration_error(np.array([0.8]), np.array([True])) == pytest.approx(0.2)


def test_threshold_by_hand() -> None:
    probability = np.array([0.1, 0.3, 0.4, 0.8, 0.9])
    is_class = np.array([False, True, False, True, True])
    assert best_threshold(probability, is_class) == pytest.approx(0.2)  # F1 6/7, at 0.6 it is 4/5
    assert best_threshold(probability, is_class, Wanted(precision=1.0)) == pytest.approx(0.6)
    assert best_threshold(probability, is_class, Wanted(recall=0.6)) == pytest.approx(0.6)
    assert best_threshold(np.array([0.2, 0.9]), np.array([True, False]), Wanted(precision=0.9)) is None


def test_a_class_by_threshold_is_unsure_unless_its_set_has_it_alone() -> None:
    task = tasks.get("text_classification")(labels=("ham", "spam"), pair=False, thresholds={"spam": 0.1})  # type: ignore[call-arg]
    prediction = task.by_thresholds({"probabilities": {"ham": 0.8, "spam": 0.2}})  # type: ignore[attr-defined]
    assert prediction["prediction"] == "spam"
    assert conformal.answer(task, prediction, 0.3) == {"set": ["ham", "spam"], "unsure": True}
    assert conformal.answer(task, prediction, 0.9) == {"set": ["ham", "spam"], "unsure": True}
    found = conformal.coverage(task, [0.1] * 18 + [0.3], 0.05, [prediction] * 2, ["ham", "spam"])
    assert (found["unsure"], found["wrong"]) == (1.0, 0.0)


def test_a_higher_rate_never_marks_more_rows() -> None:
    task = tasks.get("text_classification")(labels=("a", "b", "c"), pair=False)  # type: ignore[call-arg]
    draw = np.random.default_rng(1)
    shares = draw.dirichlet([0.5] * 3, 400)
    predictions = [
        {"prediction": "abc"[int(p.argmax())], "probabilities": dict(zip("abc", map(float, p), strict=True))}
        for p in shares
    ]
    references = [draw.choice([*"abc"], p=p) for p in shares]
    known = conformal.errors(task, predictions, references)
    before = 1.0
    for rate in (0.02, 0.05, 0.1, 0.2, 0.4, 0.9):
        found: Any = conformal.coverage(task, known, rate, predictions, references)
        assert found["wrong"] <= rate + 0.01
        assert found["unsure"] <= before
        before = found["unsure"]
    q = conformal.quantile(known, 0.9)
    assert all(one["prediction"] in conformal.answer(task, one, q)["set"] for one in predictions)
    assert before == 0


@pytest.mark.parametrize("rate", [0.2, 0.1, 0.05])
def test_sets_cover_the_wanted_share(rate: float) -> None:
    """Of rows drawn like the validation rows: over 400 draws of 200 rows the mean coverage is 1 - rate."""
    draw = np.random.default_rng(3)
    covered = []
    for _ in range(400):
        known = sorted(draw.random(200))
        covered.append(np.mean(draw.random(500) <= conformal.quantile(known, rate)))
    assert np.mean(covered) == pytest.approx(1 - rate, abs=0.005)
    assert math.isinf(conformal.quantile([0.1] * (conformal.num_needed(rate) - 1), rate))
    assert conformal.quantile([0.1] * conformal.num_needed(rate), rate) == 0.1
