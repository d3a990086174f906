"""`evaluate --perturb`: scores on rows with noise, with paired intervals; targets follow the words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_rows, train_tiny, write_recipe, write_rows

from pefttools import cli
from pefttools.bench import robustness, stats
from pefttools.data import synonym_lists, tags
from pefttools.data.units import Units
from pefttools.errors import UserError
from pefttools.inference import perturbation
from pefttools.inference.perturbation import Case, Perturbed, Punctuation, Scored, Synonyms
from pefttools.inference.scoring import evaluate_run
from pefttools.tasks import tasks
from pefttools.training.run import Run

SYNONYMS = Path(__file__).parent / "synonym_groups.txt"
TASK = tasks.get("text_classification")(labels=("a", "b"), pair=False)  # type: ignore[call-arg]
Invoke = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluated(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Run folder and words -> the JSON of `pefttools evaluate`."""

    def run(*words: str | Path) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.run(["evaluate", *map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def own_synonyms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synonyms without a download."""
    groups = synonym_lists._groups(str(SYNONYMS))
    monkeypatch.setattr(synonym_lists, "_groups", lambda *source: groups)


def test_words_are_parsed() -> None:
    assert perturbation.parse(["typos=0.2,0.05,0.2", "case"]) == {"typos": (0.05, 0.2), "case": (0.1, 0.2, 0.4)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--perturb", "typo=0.1"], "--perturb: unknown perturbation 'typo'; did you mean 'typos'?"),
        (
            ["--perturb", "typos=0"],
            "--perturb: typos has the strength '0'; write the share of words to change, above 0",
        ),
        (["--perturb", "typos=10%"], "--perturb: typos has the strength '10%'"),
        (["--perturb", "typos=0.1,"], "--perturb: typos has the strength ''"),
        (["--perturb", "typos=nan"], "--perturb: typos has the strength 'nan'"),
        (["--perturb", "word_drop=1"], "--perturb: word_drop has the strength '1'; write the share of words to change"),
        (["--perturb", "case", "--perturb", "case=0.1"], "--perturb: case is given twice; write its strengths as"),
        (["--picture", "a.svg"], "--picture: shows scores on perturbed rows; add --perturb, such as --perturb typos"),
        (["--perturb", "case", "--picture", "a.pdf"], "--picture: a.pdf must end with .svg or .png"),
        (["--perturb", "case", "--picture", "no/a.svg"], "--picture: no/a.svg is not a file in an existing folder"),
    ],
)
def test_invalid_words_are_refused_before_anything_is_scored(
    words: list[str], message: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.run(["evaluate", str(finished_run), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_case_punctuation_and_synonyms_by_hand(own_synonyms: None) -> None:
    one = Case(probability=1)
    assert {one.edited("McX", random.Random(seed)) for seed in range(30)} == {"mcx", "MCX", "Mcx"}
    assert one.edited("42", random.Random(0)) == "42"
    assert one.edit(Units.of(["1", "北"]), random.Random(0)) is None
    mark = Punctuation(probability=1)
    assert mark.rewrite('He said: "no"...', random.Random(0)) in {f"He{m} said no" for m in ",.;:!?"}
    assert mark.rewrite("天,气。", random.Random(0)) not in (None, "天,气。")
    assert mark.edit(Units.of(["...", "!"]), random.Random(0)) is None  # a text never becomes empty
    assert Synonyms(probability=1).rewrite("Red saw, the word", random.Random(0)) in (
        "Crimson cutter, the word",
        "Scarlet cutter, the word",
    )


@pytest.mark.parametrize("name", perturbation.KINDS)
def test_share_of_changed_words_is_the_strength(name: str, own_synonyms: None) -> None:
    units = Units.of([f"word{i % 14 + 1}" for i in range(10_000)])
    pieces = perturbation.KINDS[name].edit(0.1).edit(units, random.Random(0)) or []
    changed = 10_000 - sum(piece.text == units.texts[piece.source] for piece in pieces)
    assert changed / 10_000 == pytest.approx(0.1, abs=0.01)


@pytest.mark.slow
def test_scores_drop_with_strength(
    finished_run: Path, evaluated: Invoke, own_synonyms: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(file.name for file in finished_run.iterdir())
    chosen = ["--perturb", "typos=0.2,0.9", "--perturb", "word_drop=0.2,0.9", "--perturb", "synonyms", "--perturb=case"]
    values = evaluated(finished_run, *chosen, "--picture", tmp_path / "perturb.svg")
    plain = evaluate_run(finished_run)
    assert (values["score"], values["rows"], values["metric"]) == (plain["accuracy"], plain["rows"], "accuracy")
    found = {(one["perturbation"], one["strength"]): one for one in values["perturbations"]}
    assert [*found] == [
        *(("typos", 0.2), ("typos", 0.9), ("word_drop", 0.2), ("word_drop", 0.9)),
        *((name, strength) for name in ("synonyms", "case") for strength in (0.1, 0.2, 0.4)),
    ]
    for one in found.values():
        assert one["drop"] == pytest.approx(plain["accuracy"] - one["score"])
        assert one["low"] <= one["drop"] <= one["high"]
        assert 0 < one["changed_rows"] <= values["rows"]
    for name in ("typos", "word_drop"):
        assert found[name, 0.9]["drop"] > found[name, 0.2]["drop"] - 1e-9
        assert found[name, 0.9]["low"] > 0
    assert "<svg" in (tmp_path / "perturb.svg").read_text("utf-8")
    assert evaluated(finished_run, *chosen) == values
    assert sorted(file.name for file in finished_run.iterdir()) == before
    capsys.readouterr()
    assert cli.run(["evaluate", str(finished_run), "--perturb", "typos=0.2", "--picture", str(tmp_path / "a.png")]) == 0
    table = capsys.readouterr().out
    assert f"accuracy on {values['rows']} test rows, seed 0" in " ".join(table.split())
    assert f"{100 * found['typos', 0.2]['drop']:.2f}" in table
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_interval_is_that_of_the_paired_bootstrap() -> None:
    references = ["a", "b"] * 20
    right = [{"prediction": one} for one in references]
    wrong = [{"prediction": "a"} for _ in references[:10]] + right[10:]
    metrics = [{"accuracy": 1.0}, {"accuracy": 35 / 40}]
    plain, noisy = (
        Scored("", s, 0, m, p, references) for s, m, p in zip((0.0, 0.1), metrics, (right, wrong), strict=True)
    )
    scored = Perturbed(TASK, "test", 0, plain, [noisy])
    [one] = robustness.summary(scored)["perturbations"]
    assert one["drop"] == pytest.approx(0.125)
    differences = np.array([float(p != r) for p, r in zip([p["prediction"] for p in wrong], references, strict=True)])
    error = differences.std() / np.sqrt(40)
    assert one["high"] - one["drop"] == pytest.approx(2.023 * error, rel=0.05)  # t with 39 degrees of freedom
    tables = {n: np.array([[float(q["prediction"] == r) for q, r in zip(p, references, strict=True)]])
              for n, p in (("plain", right), ("perturbed", wrong))}  # fmt: skip
    low, high = stats.differences(tables)["plain", "perturbed"].interval()
    assert (one["low"], one["high"]) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.slow
@pytest.mark.parametrize(
    "task_name", ["token_classification", "question_answering", "relation_extraction", "regression", "seq2seq"]
)
def test_targets_follow_in_every_task(
    task_name: str, bases: Callable[[str], Path], evaluated: Invoke, tmp_path: Path
) -> None:
    cls = tasks.get(task_name)
    rows = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in cls.samples] * 4)
    data = {"validation": str(rows), "test": str(rows), "deduplicate": False}
    task = {"name": task_name, "max_length": 32, **cls.sample_settings}
    family = {"AutoModelForSeq2SeqLM": "bart"}.get(cls.auto_class, "bert")
    file = write_recipe(tmp_path / "r.yaml", bases(family), rows, data=data, task=task, train={"epochs": 1})
    run, _ = train_tiny(file, tmp_path / "run")
    values = evaluated(run, "--perturb", "typos=0.9", "--perturb", "word_drop=0.5")
    assert values["metric"] == cls.primary
    assert all(one["changed_rows"] > 0 for one in values["perturbations"])
    assert all(one["low"] <= one["drop"] <= one["high"] for one in values["perturbations"])
    fitted, own = Run(run).recipe().task, Run(run).scored_rows()
    assert own is not None
    edit = perturbation.KINDS["typos"].edit(0.9)
    noisy = list(perturbation.perturbed(own.rows, fitted, edit, "0\ntypos"))
    assert noisy != own.rows
    for row, other in zip(own.rows, noisy, strict=True):
        if task_name == "token_classification":
            assert len(other["tokens"]) == len(other["tags"])
            assert [(s.type, s.end - s.start) for s in tags.spans(fitted.reference(other))] == [
                (s.type, s.end - s.start) for s in tags.spans(fitted.reference(row))
            ]
        else:
            assert fitted.reference(other) == fitted.reference(row)


@pytest.mark.slow
def test_tasks_that_learn_the_text_itself_are_refused(
    bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": row["text"]} for row in make_rows(40)])
    file = write_recipe(tmp_path / "r.yaml", bases("bert"), rows, task="masked_lm", train={"epochs": 1})
    run, _ = train_tiny(file, tmp_path / "run")
    capsys.readouterr()
    assert cli.run(["evaluate", str(run), "--perturb", "case"]) == 2
    assert "--perturb: task=masked_lm has no text that can change" in " ".join(capsys.readouterr().err.split())


def test_a_perturbation_without_effect_warns(finished_run: Path, capsys: pytest.CaptureFixture[str], own_synonyms: None,
                                             tmp_path: Path) -> None:  # fmt: skip
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "1 2 3", "label": "fruit"}, {"text": "4 5", "label": "tool"}])
    capsys.readouterr()
    assert cli.run(["evaluate", str(finished_run), f"data.test={rows}", "--perturb", "synonyms=0.5"]) == 0
    assert "--perturb: synonyms=0.5 changes none of the 2 rows" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="accepts overrides of data only"):
        perturbation.score(finished_run, {"case": (0.1,)}, ["train.epochs=2"])
