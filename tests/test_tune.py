"""`pefttools tune` on a tiny base: what it finds, kills, several processes, failed trials, and the verdict."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import train_tiny, write_recipe

from pefttools import cli
from pefttools.bench import trial
from pefttools.bench.ledger import Ledger, sqlite
from pefttools.recipe import recipes

RATES = "train.learning_rate=1e-5..1e-2"
SEARCH = ("--search", RATES, "strategy.rank=2,8", "--trials", "6", "--seeds", "0", "1")


@pytest.fixture(scope="module")
def short_recipe(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path], rows_file: Path) -> Path:
    """A recipe whose learning rate is far too low."""
    train = {"epochs": 1, "learning_rate": 1e-5, "evaluate_every": 0.5}
    task = {"name": "text_classification", "max_length": 32}
    file = tmp_path_factory.mktemp("short") / "short.yaml"
    return write_recipe(file, bases("bert"), rows_file, task=task, train=train, data={"train_rows": 128})


def started(recipe_file: Path, out: Path, *words: str, **streams: int) -> subprocess.Popen[bytes]:
    """`pefttools tune` in a process group of its own."""
    command = [sys.executable, "-m", "pefttools", "tune", str(recipe_file), *words, "--out", str(out)]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams}
    return subprocess.Popen(command, start_new_session=True, **streams)  # type: ignore[call-overload]


def tuned(out: Path) -> dict[str, Any]:
    return json.loads((out / "tune.json").read_text())


def results(out: Path) -> dict[str, Any]:
    """The results of all trials, without timings."""
    found = {}
    for file in out.glob("*/trials/[!.]*.json"):
        record = trial.read(file)
        keys = ("status", "validation", "test", "units", "curve", "seed", "reason")
        found[file.parts[-3], record["digest"]] = {key: record.get(key) for key in keys}
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, short_recipe: Path) -> Path:
    out = tmp_path_factory.mktemp("tune") / "out"
    assert started(short_recipe, out, *SEARCH).wait() == 0
    return out


@pytest.mark.slow
def test_it_finds_values_that_are_better_than_the_defaults(finished: Path, short_recipe: Path) -> None:
    values = tuned(finished)
    rows = {row["method"]: row for row in values["methods"]}
    assert rows["tuned"]["mean"] > 0.9 > 0.6 > rows["the defaults"]["mean"]
    assert values["recommended"] == "tuned"
    assert values["verdict"].startswith("tuned is recommended: it is better than the defaults by ")
    assert values["counts"]["all"] == 6
    (pair,) = values["comparisons"]
    assert pair["differs"]
    assert values["trials"][0]["values"] == {"train.learning_rate": "1e-05", "strategy.rank": "8"}
    done = [one for one in values["trials"] if one["status"] == "done"]
    assert values["best"]["score"] == max(one["score"] for one in done)


@pytest.mark.slow
def test_test_rows_are_scored_for_the_final_seeds_only(finished: Path) -> None:
    records = {place: trial.read(file) for place in ("search", "seeds") for file in (finished / place).glob("trials/*")}
    assert records["search"].get("test") is None
    assert not any(trial.read(file).get("units") for file in finished.glob("search/trials/*.json"))
    assert all(trial.read(file)["test"] for file in finished.glob("seeds/trials/*.json"))
    assert len(list(finished.glob("seeds/trials/*.json"))) == 2 * 2


@pytest.mark.slow
def test_best_yaml_is_a_recipe_that_train_runs(finished: Path, tmp_path: Path) -> None:
    values, file = tuned(finished), finished / "best.yaml"
    assert recipes.load(str(file)).recipe.digest == values["best"]["digest"]
    assert "# Compared with the defaults: tuned is recommended" in file.read_text()
    _, result = train_tiny(file, tmp_path / "run")
    (row,) = (row for row in values["methods"] if row["method"] == "tuned")
    assert result["test"]["accuracy"] == row["scores"][0]
    assert result["validation"]["accuracy"] == values["best"]["score"]


@pytest.mark.slow
def test_the_report_needs_no_network_and_has_its_charts(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "https://cdn" not in page
    data = json.loads(page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
    charts = data["charts"]
    assert set(charts) == {"history", "importances", "parallel"}
    assert charts["history"]
    assert charts["parallel"]
    assert tuned(finished)["verdict"] in page


@pytest.mark.slow
def test_a_second_run_trains_nothing(finished: Path, short_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.glob("*/trials/*.json")}
    assert cli.run(["tune", str(short_recipe), *SEARCH, "--out", str(finished), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == tuned(finished)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(list(finished.glob("*/trials/*.json"))) == len(before)


@pytest.mark.slow
def test_another_search_in_the_folder_is_refused(
    finished: Path, short_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--search", RATES], [*SEARCH, "--pruner", "none", "--threads", "1"], ["train.epochs=2", *SEARCH]):
        assert cli.run(["tune", str(short_recipe), *words, "--out", str(finished)]) == 2
        assert "contains another search (pefttools tune" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.run(["tune", str(short_recipe), *SEARCH, "--out", str(tmp_path)]) == 2
    assert "is not empty; choose another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_that_is_killed_three_times_ends_with_the_same_best(
    finished: Path, short_recipe: Path, tmp_path: Path
) -> None:
    out, draw = tmp_path / "out", random.Random(0)
    for kill in range(3):
        process = started(short_recipe, out, *SEARCH, "--workers", "2", "--threads", "1")
        deadline = time.monotonic() + 120
        while len(results(out)) < 2 * kill + 1 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    num_finished = len(results(out))
    assert started(short_recipe, out, *SEARCH, "--workers", "2", "--threads", "1").wait() == 0
    assert 0 < num_finished < len(results(out))
    assert results(out) == results(finished)
    assert tuned(out)["best"] | {"seconds": 0} == tuned(finished)["best"] | {"seconds": 0}
    assert tuned(out)["verdict"] == tuned(finished)["verdict"]


@pytest.mark.slow
def test_two_processes_with_one_storage_run_no_trial_twice(finished: Path, short_recipe: Path, tmp_path: Path) -> None:
    url = sqlite(tmp_path / "shared.db")
    processes = [started(short_recipe, tmp_path / name, *SEARCH, "--storage", url) for name in ("a", "b")]
    assert [process.wait() for process in processes] == [0, 0]
    assert results(tmp_path / "a") == results(tmp_path / "b") == results(finished)
    ledger = Ledger(url)
    with_record = [
        one.user_attrs["key"]
        for summary in ledger.storage.get_all_studies()
        for one in ledger.storage.get_all_trials(summary._study_id)
        if "record" in one.user_attrs
    ]
    assert len(with_record) == len(set(with_record)) == len(results(finished))


@pytest.mark.slow
def test_failed_trials_are_counted_and_named(
    short_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--search", "train.learning_rate=1e-3,1e9", "--seeds", "0", "--sampler", "grid", "--pruner", "none"]
    assert cli.run(["tune", str(short_recipe), *words, "--out", str(tmp_path / "out")]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "2 trials: 1 trained to their ends, 0 pruned, 1 failed" in output
    assert "failed: trial 1 (train.learning_rate=1e9): diverged: the " in output
    assert "nothing is recommended on one seed: keep the defaults" in output
    (failure,) = tuned(tmp_path / "out")["failures"]
    assert (failure["number"], failure["kind"]) == (1, "diverged")


@pytest.mark.slow
def test_a_search_whose_trials_all_fail_is_an_error(
    short_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--search", "train.learning_rate=1e8,1e9", "--sampler", "grid", "--out", str(tmp_path / "out")]
    assert cli.run(["tune", str(short_recipe), *words]) == 2
    error = capsys.readouterr().err
    assert "no trial finished: 2 of 2 failed" in error
    assert "trial 0 (train.learning_rate=1e8): diverged" in error
    assert not (tmp_path / "out" / "best.yaml").exists()


@pytest.mark.slow
def test_on_a_planted_tie_the_defaults_are_kept(recipe_file: Path, tmp_path: Path) -> None:
    """Every value of the search gives a model that is right on every row."""
    words = ["--search", "strategy.alpha=15..18", "--trials", "3", "--seeds", "0", "1"]
    assert started(recipe_file, tmp_path / "out", *words).wait() == 0
    values = tuned(tmp_path / "out")
    assert values["recommended"] in ("the defaults", None)
    assert values["verdict"].startswith("no detectable gain: keep the defaults")
    assert "no detectable gain: keep the defaults" in (tmp_path / "out" / "best.yaml").read_text()


@pytest.mark.slow
def test_when_the_time_is_over_no_trial_begins(short_recipe: Path, tmp_path: Path) -> None:
    words = [*SEARCH, "--timeout", "1s", "--pruner", "none"]
    assert started(short_recipe, tmp_path / "out", *words).wait() == 0
    values = tuned(tmp_path / "out")
    assert 1 <= values["counts"]["all"] < 6
    assert values["ended"] == f"the time was over after {values['counts']['all']} trials"
    modified = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/trials/*.json")}
    assert started(short_recipe, tmp_path / "out", *SEARCH, "--pruner", "none").wait() == 0  # it stays closed
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/trials/*.json")} == modified


@pytest.mark.slow
def test_pruned_trials_stop_early_and_are_no_winners(short_recipe: Path, tmp_path: Path) -> None:
    """Good values come first, so that later ones below the median are stopped."""
    rates = ",".join(f"{0.004 + i / 1000:g}" for i in range(6)) + ",2e-6,3e-6,4e-6,5e-6"
    words = ["--search", f"train.learning_rate={rates}", "--sampler", "grid", "--seeds", "0"]
    assert started(short_recipe, tmp_path / "out", *words).wait() == 0
    values = tuned(tmp_path / "out")
    pruned = [one for one in values["trials"] if one["status"] == "pruned"]
    assert {one["number"] for one in pruned} <= {8, 9}
    assert pruned
    assert all(one["progress"] == 0.5 for one in pruned)
    assert float(values["best"]["values"]["train.learning_rate"]) > 1e-3
    assert not list((tmp_path / "out" / "search" / "runs").glob("*"))


def test_damaged_search_is_refused(short_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({"format": 0}))
    assert cli.run(["tune", str(short_recipe), *SEARCH, "--out", str(tmp_path)]) == 2
    assert "is not a search that this version can read" in capsys.readouterr().err
    shutil.copy(short_recipe, tmp_path / "search.yaml")
    assert cli.run(["tune", str(short_recipe), *SEARCH, "--out", str(tmp_path)]) == 2
