"""`import pefttools`: the same runs as on the command line, from rows and models in memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import polars
import pyarrow
import pytest
import torch
import transformers
from conftest import losses, make_rows
from test_train import assert_same_weights
from tiny_bases import tied_language_model

import pefttools
from pefttools.api.session import REGISTRIES
from pefttools.errors import UserError
from pefttools.objectives.label_smoothing import LabelSmoothing
from pefttools.strategies.bitfit import BitFit

pytestmark = pytest.mark.slow

ROWS = make_rows(120)
TRAIN = {"epochs": 1, "learning_rate": 0.003, "log_every": 1, "trackers": [], "precision": "fp32"}
KINDS: Mapping[str, Callable[[], Any]] = {
    "dictionaries": lambda: ROWS,
    "pairs of lists": lambda: ([row["text"] for row in ROWS], [row["label"] for row in ROWS]),
    "arrays": lambda: (numpy.array([row["text"] for row in ROWS]), numpy.array([row["label"] for row in ROWS])),
    "pandas": lambda: pandas.DataFrame(ROWS),
    "categories": lambda: pandas.DataFrame(ROWS).astype({"label": "category"}),
    "pandas' own texts": lambda: pandas.DataFrame(ROWS).convert_dtypes().set_index(pandas.Index(range(7, 127))),
    "categories of polars": lambda: polars.DataFrame(ROWS).cast({"label": polars.Categorical}),
    "polars": lambda: polars.DataFrame(ROWS),
    "lazy": lambda: polars.DataFrame(ROWS).lazy(),
    "arrow": lambda: pyarrow.Table.from_pylist(ROWS),
    "datasets": lambda: datasets.Dataset.from_list(ROWS),
    "classes by number": lambda: datasets.Dataset.from_list(ROWS).class_encode_column("label"),
    "splits": lambda: datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
    "columns": lambda: {name: [row[name] for row in ROWS] for name in ROWS[0]},
}


@pytest.fixture(scope="module")
def base(bases: Callable[[str], Path]) -> str:
    return str(bases("bert"))


@pytest.fixture
def session() -> Iterator[None]:
    """Classes that a test registers are forgotten after it."""
    yield
    for registry in REGISTRIES:
        registry.added.clear()


def fitted(data: Any, out: Path, base: Any, **more: Any) -> pefttools.TrainedRun:
    given = {"train": TRAIN, "progress": False, "task": {"name": "text_classification", "max_length": 32}, **more}
    return pefttools.fit(data, base=base, out=out, **given)


@pytest.fixture(scope="module")
def run(base: str, tmp_path_factory: pytest.TempPathFactory) -> pefttools.TrainedRun:
    return fitted(ROWS, tmp_path_factory.mktemp("fitted") / "run", base)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import pefttools, sys; print([n for n in ('torch', 'transformers', 'pandas', 'pydantic') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert {"fit", "train", "load", "predict", "evaluate", "export", "plan", "advise", "compare"} <= {*dir(pefttools)}
    with pytest.raises(AttributeError, match="has no attribute 'fti'"):
        _ = pefttools.fti  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*copy keyword:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_give_the_same_run(kind: str, run: pefttools.TrainedRun, base: str, tmp_path: Path) -> None:
    other = fitted(KINDS[kind](), tmp_path / "run", base)
    assert losses(other.path) == losses(run.path)
    assert other.metrics == run.metrics
    assert_same_weights(other.path, run.path)


def test_a_recipe_gives_the_run_of_the_command_line(
    recipe_file: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = pefttools.train(recipe_file, progress=False)
    assert run.path == tmp_path / "runs" / "tiny"
    assert losses(run.path) == losses(finished_run)
    again = pefttools.train(recipe_file, {"train.log_every": 1}, resume=True, progress=False)
    assert again.metrics == run.metrics
    assert pefttools.plan(recipe_file, progress=False)["params"]["trainable"] == run.result["params"]["trainable"]
    values = run.recipe.as_dict()
    third = pefttools.train(values, ["seed=1"], out=tmp_path / "third", progress=False)
    assert losses(third.path) != losses(run.path)


def test_what_a_run_offers(run: pefttools.TrainedRun, tmp_path: Path) -> None:
    assert run.recipe.strategy.name == "lora"
    assert run.scored_on == "test"
    assert run.metrics["accuracy"] == run.result["test"]["accuracy"]
    assert run.history["loss"].notna().sum() == run.result["train"]["steps"]
    assert run.metrics["accuracy"] is not None
    assert len(run.history["validation.accuracy"].dropna()) > 0
    assert len(run.predictions) == run.result["data"]["rows"]["test"]
    assert set(run.predictions["probabilities"][0]) == set(run.recipe.task.class_names)
    assert "lora, accuracy" in repr(run)
    assert isinstance(run.trained.model, torch.nn.Module)
    assert run.report(tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")


def test_predictions_of_every_kind_of_rows(run: pefttools.TrainedRun) -> None:
    texts = [row["text"] for row in ROWS[:5]]
    expected = [one["prediction"] for one in run.predict(texts)]
    assert run.predict(texts[0])["prediction"] == expected[0]
    assert [one["prediction"] for one in run.predict(numpy.array(texts))] == expected
    assert [one["prediction"] for one in run.predict([{"text": text} for text in texts])] == expected
    assert run.predict({"text": texts[0]})[0]["prediction"] == expected[0]
    frame = pandas.DataFrame({"text": texts, "mine": range(5)}, index=[*"abcde"])
    found = run.predict(frame, keep=["mine"], top_k=1)
    assert list(found["prediction"]) == expected
    assert list(found.index) == [*"abcde"]
    assert list(found["mine"]) == [*range(5)]
    for series in (pandas.Series(texts), polars.Series(texts), pyarrow.array(texts), tuple(texts)):
        assert [one["prediction"] for one in pefttools.predict(run.path, series)] == expected
    with pytest.raises(UserError, match="text"):
        run.predict([{"txet": "a"}])
    found = run.predict([texts[0], None, float("nan")])
    assert found[0]["prediction"] == expected[0]
    assert ["error" in one for one in found] == [False, True, True]
    for wrong in (3, Path("tickets.csv")):
        with pytest.raises(UserError, match="predict: takes a text, texts"):
            run.predict(wrong)
    with pytest.raises(UserError, match="is a file, but predict takes texts and tables"):
        run.predict(str(run.path / "result.json"))
    assert "prediction" in run.predict([str(run.path / "result.json")])[0]


def test_other_rows_are_scored(run: pefttools.TrainedRun, base: str, tmp_path: Path) -> None:
    found = run.evaluate(pandas.DataFrame(ROWS), errors=3)
    assert found["rows"] == len(ROWS)
    assert len(found["errors"]["rows"]) <= 3
    assert run.evaluate()["accuracy"] == run.metrics["accuracy"]
    with pytest.raises(UserError, match="labels the model does not know"):
        run.evaluate([{"text": "red", "label": "unknown"}])


def test_export_and_comparison(run: pefttools.TrainedRun, base: str, tmp_path: Path) -> None:
    folder = run.export("merged", tmp_path / "merged", dtype="bfloat16")
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == len(run.recipe.task.class_names)
    other = fitted(ROWS, tmp_path / "other", base, strategy="bitfit")
    found = run.compare(other)
    assert [one["name"] for one in found["runs"]] == ["run", "other"]
    with pytest.raises(UserError, match="at least two"):
        pefttools.compare(run)


def test_a_model_in_memory_is_trained_like_its_folder(run: pefttools.TrainedRun, base: str, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    other = fitted(ROWS, tmp_path / "run", model, tokenizer=tokenizer)
    assert losses(other.path) == losses(run.path)
    again = pefttools.train(other.path / "recipe.yaml", out=tmp_path / "again", progress=False)
    assert losses(again.path) == losses(run.path)
    with pytest.raises(UserError, match="tokenizer: is required"):
        fitted(ROWS, tmp_path / "none", model)
    assert not (tmp_path / "none").exists()


WRONG: Mapping[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "no rows": (list, {}, "train: there are no rows"),
    "an empty frame": (lambda: pandas.DataFrame({"text": [], "label": []}), {}, "train: there are no rows"),
    "a number": (lambda: 7, {}, "train: must be a path, a pandas or polars DataFrame"),
    "texts alone": (lambda: ["a", "b"], {}, "row 1 is str, but must be a dictionary"),
    "lengths": (lambda: (["a", "b"], ["x"]), {}, "2 texts, but 1 labels"),
    "no such split": (lambda: {"train": ROWS, "more": ROWS}, {}, "'more' is no split"),
    "a split twice": (lambda: {"train": ROWS, "test": ROWS}, {"test": ROWS}, "test: is also in data"),
    "no column": (
        lambda: [{"texts": "a", "label": "b"}] * 9,
        {},
        "train: the table has no column 'text' for text; pass ",
    ),
    "numbers": (lambda: [{"text": f"a{i}", "label": i / 7} for i in range(40)], {}, "40 different labels.*=regression"),
    "an empty label": (lambda: [*ROWS, {"text": "a"}], {}, "pass overrides={'data.invalid_rows': 'skip'}"),
    "an argument": (lambda: ROWS, {"epochs": 3}, "fit: has no argument epochs"),
    "a setting": (lambda: ROWS, {"train": {"epoch": 3}}, "did you mean 'epochs'"),
    "a strategy": (lambda: ROWS, {"strategy": "lroa"}, "did you mean 'lora'"),
    "a task": (lambda: ROWS, {"task": "classification"}, "unknown task"),
    "a value": (lambda: ROWS, {"train": {"epochs": object()}}, "no text, number, list or mapping"),
    "overrides": (lambda: ROWS, {"overrides": "seed=1"}, "must be a mapping or a list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_told_and_nothing_is_written(name: str, base: str, tmp_path: Path) -> None:
    data, more, message = WRONG[name]
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        fitted(data(), tmp_path / "run", base, **more)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_files_is_refused(base: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        fitted(ROWS, tmp_path, base)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_predictions_show_what_they_are_of(run: pefttools.TrainedRun) -> None:
    labels = {row["text"]: row["label"] for row in ROWS}
    assert [labels[text] for text in run.predictions["text"]] == list(run.predictions["reference"])


def test_an_export_is_replaced_only_if_that_is_wanted(run: pefttools.TrainedRun, tmp_path: Path) -> None:
    folder = run.export("merged", tmp_path / "merged")
    with pytest.raises(UserError, match=r"has an artifact.*pass overwrite=True"):
        run.export("merged", folder)
    assert run.export("merged", folder, overwrite=True, dtype="bfloat16") == folder
    assert transformers.AutoConfig.from_pretrained(folder).dtype == torch.bfloat16
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        run.export("merged", tmp_path / "mine", overwrite=True)


def test_a_server_in_this_process(run: pefttools.TrainedRun) -> None:
    def asked(url: str) -> Any:
        body = json.dumps({"texts": ["red apple"]}).encode()
        request = urllib.request.Request(f"{url}/predict", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    with pefttools.serve(run, progress=False) as server:
        (found,) = asked(server.url)["predictions"]
        assert found["prediction"] == run.predict("red apple")["prediction"]
        with pytest.raises(UserError, match="cannot be used"):
            pefttools.serve(run, port=int(server.url.rpartition(":")[2]), progress=False)
    assert "stopped" in repr(server)
    server.stop()
    with pytest.raises(urllib.error.URLError):
        asked(server.url)
    with pytest.raises(UserError, match="name at least one run"):
        pefttools.serve()


def test_a_language_model_replies(tmp_path: Path) -> None:
    rows = [{"prompt": row["text"], "completion": "apple saw"} for row in ROWS[:40]]
    found = pefttools.fit(
        rows, task={"name": "causal_lm", "max_length": 48, "max_new_tokens": 4}, out=tmp_path / "run", progress=False,
        base=tied_language_model(tmp_path / "base"),
        train={**TRAIN, "learning_rate": 0.02, "epochs": 8, "batch_size": 8},
    )  # fmt: skip
    reply = found.chat("red word1", max_tokens=1)
    assert reply == "apple"
    assert reply == found.chat([{"role": "user", "content": "red word1"}], max_tokens=1)
    assert reply != found.chat("red word1", max_tokens=1, base=True)
    with pytest.raises(UserError, match="top_p"):
        found.chat("red", top_p=2.0)


class Nosy:
    """A callback that draws random numbers, which must not change the run."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.evaluations: list[Any] = []
        self.folders: list[Path] = []

    def on_step(self, step: Any) -> None:
        self.steps.append(step)
        torch.rand(3), numpy.random.rand(3), random.random()
        torch.manual_seed(7)

    def on_evaluation(self, evaluation: Any) -> None:
        self.evaluations.append(evaluation)
        random.seed(1)

    def on_checkpoint(self, folder: Path) -> None:
        assert folder.is_dir()
        self.folders.append(folder)


def test_callbacks_see_the_run_and_do_not_change_it(base: str, tmp_path: Path) -> None:
    more = {"overrides": {"base.dropout": 0.1, "train.checkpoint_steps": 2, "train.evaluate_every": 0.5}}
    plain, nosy = fitted(ROWS, tmp_path / "plain", base, **more), Nosy()
    watched = fitted(ROWS, tmp_path / "watched", base, callbacks=[nosy], **more)
    assert losses(watched.path) == losses(plain.path)
    assert_same_weights(watched.path, plain.path)
    assert [one.step for one in nosy.steps] == list(range(1, watched.result["train"]["steps"] + 1))
    assert [one.loss for one in nosy.steps] == losses(watched.path)
    assert nosy.evaluations[-1].metrics["accuracy"] == watched.history["validation.accuracy"].dropna().iloc[-1]
    assert any(one.is_best for one in nosy.evaluations)
    assert nosy.folders


@pytest.mark.parametrize("strategy", ["lora", "adalora"])
def test_a_callback_ends_training_early(strategy: str, base: str, tmp_path: Path) -> None:
    class Enough(pefttools.Callback):
        seen = 0

        def on_step(self, step: Any) -> None:
            self.seen = step.step

        def should_stop(self) -> bool:
            return self.seen >= 2

    found = fitted(ROWS, tmp_path / "run", base, strategy=strategy, callbacks=[Enough()], train={**TRAIN, "epochs": 4})
    assert found.result["train"]["steps"] == 2
    assert len(found.predictions) == found.result["data"]["rows"]["test"]
    assert found.predict("red apple")["prediction"] in found.recipe.task.class_names


@pytest.mark.usefixtures("session")
def test_classes_of_this_session(base: str, tmp_path: Path) -> None:
    @pefttools.register
    class FewBiases(BitFit):
        """Like bitfit."""

    @pefttools.register(name="smoother")
    class Smoother(LabelSmoothing):
        """Like label_smoothing."""

    found = fitted(ROWS, tmp_path / "run", base, strategy="fewbiases", objectives={"smoother": {"smoothing": 0.2}})
    usual = fitted(
        ROWS, tmp_path / "usual", base, strategy="bitfit", objectives={"label_smoothing": {"smoothing": 0.2}},
        train={**TRAIN, "learning_rate": found.recipe.train.learning_rate},
    )  # fmt: skip
    assert losses(found.path) == losses(usual.path)
    assert found.recipe.strategy.name == "fewbiases"
    assert pefttools.TrainedRun(found.path, progress=False).predict("red apple") == found.predict("red apple")
    with pytest.raises(UserError, match=r"does not know the strategy 'fewbiases'.*strategies/fewbiases\.py"):
        found.export("merged")
    for cls, name, message in (
        (int, "mine", "is derived from none of"),
        (BitFit, "lora", "an identifier that no file has"),
        (BitFit, "not a name", "an identifier that no file has"),
    ):
        with pytest.raises(UserError, match=message):
            pefttools.register(name=name)(cls)


@pytest.mark.parametrize("name", ["lora", "bitfit", "full", "top_layers"])
def test_a_loop_of_the_users_own(name: str, base: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    batch = tokenizer([row["text"] for row in ROWS[:16]], padding=True, return_tensors="pt")
    labels = torch.tensor([sorted({row["label"] for row in ROWS}).index(row["label"]) for row in ROWS[:16]])
    method = pefttools.strategy(name)
    wrapped: Any = pefttools.wrap(model, method)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=method.start_lr())
    found: list[float] = []
    for _ in range(20):
        loss = wrapped(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    assert found[-1] < found[0]
    expected = wrapped.eval()(**batch).logits
    merged: Any = method.merge(wrapped)
    assert torch.allclose(merged.eval()(**batch).logits, expected, atol=1e-4)
    assert isinstance(merged, transformers.PreTrainedModel)


def test_wrapping_refuses_what_does_not_fit(base: str) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    with pytest.raises(UserError, match="did you mean 'rank'"):
        pefttools.strategy("lora", rnak=3)
    with pytest.raises(UserError, match="head: the model has no module klassifier"):
        pefttools.wrap(model, head=["klassifier"])
    wrapped: Any = pefttools.wrap(model, {"name": "lora", "rank": 2})
    with pytest.raises(UserError, match="is wrapped by peft already"):
        pefttools.wrap(wrapped)
