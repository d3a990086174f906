"""back_translation: both models may be bases or finished runs; translations are computed once and cached."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_rows, write_recipe, write_rows
from tiny_bases import tied_language_model
from tiny_bases import write as write_base

from pefttools import cli
from pefttools.augmentations._translator import Translator, TranslatorSettings, open_translator
from pefttools.augmentations.back_translation import BackTranslation
from pefttools.augmentations.base import Context, copies
from pefttools.errors import UserError
from pefttools.recipe import recipes
from pefttools.sources.cache import cache_dir
from pefttools.tasks import tasks
from pefttools.training.preparation import prepare
from pefttools.training.run import Run

TASK = tasks.get("text_classification")(labels=("a", "b"), pair=False)  # type: ignore[call-arg]


@pytest.fixture(scope="module")
def seq2seq_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder-decoder with a vocabulary of words."""
    return write_base(tmp_path_factory.mktemp("bart") / "bart", "bart")


@pytest.fixture(scope="module")
def translating_run(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> Path:
    """A finished seq2seq run that has seen a few copies of short texts."""
    folder = tmp_path_factory.mktemp("translator")
    rows = [{"source": row["text"], "target": row["text"]} for row in make_rows(60)]
    task = {"name": "seq2seq", "max_new_tokens": 12, "num_beams": 2, "generate_rows": 2}
    file = write_recipe(
        folder / "t.yaml", bases("bart"), write_rows(folder / "rows.jsonl", rows), task=task, train={"epochs": 1}
    )
    assert cli.run(["train", str(file), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of every call of a translator."""
    calls: list[list[str]] = []
    plain = Translator.translate

    def translate(self: Translator, texts: Any, title: str, *more: Any) -> list[str]:
        calls.append(list(texts))
        return plain(self, texts, title, *more)

    monkeypatch.setattr(Translator, "translate", translate)
    return calls


@pytest.mark.slow
def test_texts_go_there_and_back_once(
    seq2seq_base: Path, translating_run: Path, counted: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = BackTranslation.model_validate(
        {"there": {"source": str(seq2seq_base), "max_new_tokens": 6}, "back": str(translating_run)}
    )
    texts = ["word1 word2 apple", "word3 saw", "red hammer word4"]
    bound = one.bind(Context([*texts, "  "]))
    assert bound._found is not None
    assert {*bound._found} == {*texts, "  "}
    there, back = counted
    assert there == sorted(texts)
    again = one.bind(Context(texts[:2]))
    assert len(counted) == 2  # read from the cache
    assert again._found == {text: bound._found[text] for text in texts[:2]}
    one.bind(Context([*texts, "word5 pear"]))
    assert counted[2] == ["word5 pear"]
    abroad = open_translator(one.there, "there").translate(sorted(texts), "x") if one.there else []
    assert back == [text for text in abroad if text]
    alone = [(open_translator(one.there, "there").translate([text], "x") if one.there else [])[0] for text in texts]
    assert sorted(alone) == sorted(abroad)  # a batch translates like single texts
    damaged = list(cache_dir().rglob("*.json"))
    files = [file for file in damaged if "word5 pear" in file.read_text("utf-8")]
    assert files
    for file in files:
        file.write_text(file.read_text("utf-8").replace("word", "wodr"), "utf-8")
    mended = one.bind(Context(texts))
    assert mended._found == {text: bound._found[text] for text in texts}
    number = len(counted)
    other = one.model_copy(update={"there": TranslatorSettings(source=str(seq2seq_base), max_new_tokens=5)})
    other.bind(Context(texts))
    assert len(counted) > number  # other settings, other translations


@pytest.mark.slow
def test_a_classifier_trains_on_back_translated_rows(
    seq2seq_base: Path, translating_run: Path, recipe_file: Path, tmp_path: Path
) -> None:
    settings = [
        f"augmentations.back_translation.there.source={seq2seq_base}",
        "augmentations.back_translation.there.max_new_tokens=6",
        f"augmentations.back_translation.back={translating_run}",
    ]
    short = ["train.epochs=1", "data.train_rows=30", *settings]
    assert cli.run(["train", str(recipe_file), *short, "--out", str(tmp_path / "run")]) == 0
    result = Run(tmp_path / "run").result()
    assert result["augmentations"] == ["back_translation"]
    assert 0 < result["data"]["augmented"] <= 30
    assert cli.run(["train", str(tmp_path / "run" / "recipe.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert Run(tmp_path / "again").result()["digest"] == result["digest"]
    ready = prepare(recipes.load(str(recipe_file), short).recipe)
    labels = {row["text"]: row["label"] for row in ready.splits.train}
    assert all(row["label"] in labels.values() for row in ready.added["back_translation"])


@pytest.mark.slow
def test_a_language_model_translates_by_its_prompt(tmp_path: Path, counted: list[list[str]]) -> None:
    model = tied_language_model(tmp_path / "lm")
    settings = {"source": str(model), "prompt": "word1 {text} word2", "max_new_tokens": 5}
    one = BackTranslation.model_validate({"there": settings, "back": settings})
    rows = [{"text": "apple pear", "label": "a"}, {"text": "saw", "label": "b"}]
    added = copies({"back_translation": one}, rows, TASK, 0)["back_translation"]
    assert counted[0] == ["apple pear", "saw"]
    assert all(row["text"].strip() for row in added)
    with pytest.raises(UserError, match=r"there: .* is a language model; describe the translation in `prompt`"):
        open_translator(TranslatorSettings(source=str(model), prefix="to German: "), "there")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("nowhere", "augmentations.back_translation.there: {there}: there is no such file or folder"),
        ("CLASSIFIER", "augmentations.back_translation.there: {there}: is a run of task=text_classification, which"),
        ("UNFINISHED", "augmentations.back_translation.there: {there}: this run is not finished"),
        ("BERT", "augmentations.back_translation.there: {there} is an encoder (bert)"),
        ("DAMAGED", "augmentations.back_translation.there: {there}: metrics.jsonl has changed since it was written"),
    ],
)
def test_models_that_do_not_translate_are_refused(
    there: str, message: str, bases: Callable[[str], Path], finished_run: Path, recipe_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "recipe.yaml").write_bytes((finished_run / "recipe.yaml").read_bytes())
    damaged = Path(shutil.copytree(finished_run, tmp_path / "damaged"))
    (damaged / "metrics.jsonl").write_text("")
    known = {"CLASSIFIER": finished_run, "UNFINISHED": unfinished, "BERT": bases("bert"), "DAMAGED": damaged}
    source = str(known.get(there, tmp_path / there))
    settings = [f"augmentations.back_translation.{side}={source}" for side in ("there", "back")]
    capsys.readouterr()
    assert cli.run(["train", str(recipe_file), *settings, "--out", str(tmp_path / "run")]) == 2
    assert message.format(there=source) in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_whole_texts_are_refused_where_targets_are_positions(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"augmentations.back_translation.{side}={tmp_path}" for side in ("there", "back")]
    assert cli.run(["train", str(recipe_file), "task=token_classification", *settings]) == 2
    assert "back_translation: task=token_classification has targets at positions" in " ".join(
        capsys.readouterr().err.split()
    )
