"""`explain` on every task through the command line, and its attributions on models whose reasons are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import KEYS, make_rows, make_tokenizer, train_tiny, write_recipe, write_rows
from sample_runs import SampleRuns

from pefttools import cli
from pefttools.inference import token_words
from pefttools.inference.explanation import frequent_words
from pefttools.tasks import tasks

WITHOUT = {"seq2seq", "masked_lm", "masked_lm_pairs", "prompted_classification"}


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> SampleRuns:
    return SampleRuns(tmp_path_factory, bases)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[Any], str]]:
    """Words of `explain` -> exit code, explanations and messages."""

    def command(*words: object) -> tuple[int, list[Any], str]:
        code = cli.run(["explain", *map(str, words), "--json"])
        captured = capsys.readouterr()
        return code, [json.loads(line) for line in captured.out.splitlines()], " ".join(captured.err.split())

    return command


@pytest.mark.slow
@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
@pytest.mark.parametrize("name", tasks.names())
def test_every_task_is_explained_or_refused(name: str, method: str, sample_run: SampleRuns, call: Any) -> None:
    run = sample_run(name)
    code, found, err = call(run, "--rows", 2, "--method", method)
    if name in WITHOUT:
        assert code == 2
        assert "has no answer that one number scores" in err
        return
    assert code == 0, err
    assert found or name in ("token_classification", "question_answering")
    for one in found:
        assert one["words"]
        if method == "occlusion":
            assert one["completeness_error"] is None
            continue
        change = one["score"] - one["baseline"]
        total = sum(word["value"] for word in one["words"])
        assert abs(total - change) == pytest.approx(one["completeness_error"] * max(abs(change), 1e-3), abs=1e-5)
        assert one["completeness_error"] <= 0.01
        assert all(abs(word["value"]) < 1e-6 for word in one["words"] if word["is_special"])


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_the_word_that_decides_is_found(method: str, finished_run: Path, tmp_path: Path, call: Any) -> None:
    """In 100 of 100 texts of a model that reads one word, this word contributes most.

    If it is hidden, the model guesses, so that by occlusion another word may seem to be for the class in a few texts.
    """
    rows = make_rows(100, seed=99)
    file = write_rows(tmp_path / "rows.jsonl", rows)
    code, found, err = call(finished_run, file, "--method", method)
    assert code == 0, err
    assert len(found) == len(rows)
    known = {word for words in KEYS.values() for word in words}
    right = 0
    for row, one in zip(rows, found, strict=True):
        assert one["answer"] == f"class {row['label']}"
        best = max((word for word in one["words"] if not word["is_special"]), key=lambda word: word["value"])
        right += best["word"] in known & {*row["text"].split()}
    assert right >= {"integrated_gradients": 100, "occlusion": 97}[method], right
    frequent = frequent_words(found)
    for label, words in KEYS.items():
        assert {one["word"] for one in frequent[f"class {label}"][: len(words)]} == {*words}


def test_a_text_that_is_cut_or_unknown_is_told(
    finished_run: Path, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found, _ = call(finished_run, "--text", "apple " * 100, "--text", "apple", "--method", "occlusion")
    assert [one.get("is_cut") for one in found] == [True, None]
    assert cli.run(["explain", str(finished_run), "--text", "apple " * 100, "--text", "😀"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the text was cut, and the model read these words alone" in shown
    assert "the tokenizer knows none of these words" in shown


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "llama"])
@pytest.mark.parametrize("strategy", ["lora", "prompt", "prefix", "full"])
def test_other_bases_and_strategies(
    family: str, strategy: str, bases: Any, rows_file: Path, tmp_path: Path, call: Any
) -> None:
    """The embeddings are substituted where the model looks up its ids, also behind virtual tokens."""
    if (family, strategy) == ("llama", "prompt"):
        pytest.skip("refused for classification")
    train = {"epochs": 0.3, "learning_rate": 0.003}
    recipe = write_recipe(
        tmp_path / "r.yaml", bases(family), rows_file, train=train, strategy=strategy,
        task={"name": "text_classification", "max_length": 32},
    )  # fmt: skip
    run, _ = train_tiny(recipe, tmp_path / "run")
    code, found, err = call(run, "--text", "word1 apple word2 saw")
    assert code == 0, err
    assert found[0]["completeness_error"] <= 0.01
    assert [word["word"] for word in found[0]["words"] if not word["is_special"]] == ["word1", "apple", "word2", "saw"]


@pytest.mark.slow
def test_encoder_decoders_are_refused(bases: Any, rows_file: Path, tmp_path: Path, call: Any) -> None:
    """Their decoder reads the words again, so that a text of padding tokens would still be read."""
    task = {"name": "text_classification", "max_length": 32}
    recipe = write_recipe(tmp_path / "r.yaml", bases("bart"), rows_file, train={"epochs": 0.1}, task=task)
    run, _ = train_tiny(recipe, tmp_path / "run")
    code, found, err = call(run, "--text", "word1 apple")
    assert (code, found) == (2, [])
    assert "is an encoder-decoder" in err


def test_a_class_can_be_chosen(finished_run: Path, call: Any) -> None:
    text = ("--text", "word1 apple word2")
    _, (own,), _ = call(finished_run, *text)
    _, (other,), _ = call(finished_run, *text, "--of", "tool")
    assert own["answer"] == "class fruit"
    assert own["prediction"] == other["prediction"] == "fruit"
    assert other["answer"] == "class tool"
    values = {one["answer"]: {word["word"]: word["value"] for word in one["words"]} for one in (own, other)}
    assert values["class fruit"]["apple"] > 0 > values["class tool"]["apple"]
    assert own["is_right"] is None


@pytest.mark.slow
def test_next_tokens_follow_each_other(sample_run: SampleRuns, call: Any) -> None:
    code, found, err = call(sample_run("causal_lm"), "--rows", 1, "--tokens", 3)
    assert code == 0, err
    assert [one["place"] for one in found] == [*range(1, len(found) + 1)]
    lengths = [sum(len(word["word"]) > 0 for word in one["words"]) for one in found]
    assert lengths == sorted(lengths)
    assert all(one["answer"].startswith("next token ") for one in found)


def test_the_page_shows_mistakes_first(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": "word1 apple <b>", "label": "fruit"}, {"text": "word1 apple saw saw", "label": "colour"}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    page = tmp_path / "page.html"
    assert cli.run(["explain", str(finished_run), str(file), "--out", str(page)]) == 0
    capsys.readouterr()
    text = page.read_text()
    assert "Explanations of run" in text
    assert "<b>" not in text.partition("<main>")[2]
    assert cli.run(["explain", str(finished_run), "--rows", "3", "--out", str(page)]) == 0
    assert "3 answers by integrated gradients" in page.read_text()
    assert cli.run(["explain", str(finished_run), "--text", "word1 apple"]) == 0
    out = capsys.readouterr().out
    assert "row 1: class fruit" in out
    assert "completeness error" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name one of FILE, --text or --rows"),
        (["--rows", 1, "--text", "a"], "got --text, --rows"),
        (["--rows", 0], "must be at least 1"),
        (["--text", "apple", "--of", "fruits"], "did you mean 'fruit'"),
        (["--text", "apple", "--tokens", 2], "generates no tokens"),
        (["--text", ""], "row 1"),
        (["--text", "apple", "--out", "page.txt"], "must end with .html"),
        (["nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_wrong_options_are_refused(words: list[Any], message: str, finished_run: Path, call: Any) -> None:
    code, found, err = call(finished_run, *words)
    assert code == 2
    assert message in err
    assert found == []


def test_words_of_tokens() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("word1 apple")["input_ids"]
    found = token_words.words(ids, tokenizer)
    assert [(one.text, one.is_special) for one in found] == [
        ("[CLS]", True), ("word1", False), ("apple", False), ("[SEP]", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("token", "text", "before", "has_spaces", "begins"),
    [
        ("##ing", "##ing", "walk", False, False),
        ("walk", "walk", "a", False, True),
        ("ing", "ing", "walk", True, False),
        ("Ġwalk", " walk", "a", True, True),
        ("?", "?", "walk", True, True),
        ("中", "中", "国", True, True),
        ("a", "a", "国", True, True),
        ("\ufffd", "\ufffd", "\ufffd", True, False),
    ],
)
def test_where_words_begin(token: str, text: str, before: str, has_spaces: bool, begins: bool) -> None:
    assert token_words._begins(token, text, before, has_spaces) == begins
