"""`compare`: scores, paired tests and disagreements on shared rows; what cannot be compared is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from browsing import browsed, on_phone, prefer, wait_until
from conftest import NO_HASHES, make_rows, train_tiny, write_recipe, write_rows
from scipy import stats

from pefttools import cli
from pefttools.analysis import charts, pages, sentences, terminal
from pefttools.analysis.shared_rows import _matched
from pefttools.bench import units
from pefttools.cli import display
from pefttools.tasks import _row_scores

Invoke = Callable[..., dict[str, Any]]
EVIL = "<script>document.title = 'broken'</script> & <b>bold</b>"
SHORT = ("train.epochs=0.3",)


@pytest.fixture(scope="module")
def worse_run(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Path:
    """A run of the same rows that was stopped early in training, so that it makes mistakes."""
    slow = ("strategy=full", "train.learning_rate=0.0003", "train.head_lr_scale=1")
    return train_tiny(recipe_file, tmp_path_factory.mktemp("worse") / "worse", *slow, *SHORT)[0]


@pytest.fixture(scope="module")
def other_split(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Path:
    """A run whose test rows are others, some of which are shared."""
    return train_tiny(recipe_file, tmp_path_factory.mktemp("split") / "split", "data.split_seed=3", *SHORT)[0]


@pytest.fixture
def compared(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Words -> the JSON of `pefttools compare`."""

    def run(*words: str | Path) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.run(["compare", *map(str, words), "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return run


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The message with which `compare` refuses these words."""
    capsys.readouterr()
    assert cli.run(["compare", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return " ".join(captured.err.split())


def test_pair_agrees_with_scipy(finished_run: Path, worse_run: Path, compared: Invoke) -> None:
    values = compared(finished_run, worse_run)
    right = []
    for run in (finished_run, worse_run):
        table = pyarrow.parquet.read_table(run / "predictions.parquet")
        both = zip(table["prediction"].to_pylist(), table["reference"].to_pylist(), strict=True)
        right.append([prediction == reference for prediction, reference in both])
    only_first = sum(a and not b for a, b in zip(*right, strict=True))
    only_second = sum(b and not a for a, b in zip(*right, strict=True))
    (pair,) = values["pairs"]
    assert only_first > only_second
    assert (pair["mcnemar"]["only_first"], pair["mcnemar"]["only_second"]) == (only_first, only_second)
    assert pair["mcnemar"]["p"] == pytest.approx(stats.binomtest(only_first, only_first + only_second).pvalue)
    assert pair["mcnemar"]["p_holm"] == pair["mcnemar"]["p"]
    differences = [float(a) - float(b) for a, b in zip(*right, strict=True)]
    assert pair["difference"] == pytest.approx(sum(differences) / len(differences))
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval()
    assert (pair["low"], pair["high"]) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert [len(pair[f"{side}_right"]) for side in ("first", "second")] == [only_first, only_second]
    assert all(row["predictions"][pair["first"]] == row["reference"] for row in pair["first_right"])
    assert pair["is_shown"]
    assert values["settings"]["strategy.name"] == {"run": "lora", "worse": "full"}
    assert values["settings"]["strategy.rank"] == {"run": 8}
    assert values["rows"] == len(differences)
    assert {row["class"] for row in values["classes"]["rows"]} == {"fruit", "tool", "colour"}
    for run, of_run in zip(values["runs"], right, strict=True):
        one = run["scores"]["accuracy"]
        assert one["value"] == pytest.approx(sum(of_run) / len(of_run))
        assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1
        assert run["curve"]["validation"]
        assert run["seconds"] > 0
        assert run["peak_bytes"] > 0


def test_terminal_shows_scores_tests_and_rows(
    finished_run: Path, worse_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    capsys.readouterr()
    assert cli.run(["compare", str(finished_run), str(worse_run)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "run is better than worse in accuracy by" in out
    assert "McNemar's p" in out
    assert "strategy.name lora full" in out
    assert "rows on which run is correct and worse is not" in out
    assert "`pefttools bench` measures it" in out
    text = json.loads((Path(finished_run) / "result.json").read_text())["recipe"]
    assert cli.run(["compare", str(finished_run), str(worse_run), "--no-texts"]) == 0
    assert "word1" not in capsys.readouterr().out, text


def test_only_shared_rows_are_compared(
    finished_run: Path, other_split: Path, compared: Invoke, capsys: pytest.CaptureFixture[str]
) -> None:
    values = compared(finished_run, other_split)
    texts = [set(pyarrow.parquet.read_table(run / "predictions.parquet")["text"].to_pylist())
             for run in (finished_run, other_split)]  # fmt: skip
    assert 0 < values["rows"] == len(texts[0] & texts[1]) < len(texts[0])
    assert [run["own_rows"] for run in values["runs"]] == [*map(len, texts)]
    (note,) = values["notes"]
    assert note.startswith(f"the runs were scored on different rows: run on {len(texts[0])} test rows, split on ")
    assert f"they are compared on the {values['rows']} rows that they share" in note
    assert cli.run(["compare", str(finished_run), str(other_split)]) == 0
    assert "the runs were scored on different rows" in " ".join(capsys.readouterr().err.split())


def test_copies_of_a_row_are_matched_in_order() -> None:
    assert _matched([[b"a", b"b", b"a", b"a"], [b"a", b"c", b"a"]]) == [[0, 2], [0, 2]]


def test_number_of_runs(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "compare: needs two or more runs, but none is named" in refused(capsys)
    assert f"only {finished_run} is named; for a single run, use `pefttools report RUN`" in refused(
        capsys, finished_run
    )
    (tmp_path / "link").symlink_to(finished_run)
    message = refused(capsys, finished_run, tmp_path / "link")
    assert f"compare: {finished_run} is named twice; name two or more different runs" in message


def test_runs_that_cannot_be_read(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished, old, damaged = (tmp_path / name for name in ("unfinished", "old", "damaged"))
    shutil.copytree(finished_run, unfinished)
    (unfinished / "result.json").unlink()
    assert f"{unfinished}: this run is not finished; finish it with `pefttools train" in refused(
        capsys, finished_run, unfinished
    )
    shutil.copytree(finished_run, old, ignore=NO_HASHES)
    (old / "predictions.parquet").unlink()
    assert f"{old}: this run has no predictions.parquet" in refused(capsys, finished_run, old)
    shutil.copytree(finished_run, damaged)
    (damaged / "predictions.parquet").write_bytes(b"no")
    assert "predictions.parquet has changed since it was written" in refused(capsys, finished_run, damaged)
    assert "there is no run here" in refused(capsys, finished_run, tmp_path / "nothing")


def test_predictions_that_do_not_give_the_score(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished_run, tmp_path / "edited", ignore=NO_HASHES)
    file = tmp_path / "edited" / "result.json"
    result = json.loads(file.read_text())
    result["test"]["accuracy"] = 0.125
    file.write_text(json.dumps(result))
    message = refused(capsys, finished_run, tmp_path / "edited")
    assert "but result.json says 0.125; the run was made by another version or changed" in message


def test_other_tasks_and_classes(
    finished_run: Path, recipe_file: Path, bases: Callable[[str], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = write_rows(tmp_path / "rows.jsonl", [{**row, "label": i / 60} for i, row in enumerate(make_rows(60))])
    train = {"epochs": 0.5}
    file = write_recipe(tmp_path / "r.yaml", bases("bert"), rows, task={"name": "regression"}, train=train)
    numbers, _ = train_tiny(file, tmp_path / "numbers")
    message = refused(capsys, finished_run, numbers)
    assert "the runs have different tasks: run is text_classification, numbers is regression" in message
    food, _ = train_tiny(recipe_file, tmp_path / "food", "data.labels.fruit=food", *SHORT)
    message = refused(capsys, finished_run, food)
    assert "run and food have different classes: only run has 'fruit', only food has 'food'" in message


def test_other_metrics_and_rows(
    finished_run: Path, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets, _ = train_tiny(recipe_file, tmp_path / "sets", "task.multi_label=true", *SHORT)
    message = refused(capsys, finished_run, sets)
    assert "no row was scored by all of the runs (run on 91, sets on 91)" in re.sub(r"on \d+", "on 91", message)
    assert "have the same inputs but other targets: task.multi_label is False for run and True for sets" in message
    other = write_rows(tmp_path / "test.jsonl", make_rows(30, seed=99))
    away, _ = train_tiny(recipe_file, tmp_path / "away", f"data.test={other}", *SHORT)
    message = refused(capsys, finished_run, away)
    assert "no row was scored by all of the runs" in message
    assert "train the runs on the same data.test, or with the same data.split_seed" in message


@pytest.mark.slow
def test_metrics_with_other_settings_are_refused(
    bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"<e1>{row['text']}</e1> <e2>plum</e2>" for row in make_rows(90)]
    rows = [{"text": text, "label": ("Other", "A(e1,e2)", "A(e2,e1)")[i % 3]} for i, text in enumerate(texts)]
    task = {"name": "relation_extraction", "max_length": 32}
    file = write_recipe(
        tmp_path / "r.yaml", bases("bert"), write_rows(tmp_path / "rows.jsonl", rows), task=task, train={"epochs": 1}
    )
    runs = [train_tiny(file, tmp_path / name, f"task.other={name}")[0] for name in ("Other", "null")]
    message = refused(capsys, *runs)
    assert "Other and null measure f1 in different ways: task.other is 'Other' for Other and None for null" in message


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("page.txt", "--out: page.txt must end with .html, because a page is written there"),
        ("no/page.html", "--out: no/page.html is not a file in an existing folder; create the folder first"),
    ],
)
def test_places_for_the_page(out: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "a", "b", "--out", out)


def values_with(text: str) -> dict[str, Any]:
    """A comparison in which everything that comes from data is `text`."""

    def run(name: str, value: float) -> dict[str, Any]:
        points = [{"step": step, "score": value, "loss": 1.0} for step in (10, 20)]
        return {
            "name": name, "strategy": "lora", "seed": 0, "own_rows": 5, "own_score": value, "scored_on": "test",
            "scores": {"accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1}}, "steps": 20,
            "params": {"trainable": 10, "total": 100}, "seconds": 1.0, "peak_bytes": 2**20, "adapter_bytes": 2**20,
            "tokens_per_second": 5.0, "curve": {"validation": points, "train": [{"step": 10, "loss": 2.0}]},
        }  # fmt: skip

    row = {"id": text, "text": text, "reference": text, "predictions": {text: text, "b": text}}
    pair = {
        "first": text, "second": "b", "difference": 0.2, "low": 0.1, "high": 0.3, "p": 0.01, "p_holm": 0.01,
        "differs": True, "unit": "row", "mcnemar": {"only_first": 2, "only_second": 0, "p": 0.5, "p_holm": 0.5},
        "are_right_or_wrong": True, "first_right": [row], "first_right_count": 1, "second_right": [],
        "second_right_count": 0, "is_shown": True,
    }  # fmt: skip
    f1 = {text: 0.5, "b": 0.75}
    values = {
        "task": "text_classification", "metric": "accuracy", "metrics": ["accuracy"], "lower_is_better": False,
        "in_points": True, "rows": 5, "notes": [text], "runs": [run(text, 0.8), run("b", 0.6)], "pairs": [pair],
        "settings": {"data.train.source": {text: text, "b": "b"}}, "same_hardware": False,
        "classes": {"kind": "class", "rows": [{"class": text, "support": 5, "f1": f1, "spread": 0.25}]},
    }  # fmt: skip
    pair["verdict"] = sentences.of_pair(pair, values)
    return values


def test_page_escapes_texts_and_works_in_a_browser(tmp_path: Path) -> None:
    file = tmp_path / "compare.html"
    pages.write_comparison(values_with(EVIL), file)
    page = file.read_text("utf-8")
    assert EVIL not in page
    assert page.count("</script>") == 3
    outside = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)
    assert "://" not in outside
    assert not re.search(r"<[^>]+ (src|href)=\"(?!data:)", outside)
    with browsed(file, num_charts=5) as browser:
        assert browser.title == f"Comparison of {EVIL}, b · pefttools"
        assert EVIL in browser.find_element("css selector", "details td.long").get_attribute("textContent")
        browser.find_element("css selector", ".legend button").click()
        assert len(browser.find_elements("css selector", ".legend [aria-pressed=true]")) == 2
        title = "#scores .role-axis-title text"
        for scheme, color in (("dark", "#e6e8eb"), ("light", "#1c1e21")):
            prefer(browser, scheme)
            wait_until(lambda color=color: browser.find_element("css selector", title).get_attribute("fill") == color)
        with on_phone(browser):
            chart = browser.find_element("css selector", "#scores svg")
            wait_until(lambda: 300 < chart.size["width"] <= 400)
            assert browser.execute_script("return document.documentElement.scrollWidth") == 420


def test_terminal_shows_texts_of_data_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    values = values_with("a")
    values["pairs"][0]["first_right"][0] |= {"text": "[red]x[/red] \x1b[31m", "id": "[b]"}
    values["settings"] = {"data.train.source": {"a": "[/b].csv", "b": "b"}}
    display.parts(terminal.comparison(values))
    out = capsys.readouterr().out
    assert "[red]x[/red] \\x1b[31m" in out
    assert "\x1b[31m" not in out
    assert "[/b].csv" in out


def test_perplexity_is_resampled_without_texts() -> None:
    seen: list[Any] = []

    class Scorer:
        primary = "perplexity"

        @staticmethod
        def metrics(predictions: list[dict[str, Any]], references: list[Any]) -> dict[str, float]:
            seen.extend(predictions)
            return {"perplexity": float(sum(one["nll"] for one in predictions))}

    predictions = [{"nll": float(i), "num_targets": 1, "prediction": "long"} for i in range(4)]
    units.pseudo_values(Scorer(), predictions, ["a"] * 4, 6.0)
    assert seen
    assert not any("prediction" in one for one in seen)


def test_intervals_stay_inside_the_frame() -> None:
    values = values_with("a")
    for chart in (charts.scores, charts.differences):
        spec = chart(values, charts.look_of(["a", "b"])).to_dict()
        low, high = spec["layer"][-1]["encoding"]["x"]["scale"]["domain"]
        drawn = [
            row for part in (spec, *spec["layer"]) for row in part.get("data", {}).get("values", []) if "low" in row
        ]
        assert len({row["line"] for row in drawn}) == len(values["runs" if chart is charts.scores else "pairs"])
        assert all(low < row["low"] <= row["x"] <= row["high"] < high for row in drawn)


@pytest.mark.parametrize(
    ("prediction", "reference", "right", "error"),
    [
        ({"prediction": "a"}, "a", True, 0.0),
        ({"prediction": "a"}, "b", False, 1.0),
        ({"prediction": 2}, 2, True, 0.0),
        ({"prediction": 1.5}, 1.0, None, 0.5),
        ({"prediction": "The Cat."}, ["dog", "cat"], True, 0.0),
        ({"prediction": ""}, [], True, 0.0),
        ({"prediction": "a cat"}, [], False, 1.0),
        ({"prediction": ["a"], "probabilities": [0.9, 0.2]}, ["a", "b"], False, 0.5),
        ({"prediction": ["O", "B-X"]}, ["O", "O"], False, 0.5),
        ({"prediction": "is 4 ", "finish": "stop"}, "is  4", True, 0.0),
        ({"prediction": "is 4", "finish": "stop"}, "is 5", False, 0.5),
        ({"nll": 6.0, "num_targets": 3}, "text", None, 2.0),
    ],
)
def test_right_and_wrong_by_form(prediction: dict[str, Any], reference: Any, right: Any, error: float) -> None:
    assert _row_scores.is_right(prediction, reference) is right
    assert _row_scores.row_error(prediction, reference) == pytest.approx(error)


def test_answer_pattern_decides_what_is_right() -> None:
    prediction = {"prediction": "so 2 + 2 = 5, no: #### 4", "finish": "stop"}
    assert _row_scores.is_right(prediction, "2 + 2 #### 4", r"#### (\d+)")
    assert not _row_scores.is_right(prediction, "2 + 2 #### 4")
