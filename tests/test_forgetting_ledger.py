"""The ledger: scores of every earlier run's test rows after each run, forgetting and backward transfer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import NO_HASHES, train_tiny
from continued_runs import Continued, result, train
from sample_runs import SampleRuns

from pefttools import cli
from pefttools.errors import UserError
from pefttools.tasks.text_classification import TextClassification
from pefttools.training.backward_transfer import summary
from pefttools.training.replay import lineage
from pefttools.training.run import Run


def test_forgetting_and_backward_transfer_by_hand() -> None:
    matrix = [[0.9], [0.5, 0.8], [0.7, 0.6, 0.95]]
    found = summary(matrix)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.7) + (0.8 - 0.6)) / 2)
    assert found["backward_transfer"] == pytest.approx(((0.7 - 0.9) + (0.6 - 0.8)) / 2)
    grown = summary([[0.5], [0.9, 0.8], [0.7, 0.6, 0.9]])  # the first task was best after the second run
    assert grown["forgetting"] == pytest.approx(((0.9 - 0.7) + (0.8 - 0.6)) / 2)
    assert grown["backward_transfer"] == pytest.approx(((0.7 - 0.5) + (0.6 - 0.8)) / 2)


def test_where_lower_is_better_a_rise_is_forgetting() -> None:
    found = summary([[8.0], [11.0, 5.0]], sign=-1)
    assert found == {"forgetting": pytest.approx(3.0), "backward_transfer": pytest.approx(-3.0)}


def test_a_choice_among_some_classes() -> None:
    task = TextClassification(labels=("a", "b", "c"))
    predictions = [{"prediction": "c", "probabilities": {"a": 0.3, "b": 0.2, "c": 0.5}}]
    assert task.among(predictions, {"a", "b"})[0]["prediction"] == "a"
    several = task.with_values(multi_label=True)
    assert several.among([{"prediction": ["a", "c"]}], {"a", "b"}) == [{"prediction": ["a"]}]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> Continued:
    return Continued(tmp_path_factory.mktemp("chain"), bases)


@pytest.mark.slow
def test_every_earlier_test_set_is_scored(chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two, three = tmp_path / "two", tmp_path / "three"
    assert train(chain.recipe, "--from", chain.first, "train.epochs=1", "--out", two) == 0
    capsys.readouterr()
    assert train(chain.first_recipe, "--from", two, "train.epochs=1", "start.adapter=stack", "--out", three) == 0
    shown = capsys.readouterr().out
    assert "accuracy on the test rows of each run" in " ".join(shown.split())
    assert "backward transfer" in shown
    assert "in brackets" in shown
    first, second, third = (result(run) for run in (chain.first, two, three))
    ledger = third["ledger"]
    assert [run["name"] for run in ledger["runs"]] == ["one", "two", "this run"]
    for kind in ("all", "own"):
        scores = ledger[kind]["scores"]
        assert [len(row) for row in scores] == [1, 2, 3]
        assert scores[:2] == second["ledger"][kind]["scores"]
        assert {name: ledger[kind][name] for name in summary(scores)} == summary(scores)
    assert ledger["all"]["scores"][0] == [first["test"]["accuracy"]]
    assert ledger["all"]["scores"][2][2] == third["test"]["accuracy"]
    assert ledger["before"]["own"] == pytest.approx(second["ledger"]["own"]["scores"][1])
    assert cli.run(["evaluate", str(three), f"data.test={tmp_path / 'first-test.jsonl'}"]) == 2  # no such file
    rows = Run.open(chain.first).scored_rows()
    assert rows is not None
    (tmp_path / "first-test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.rows))
    capsys.readouterr()
    assert cli.run(["evaluate", str(three), f"data.test={tmp_path / 'first-test.jsonl'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == ledger["all"]["scores"][2][0]
    assert cli.run(["report", str(three), "--out", str(tmp_path / "three.html")]) == 0
    page = (tmp_path / "three.html").read_text("utf-8")
    table = page.partition('<table id="ledger">')[2].partition("</table>")[0]
    cells = [cell.partition("</td>")[0] for cell in table.split("<td>")[1:]]
    shown_scores = [
        f"{score:.4f} ({own:.4f})"
        for scores, alone in zip(ledger["all"]["scores"], ledger["own"]["scores"], strict=True)
        for score, own in zip(scores, alone, strict=True)
    ]
    assert [cell for cell in cells if cell] == shown_scores
    assert len(cells) == 9
    assert "backward transfer <strong>" in page


@pytest.mark.slow
def test_a_run_before_that_is_gone_is_refused_by_name(chain: Continued, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(chain.first, one)
    assert train(chain.recipe, "--from", one, "train.epochs=1", "--out", two) == 0
    assert [run.path.name for run in lineage(Run.open(two))] == ["one", "two"]
    shutil.rmtree(one)
    with pytest.raises(UserError, match=r"two went on from another run: .*there is no such folder"):
        lineage(Run.open(two))


@pytest.mark.slow
def test_training_rows_that_were_scored_earlier_are_warned_of(
    chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (chain.first_recipe, "--from", chain.first, "data.split_seed=5", "train.epochs=1")
    assert train(*words, "--out", tmp_path / "run") == 0
    assert "rows that one was scored on are now training rows" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_score_that_was_not_recorded_is_warned_of(
    chain: Continued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one"
    shutil.copytree(chain.first, one, ignore=NO_HASHES)
    values = result(one)
    values["ledger"] = {"runs": [str(one)], **{kind: {"scores": [[0.1]]} for kind in ("all", "own")}}
    (one / "result.json").write_text(json.dumps(values))
    assert train(chain.recipe, "--from", one, "train.epochs=1", "--out", tmp_path / "two") == 0
    assert "but 0.1000 was recorded in one" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["token_classification", "regression", "causal_lm", "relation_extraction"])
def test_other_tasks_go_on_and_are_scored(
    task: str, tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    first = SampleRuns(tmp_path_factory, bases)(task)
    out = tmp_path / "two"
    _, found = train_tiny(first / "recipe.yaml", out, f"start.source={first}", "train.epochs=1")
    before, ledger = result(first), found["ledger"]
    metric = ledger["metric"]
    assert ledger["all"]["scores"][0] == [before["test"][metric]]
    assert ledger["before"]["all"] == pytest.approx([before["test"][metric]], abs=1e-5)
    assert found["before"][metric] == pytest.approx(before["test"][metric], abs=1e-5)
    assert cli.run(["predict", str(out), str(Path(_rows(first)))]) == 0


def _rows(run: Path) -> Any:
    return Run(run).recipe().data.train.source
