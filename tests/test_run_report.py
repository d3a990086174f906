"""`report RUN`, `evaluate --errors` and `evaluate --by`: mistakes, calibration and groups; texts are escaped."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import browsed, on_phone
from conftest import NO_HASHES, make_rows, train_tiny, write_rows

from pefttools import cli
from pefttools.analysis import bins, calibration, groups, intervals, mistakes
from pefttools.analysis.confusion_chart import short, shown_classes
from pefttools.analysis.scored_run import ScoredRows
from pefttools.tasks import tasks
from pefttools.training.run import Run

Invoke = Callable[..., dict[str, Any]]
TASK = tasks.get("text_classification")(labels=("a", "b"), pair=False)  # type: ignore[call-arg]
EVIL = "<script>document.title = 'broken'</script> & <b>apple</b>"


@pytest.fixture(scope="module")
def run_with_sources(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Path:
    """A run whose file has further columns, a script among its test rows, and labels that are often wrong."""
    folder = tmp_path_factory.mktemp("sources")
    rows: list[dict[str, Any]] = [
        {**row, "source": ("web", "book", "mail")[i % 3], "number": i, "same": "x"}
        for i, row in enumerate(make_rows(240, seed=4))
    ]
    test = [{**row, "label": "tool" if row["source"] == "mail" else row["label"]} for row in rows[:60]]
    test[0] = {**test[0], "text": EVIL, "label": "tool"}
    words = (
        f"data.train={write_rows(folder / 'train.jsonl', rows[60:])}",
        f"data.test={write_rows(folder / 't.jsonl', test)}",
    )
    return train_tiny(recipe_file, folder / "run", *words)[0]


@pytest.fixture
def invoked(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Words -> the JSON that the command prints."""

    def run(*words: str | Path) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.run([*map(str, words), "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return run


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The message with which a command is refused."""
    capsys.readouterr()
    assert cli.run([*map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return " ".join(captured.err.split())


def scored(predictions: list[dict[str, Any]], references: list[str]) -> ScoredRows:
    rows = [{"text": "word " * i, "label": label} for i, label in enumerate(references, 1)]
    metrics = TASK.metrics(predictions, references)
    return ScoredRows(TASK, [*map(str, range(1, len(rows) + 1))], rows, predictions, references, metrics)


def test_report_has_what_the_run_saved(run_with_sources: Path, invoked: Invoke, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in run_with_sources.rglob("*") if file.is_file()}
    values = invoked("report", run_with_sources, "--out", tmp_path / "page.html")
    assert {file: file.read_bytes() for file in run_with_sources.rglob("*") if file.is_file()} == before
    result = Run(run_with_sources).result()
    accuracy = values["scores"]["accuracy"]
    assert (accuracy["value"], accuracy["before"]) == (result["test"]["accuracy"], result["before"]["accuracy"])
    assert 0 <= accuracy["low"] < accuracy["value"] < accuracy["high"] <= 1
    assert values["mistakes"]["wrong"] == round(60 * (1 - accuracy["value"])) > 0
    confidences = [row["confidence"] for row in values["mistakes"]["rows"]]
    assert confidences == sorted(confidences, reverse=True)
    assert any(row["text"] == EVIL for row in values["mistakes"]["rows"])
    counts = {(one["reference"], one["prediction"]): one["number"] for one in values["confusions"]["counts"]}
    assert sum(counts.values()) == 60
    assert sum(n for (one, two), n in counts.items() if one != two) == values["mistakes"]["wrong"]
    assert sum(one["number"] for one in values["calibration"]["bins"]) == 60
    assert sum(one["rows"] for one in values["lengths"]["groups"]) == 60
    assert values["curve"]["validation"]
    assert values["curve"]["train"]
    page = (tmp_path / "page.html").read_text("utf-8")
    assert EVIL not in page
    assert "&lt;script&gt;document.title" in page
    with browsed(tmp_path / "page.html", num_charts=6) as browser:
        assert browser.title == "Run run · pefttools"
        assert EVIL in browser.find_element("id", "mistakes").text
        with on_phone(browser):
            assert browser.execute_script("return document.documentElement.scrollWidth") == 420


def test_report_goes_into_the_run_folder(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    capsys.readouterr()
    assert cli.run(["report", str(tmp_path / "run"), "--no-texts"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "expected calibration error" in out
    assert f"page: {tmp_path / 'run' / 'report.html'}" in out
    assert "word1" not in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert Run.open(tmp_path / "run").finished


def test_runs_without_a_report(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no run here" in refused(capsys, "report", tmp_path / "nothing")
    shutil.copytree(finished_run, tmp_path / "run", ignore=NO_HASHES)
    (tmp_path / "run" / "predictions.parquet").unlink()
    assert "this run has no predictions.parquet" in refused(capsys, "report", tmp_path / "run")
    message = refused(capsys, "report", finished_run, "--out", tmp_path / "a.md")
    assert "a.md must end with .html" in message


def test_errors_lists_the_most_confident_mistakes(
    run_with_sources: Path, invoked: Invoke, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = invoked("evaluate", run_with_sources, "--errors", "3")
    own = Run(run_with_sources).scored_rows()
    assert own is not None
    texts = dict(zip(own.ids, own.rows, strict=True))
    assert len(values["errors"]["rows"]) == 3
    for row in values["errors"]["rows"]:
        assert row["text"] == texts[row["id"]]["text"]
        assert row["reference"] == texts[row["id"]]["label"] != row["prediction"]
    assert values["errors"]["wrong"] == round(60 * (1 - values["accuracy"]))
    monkeypatch.setenv("COLUMNS", "140")
    assert cli.run(["evaluate", str(run_with_sources), "--errors", "3"]) == 0
    out = capsys.readouterr().out
    assert f"{values['errors']['wrong']} of 60 rows are wrong; the worst 3" in out
    assert values["errors"]["rows"][0]["text"][:20] in out


def test_by_gives_every_metric_of_every_group(
    run_with_sources: Path, invoked: Invoke, capsys: pytest.CaptureFixture[str]
) -> None:
    values = invoked("evaluate", run_with_sources, "--by", "source")
    found = {one["group"]: one for one in values["by"]["groups"]}
    assert {name: one["rows"] for name, one in found.items()} == {"web": 20, "book": 20, "mail": 20}
    for one in found.values():
        assert one["scores"].keys() == {"accuracy", "f1"}
        assert all(v["low"] <= v["value"] <= v["high"] for v in one["scores"].values())
    mean = sum(one["scores"]["accuracy"]["value"] * one["rows"] for one in found.values()) / 60
    assert mean == pytest.approx(values["accuracy"])
    gap = values["by"]["gap"]
    assert gap["worst"] == "mail"
    ends = [found[gap[side]]["scores"]["accuracy"]["value"] for side in ("best", "worst")]
    assert gap["value"] == pytest.approx(ends[0] - ends[1])
    assert gap["differs"]
    assert 0 < gap["low"] < gap["value"] <= gap["high"]
    assert cli.run(["evaluate", str(run_with_sources), "--by", "source"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "is more than" not in out
    assert "(95% interval" in out
    assert "more than chance explains" in out


def test_by_a_field_by_length_and_on_another_file(run_with_sources: Path, invoked: Invoke, tmp_path: Path) -> None:
    labels = invoked("evaluate", run_with_sources, "--by", "label")["by"]["groups"]
    own = Run(run_with_sources).scored_rows()
    assert own is not None
    assert {one["group"]: one["rows"] for one in labels} == Counter(row["label"] for row in own.rows)
    lengths = invoked("evaluate", run_with_sources, "--by", "length")["by"]["groups"]
    assert len(lengths) == 4
    assert sum(one["rows"] for one in lengths) == 60
    starts = [int(one["group"].split(" to ")[0]) for one in lengths]
    assert starts == sorted(starts)
    rows = [{**row, "language": "en" if i % 2 else None} for i, row in enumerate(make_rows(40, seed=8))]
    file = write_rows(tmp_path / "more.jsonl", rows)
    more = invoked("evaluate", run_with_sources, f"data.test={file}", "--by", "language", "--errors", "2")
    assert {one["group"]: one["rows"] for one in more["by"]["groups"]} == {"en": 20, "(none)": 20}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--errors", "0"), "--errors: must be at least 1, got 0"),
        (("--errors", "-3"), "--errors: must be at least 1, got -3"),
        (("--by", "sorce"), "--by: unknown column 'sorce'; did you mean 'source'? Known: text, label, source"),
        (("--by", "number"), "--by: 'number' has 60 different values on 60 rows, so that almost every row would be a"),
        (("--by", "text"), "--by: 'text' has 60 different values on 60 rows"),
        (("--by", "same"), "--by: 'same' is 'x' for all 60 rows, so there is nothing to compare"),
        (("--by", "source", "--perturb", "case"), "--perturb: cannot be combined with --errors or --by"),
    ],
)
def test_mistaken_words(
    run_with_sources: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "evaluate", run_with_sources, *words)


def test_by_a_column_of_a_file_that_has_changed(
    run_with_sources: Path, tmp_path: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "source": "web" if i % 2 else "book"} for i, row in enumerate(make_rows(60, seed=6))]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    run, _ = train_tiny(recipe_file, tmp_path / "run", f"data.train={file}", "train.epochs=0.5")
    write_rows(file, rows[:30])
    message = refused(capsys, "evaluate", run, "--by", "source")
    assert "rows are no longer in" in message
    assert "restore the file, or score it as it is now with data.test=" in message
    file.unlink()
    message = refused(capsys, "evaluate", run, "--by", "source")
    assert "--by: 'source' is not a field of the saved rows, and their file cannot be read" in message


def test_calibration_by_hand() -> None:
    stated = [{"prediction": "a", "probabilities": {"a": p, "b": 1 - p}} for p in (0.95, 0.95, 0.75, 0.75)]
    found = calibration.reliability(scored(stated, ["a", "b", "a", "a"]))
    assert found is not None
    assert [(one["number"], one["accuracy"]) for one in found["bins"]] == [(2, 1.0), (2, 0.5)]
    assert found["ece"] == pytest.approx((0.05 + 0.95 + 2 * 0.25) / 4)  # fewer predictions than bins
    assert found["brier"] == pytest.approx((0.05**2 + 0.95**2 + 2 * 0.25**2) / 4)
    assert calibration.reliability(scored([{"prediction": "a"}] * 2, ["a", "b"])) is None


def test_a_calibrated_model_has_a_small_error() -> None:
    draw = np.random.default_rng(0)
    p = draw.uniform(0.5, 1.0, 4000)
    labels = np.where(draw.random(4000) < p, "a", "b").tolist()
    stated = [{"prediction": "a", "probabilities": {"a": one, "b": 1 - one}} for one in p.tolist()]
    found = calibration.reliability(scored(stated, labels))
    assert found is not None
    assert found["ece"] < 0.03


def test_confident_mistakes_come_first() -> None:
    stated = [{"prediction": "a", "probabilities": [p, 1 - p]} for p in (0.6, 0.9, 0.7, 0.8)]
    found = mistakes.worst(scored(stated, ["b", "b", "a", "b"]), 2)
    assert [row["id"] for row in found["rows"]] == ["2", "4"]
    assert (found["wrong"], found["scored"], found["has_degrees"]) == (3, 4, False)
    assert mistakes.worst(scored(stated, ["a"] * 4), 2)["rows"] == []


def test_intervals_of_gaps_cover() -> None:
    """Two groups of equal quality differ significantly in at most about 5% of the cases."""
    draw, number, found = np.random.default_rng(1), 200, 0
    for _ in range(number):
        ends = []
        for size in (40, 90):
            values = (draw.random(size) < 0.8).astype(float)
            interval = intervals.of_values(values.tolist(), float(values.mean()), size, (0.0, 1.0))
            assert interval is not None
            ends.append((float(values.mean()), interval))
        low, high = intervals.of_difference(ends[0][0], ends[0][1], ends[1][0], ends[1][1])
        found += not low <= 0 <= high
    assert found / number <= 0.075


def test_groups_of_numbers_and_of_many_values() -> None:
    names = groups.group_names("age", [str(i % 30) for i in range(120)])
    assert set(Counter(names).values()) <= set(range(25, 38))
    assert bins.equal_sized([1, 1, 1, 1, 9], 4)[0] == ["1", "9"]
    stated = [{"prediction": "a"}] * 200
    found = groups.by_groups(scored(stated, ["a", "b"] * 100), "site", [f"site {i % 40}" for i in range(200)])
    assert len(found["groups"]) == groups.MOST
    assert found["groups"][-1]["group"] == "21 other values"
    assert sum(one["rows"] for one in found["groups"]) == 200
    assert found["gap"] is None


def test_confusion_chart_keeps_the_classes_with_most_errors() -> None:
    classes = [f"class {i:03d}" for i in range(50)]
    counts = [{"reference": name, "prediction": name, "number": 5} for name in classes]
    counts.append({"reference": classes[49], "prediction": classes[48], "number": 3})
    shown = shown_classes({"classes": classes, "counts": counts})
    assert len(shown) == 30
    assert shown[-2:] == classes[48:]
    assert len({*short(["a very long class name 1", "a very long class name 2"]).values()}) == 2
