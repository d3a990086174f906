"""`pefttools bench` on a tiny base: equal and worse methods, killed processes, several workers, invalid input."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pefttools import cli
from pefttools.bench import trial
from pefttools.bench.ledger import Ledger, sqlite

BROKEN = '''"""broken: fails once it is trained."""

from typing import ClassVar

from pefttools.strategies.base import Strategy, train_only


class Broken(Strategy):
    """Nothing to set."""

    default_lr: ClassVar[float] = 1e-3
    lr_range: ClassVar[tuple[float, float]] = (1e-4, 1e-2)
    mergeable: ClassVar[bool] = True
    exact_start: ClassVar[bool] = True

    def wrap(self, base):
        train_only(base, ())
        return base.model

    def merge(self, model):
        return model

    def start(self, model, batches):
        raise RuntimeError("it was made to")
'''


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "strategies").mkdir()
    (folder / "strategies" / "broken.py").write_text(BROKEN)
    return folder


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Path:
    """A method under two names, one that cannot win, and one that fails."""
    values = {
        "description": "a test", "recipe": str(recipe_file), "set": {"train.epochs": 2},
        "axes": {"strategies": {"lora": None, "again": {"name": "lora"}, "loser": {"name": "frozen"}, "broken": None}},
        "seeds": [0, 1], "tuning": {"trials": 2},
    }  # fmt: skip
    file = tmp_path_factory.mktemp("suite") / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, suite_file: Path, plugins: Path) -> Path:
    """The suite, run to its end."""
    out = tmp_path_factory.mktemp("bench") / "out"
    assert start(suite_file, out, plugins).wait() == 0
    return out


def start(suite_file: Path, out: Path, plugins: Path, *overrides: str, **streams: int) -> subprocess.Popen[bytes]:
    """`pefttools bench` in a process group of its own, because a process keeps the plug-ins that it loaded."""
    command = [sys.executable, "-m", "pefttools", "bench", str(suite_file), *overrides, "--out", str(out)]
    environment = {**os.environ, "PEFTTOOLS_PLUGINS": str(plugins)}
    streams = {"stdout": subprocess.DEVNULL, **streams}
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)  # type: ignore[call-overload]


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def trial_results(out: Path) -> dict[str, Any]:
    """The results of all trials, without timings."""
    found = {}
    for file in (out / "trials").glob("*.json"):
        record = trial.read(file)
        keys = ("status", "validation", "test", "units", "rows", "moved", "learning_rate", "seed")
        found[record["digest"]] = {key: record.get(key) for key in keys}
    return found


@pytest.mark.slow
def test_equal_methods_share_a_tier_above_a_worse_one(finished: Path) -> None:
    (problem,) = summary(finished)["problems"]
    rows = {row["method"]: row for row in problem["methods"]}
    assert rows["lora"]["tier"] == rows["again"]["tier"] == 1
    assert rows["loser"]["tier"] == 2
    assert rows["lora"]["mean"] > 0.9 > rows["loser"]["mean"]
    assert rows["lora"]["scores"] == rows["again"]["scores"]


@pytest.mark.slow
def test_a_failed_trial_is_a_row_with_its_reason(finished: Path) -> None:
    (problem,) = summary(finished)["problems"]
    row = problem["methods"][-1]
    assert (row["method"], row["status"]) == ("broken", "failed")
    assert "RuntimeError: it was made to" in row["reason"]
    assert "| broken | failed: RuntimeError: it was made to" in (finished / "table.md").read_text()


@pytest.mark.slow
def test_learning_rate_is_chosen_on_validation(finished: Path) -> None:
    (problem,) = summary(finished)["problems"]
    row = next(row for row in problem["methods"] if row["method"] == "lora")
    assert len(row["curve"]) == 2
    best = max(point["score"] for point in row["curve"])
    assert row["learning_rate"] in [point["learning_rate"] for point in row["curve"] if point["score"] == best]


@pytest.mark.slow
def test_summary_reports_cost_and_weight_change(finished: Path) -> None:
    (problem,) = summary(finished)["problems"]
    row = next(row for row in problem["methods"] if row["method"] == "lora")
    assert row["params"]["trainable"] == row["params"]["adapter"] + row["params"]["head"]
    assert row["seconds"] > 0
    assert row["tokens_per_second"] > 0
    assert row["peak_bytes"] > 2**26
    assert row["adapter_bytes"] > 4 * row["params"]["trainable"]
    assert row["moved"] > 0
    assert 1 <= row["effective_rank"] <= 8
    assert len(row["moved_blocks"]) == 2
    loser = next(row for row in problem["methods"] if row["method"] == "loser")
    assert (loser["moved"], loser["effective_rank"]) == (0, None)
    assert (finished / "pareto.png").stat().st_size > 10_000
    assert "<svg" in (finished / "pareto.svg").read_text()


@pytest.mark.slow
def test_a_second_run_trains_nothing(finished: Path, suite_file: Path, plugins: Path) -> None:
    modified = {file: file.stat().st_mtime_ns for file in (*finished.glob("trials/*.json"), finished / "study.db")}
    before = (finished / "summary.json").read_text()
    process = start(suite_file, finished, plugins, stdout=subprocess.PIPE)
    output = process.communicate()[0].decode()
    assert process.returncode == 0
    assert (finished / "summary.json").read_text() == before
    assert {file: file.stat().st_mtime_ns for file in modified} == modified
    assert "is recommended: it has the best mean" in output
    words = ["pefttools", "bench", str(suite_file), "--out", str(finished)]
    assert f"`{shlex.join(words)}`: " in (finished / "table.md").read_text()


@pytest.mark.slow
def test_the_archive_of_records_continues_a_suite(
    finished: Path, suite_file: Path, plugins: Path, tmp_path: Path
) -> None:
    for name in ("suite.yaml", "records.jsonl"):
        shutil.copy(finished / name, tmp_path / name)
    archive = tmp_path / "records.jsonl"
    lines = archive.read_text().splitlines()
    assert start(suite_file, tmp_path, plugins).wait() == 0
    assert not list(tmp_path.glob("trials/*.json"))
    assert summary(tmp_path)["problems"] == summary(finished)["problems"]
    archive.write_text("".join(f"{line}\n" for line in lines[1:]))
    assert start(suite_file, tmp_path, plugins).wait() == 0
    assert len(list(tmp_path.glob("trials/*.json"))) == 1
    assert len(archive.read_text().splitlines()) == len(lines)
    (tmp_path / "records.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:40]]))
    process = start(suite_file, tmp_path, plugins, stderr=subprocess.PIPE)
    assert f"records.jsonl line {len(lines)} is not a record" in process.communicate()[1].decode()


@pytest.mark.slow
def test_killed_suite_resumes_to_the_same_results(
    finished: Path, suite_file: Path, plugins: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    some = "axes.strategies={lora: null, broken: null}"  # one that learns and one that fails; trials are the same
    process = start(suite_file, out, plugins, some)
    deadline = time.monotonic() + 120
    while not list(out.glob("trials/*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    num_finished = len(list(out.glob("trials/[!.]*.json")))
    assert start(suite_file, out, plugins, some).wait() == 0
    whole, found = trial_results(finished), trial_results(out)
    assert 0 < num_finished < len(found)
    assert {record["status"] for record in found.values()} == {"done", "failed"}
    assert found == {digest: whole[digest] for digest in found}
    rows = {row["method"]: row for row in summary(finished)["problems"][0]["methods"]}
    assert all(row.get("scores") == rows[row["method"]].get("scores") for row in summary(out)["problems"][0]["methods"])


@pytest.mark.slow
def test_two_workers_run_no_trial_twice(tmp_path: Path) -> None:
    url, keys, run = sqlite(tmp_path / "study.db"), [f"trial {i}" for i in range(6)], []

    def work() -> None:
        ledger = Ledger(url)
        for key in keys:
            if claim := ledger.claim("cell", key, 0.001, 0):
                run.append(key)
                done = {"status": "done", "metric": "accuracy", "validation": {"accuracy": 1.0}, "key": key}
                ledger.settle(claim, done)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run) == keys
    assert [Ledger(url).record("cell", key)["key"] for key in keys] == keys  # type: ignore[index]


@pytest.mark.slow
def test_claim_of_a_dead_process_can_be_taken_over(tmp_path: Path) -> None:
    url = sqlite(tmp_path / "study.db")
    code = f"from pefttools.bench.ledger import Ledger; assert Ledger({url!r}).claim('cell', 'a', None, 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert Ledger(url).claim("cell", "a", None, 0)
    assert Ledger(url).claim("cell", "a", None, 0) is None  # this process lives


def test_released_claim_can_be_claimed_again(tmp_path: Path) -> None:
    ledger = Ledger(sqlite(tmp_path / "study.db"))
    claim = ledger.claim("cell", "a", None, 0)
    assert claim
    ledger.release(claim)
    assert ledger.claim("cell", "a", None, 0)


def test_a_claim_that_was_taken_over_can_end(tmp_path: Path) -> None:
    """A worker on a slow machine finishes a trial that another one has taken over."""
    url = sqlite(tmp_path / "study.db")
    slow, other = Ledger(url), Ledger(url)
    claim = slow.claim("cell", "a", None, 0)
    assert claim
    other.release(claim)  # as when its heartbeats are missing
    again = other.claim("cell", "a", None, 0)
    assert again
    record = {"status": "done", "metric": "accuracy", "validation": {"accuracy": 1.0}}
    slow.settle(claim, record)
    slow.release(claim)
    assert other.record("cell", "a") is None
    other.settle(again, record)
    assert slow.record("cell", "a") == record


BenchError = Callable[..., str]


@pytest.fixture
def bench_error(capsys: pytest.CaptureFixture[str]) -> BenchError:
    """Runs `pefttools bench` on invalid input and returns its error."""

    def run(*arguments: object) -> str:
        assert cli.run(["bench", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize("url", ["sqlite:////no/such/folder/study.db", "nothing://here", "no url"])
def test_unreachable_storage_is_refused(bench_error: BenchError, suite_file: Path, tmp_path: Path, url: str) -> None:
    output = bench_error(suite_file, "axes.strategies=[lora]", "--out", tmp_path / "out", "--storage", url)
    assert f"--storage: {url} cannot be reached" in output


def test_strategy_that_cannot_do_the_task_is_refused_before_anything_runs(
    bench_error: BenchError, suite_file: Path, tmp_path: Path
) -> None:
    axes = "axes.strategies={lora: null, two: {name: top_layers, layers: 9}, poly: {name: peft, type: POLY}}"
    output = bench_error(suite_file, axes, "--out", tmp_path / "out")
    assert "two: strategy.layers: 9 is more than the 2 blocks" in output
    assert "poly:" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_results_of_another_version_are_refused(
    bench_error: BenchError, suite_file: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "trials").mkdir(parents=True)
    record = json.loads(next(finished.glob("trials/[!.]*.json")).read_text())
    record["versions"]["torch"] = "1.0"
    (out / "trials" / "other.json").write_text(json.dumps(record))
    assert "contains results of torch 1.0" in bench_error(suite_file, "axes.strategies=[lora]", "--out", out)
    (out / "trials" / "other.json").write_text(json.dumps({**record, "format": 0}))
    assert "not a record that this version can read" in bench_error(suite_file, "axes.strategies=[lora]", "--out", out)


@pytest.mark.slow
def test_results_on_other_rows_are_refused(suite_file: Path, finished: Path, plugins: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    for file in (out / "trials").glob("[!.]*.json"):
        record = json.loads(file.read_text())
        if record.get("units") and record["seed"] == 1:
            file.write_text(json.dumps({**record, "units": record["units"][1:]}))
    process = start(suite_file, out, plugins, "--collect", stderr=subprocess.PIPE)
    _, told = process.communicate()
    assert (process.returncode, b"trials have scores on different numbers of test rows" in told) == (2, True)


@pytest.mark.slow
def test_another_suites_folder_is_refused(bench_error: BenchError, suite_file: Path, finished: Path) -> None:
    assert "another suite (mine)" in bench_error(suite_file, "seeds=[5]", "axes.strategies=[lora]", "--out", finished)


def test_collecting_without_trials_is_refused(bench_error: BenchError, suite_file: Path, tmp_path: Path) -> None:
    output = bench_error(suite_file, "axes.strategies=[lora]", "--out", tmp_path / "out", "--collect")
    assert "contains no trials" in output


def test_the_plan_names_every_trials_command(
    suite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", str(suite_file), "axes.strategies=[lora]", "--out", str(tmp_path / "out"), "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2
    assert all(line.startswith("pefttools train ") for line in lines)
    assert not (tmp_path / "out").exists()
