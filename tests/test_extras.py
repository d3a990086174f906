"""Packages outside the core: what needs them says so before it starts to work, and nothing else does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from pefttools import cli, extras
from pefttools.errors import UserError
from pefttools.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_EXTRAS = Path(__file__).parent / "without_extras"
MODULES = {module for modules in EXTRAS.values() for module in modules}
FOR_GPUS = {"liger"}
"""Extras that `all` lacks, because they can be used on a GPU only; they are not installed here."""
IMPORT_ALL = """
import importlib, pkgutil
import pefttools

for one in pkgutil.walk_packages(pefttools.__path__, "pefttools."):
    if not one.name.endswith("__main__"):
        try:
            importlib.import_module(one.name)
        except ModuleNotFoundError as error:
            print(one.name, error.name.partition(".")[0])
"""

COMMANDS = {
    "report": (["report", "RUN"], "altair vl_convert", "report: needs altair and vl-convert, which are", "charts"),
    "a page of a comparison": (["compare", "RUN", "RUN", "--out", "OUT.html"], "altair", "compare --out", "charts"),
    "a picture": (["evaluate", "RUN", "--perturb", "typos", "--picture", "OUT.svg"], "altair", "--picture", "charts"),
    "tune": (["tune", "RECIPE", "--out", "OUT"], "optuna altair", "tune: needs optuna and altair", "tune"),
    "tune without charts": (["tune", "RECIPE", "--out", "OUT"], "vl_convert", "tune: needs vl-convert", "charts"),
    "bench": (["bench", "classic", "--out", "OUT"], "optuna", "bench: needs optuna, which is", "tune"),
    "explain": (["explain", "RUN", "--text", "saw"], "captum", "explain: needs captum", "explain"),
    "serve": (["serve", "RUN"], "uvicorn fastapi", "serve: needs fastapi and uvicorn", "serve"),
    "onnx": (["export", "RUN", "--to", "onnx"], "onnxscript", "--to onnx: needs onnxscript", "onnx"),
    "gguf": (["export", "RUN", "--to", "gguf"], "sentencepiece", "--to gguf: needs sentencepiece", "gguf"),
    "lion": (["train", "RECIPE", "train.optimizer=lion", "--out", "OUT"], "bitsandbytes", "train.optimizer=lion: needs",
             "quantized"),
    "loftq": (["train", "RECIPE", "strategy.init=loftq", "strategy.alpha=8", "--out", "OUT"], "bitsandbytes",
              "strategy.init=loftq: needs bitsandbytes", "quantized"),
    "a quantised base": (["train", "RECIPE", "base.quantize=nf4", "--out", "OUT"], "bitsandbytes", "base.quantize=nf4",
                         "quantized"),
    "a check of a quantised base": (["doctor", "RECIPE", "base.quantize=nf4"], "bitsandbytes", "base.quantize=nf4",
                                    "quantized"),
    "entities": (["train", "RECIPE", "task=token_classification", "--out", "OUT"], "seqeval",
                 "task=token_classification: needs seqeval", "metrics"),
    "translations": (["train", "RECIPE", "task=seq2seq", "task.metric=bleu", "--out", "OUT"], "sacrebleu rouge_score",
                     "task.metric=bleu: needs sacrebleu, which is", "metrics"),
    "answers": (["train", "RECIPE", "task=causal_lm", "--out", "OUT"], "rouge_score",
                "task.scores=[rouge]: needs rouge-score", "metrics"),
    "a tracker": (["train", "RECIPE", "train.trackers=[tensorboard]", "--out", "OUT"], "tensorboard",
                  "train.trackers: tensorboard is not installed", "tensorboard"),
    "advice on entities": (["advise", "--base", "BASE", "--task", "token_classification", "--data", "ROWS", "--out",
                            "OUT"], "seqeval", "task=token_classification: needs seqeval", "metrics"),
}  # fmt: skip
"""Case -> a command line, the modules that are missing, a part of the message, and the extra that it names."""


def hide(monkeypatch: pytest.MonkeyPatch, modules: Sequence[str]) -> None:
    """Let pefttools not find these modules."""
    from accelerate.utils import imports

    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in modules else find_spec(name))
    if "tensorboard" in modules:
        monkeypatch.setattr("pefttools.training.trackers.get_available_trackers", list)
        monkeypatch.setattr(imports, "is_tensorboard_available", lambda: False)


@pytest.mark.parametrize("case", COMMANDS)
def test_a_missing_package_is_named_with_its_extra_before_anything_is_done(
    case: str, recipe_file: Path, finished_run: Path, rows_file: Path, bases: object, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words, missing, message, extra = COMMANDS[case]
    places = {"RUN": finished_run, "RECIPE": recipe_file, "ROWS": rows_file, "BASE": bases("bert")}  # type: ignore[operator]
    named = [str(places.get(word, word)).replace("OUT", str(tmp_path / "out")) for word in words]
    hide(monkeypatch, missing.split())
    assert cli.run(named) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert message in told
    assert f'`pip install "pefttools[{extra}]"`' in told
    assert not [*tmp_path.iterdir()]


def test_all_missing_packages_of_a_recipe_are_named_at_once(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, [*MODULES])
    words = ["task=seq2seq", "base.quantize=int8", "train.optimizer=lion"]
    assert cli.run(["train", str(recipe_file), *words, "--out", str(tmp_path / "run")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    for part in ("base.quantize=int8: needs", "task.metric=both: needs sacrebleu and rouge-score", "lion: needs"):
        assert part in told


def test_settings_that_need_nothing_are_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pefttools.tasks.causal_lm import CausalLM
    from pefttools.tasks.seq2seq import Seq2Seq
    from pefttools.tasks.token_classification import TokenClassification

    free = [CausalLM(scores=()), CausalLM(chat=False), CausalLM(generate_rows=0), Seq2Seq(generate_rows=0)]
    assert not [task for task in (*free, TokenClassification(scheme="none")) if task.needed_modules]
    assert CausalLM(scores=("chrf",)).needed_modules == {"sacrebleu": "scores=[chrf]"}


def test_an_import_that_fails_later_is_a_message_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*words: object, **options: object) -> None:
        raise ModuleNotFoundError("No module named 'optuna.trial'", name="optuna.trial")

    monkeypatch.setattr(cli, "app", fails)
    assert cli.run(["tune"]) == 2
    assert 'run `pip install "pefttools[tune]"`' in " ".join(capsys.readouterr().err.split())
    assert extras.failed_import(ModuleNotFoundError("No module named 'os2'", name="os2")) is None


def test_commands_name_one_extra_where_one_has_everything() -> None:
    assert extras.command(["altair"]) == 'pip install "pefttools[charts]"'
    assert extras.command(["optuna", "altair"]) == 'pip install "pefttools[tune]"'
    assert extras.command(["altair", "seqeval"]) == 'pip install "pefttools[charts,metrics]"'
    assert extras.command(["wandb"]) == "pip install wandb"
    assert extras.command(["seqeval", "comet_ml"]) == 'pip install "pefttools[metrics]" comet-ml'
    with pytest.raises(UserError, match=r"^x: needs not-there, which is not installed; run `pip install not-there`$"):
        extras.require("x", ["json", "not_there"])


def test_the_table_of_extras_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared: dict[str, list[str]] = project["optional-dependencies"]
    assert [*EXTRAS] == [name for name in declared if name not in ("all", "dev", "docs")]
    assert declared["all"] == [f"pefttools[{','.join(extra for extra in EXTRAS if extra not in FOR_GPUS)}]"]
    assert "pefttools[all,docs]" in declared["dev"]
    packages = metadata.packages_distributions()
    core = {_name(one) for one in project["dependencies"]}
    for extra, modules in EXTRAS.items():
        names = {_name(one) for one in _with_included(declared[extra], declared)}
        assert not names & core, extra
        if extra not in FOR_GPUS:
            assert {_name(packages[module][0]) for module in modules} <= names, extra


def _with_included(requirements: Sequence[str], declared: dict[str, list[str]]) -> list[str]:
    """Requirements with those of the extras that they include."""
    included = [found[1] for one in requirements if (found := re.fullmatch(r"pefttools\[(\w+)\]", one))]
    return [*requirements, *(one for extra in included for one in declared[extra])]


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments where no extra is installed."""
    paths = {"PYTHONPATH": os.pathsep.join([str(WITHOUT_EXTRAS), *sys.path]), "HIDDEN_MODULES": ",".join(MODULES)}
    return subprocess.run(
        [sys.executable, *words], env={**os.environ, **paths}, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.mark.slow
def test_only_the_server_cannot_be_imported_without_extras() -> None:
    done = run("-W", "error", "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr[-3000:]
    failed = dict(line.split() for line in done.stdout.splitlines())
    assert not [name for name in failed if not name.startswith("pefttools.serving.")]
    assert {*failed.values()} <= {*EXTRAS["serve"]}
    assert failed


@pytest.mark.slow
def test_train_predict_evaluate_explain_what_is_missing_and_export_without_extras(
    recipe_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ("train.epochs=1", "train.trackers=null")
    trained = run("-m", "pefttools", "train", str(recipe_file), *words, "--out", str(out))
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert 'pip install "pefttools[tensorboard]"' in trained.stderr
    assert not (out / "tensorboard").exists()
    predicted = run("-m", "pefttools", "predict", str(out), "--text", "word1 apple", "--text", "word2 saw")
    assert predicted.returncode == 0, predicted.stderr[-3000:]
    assert len(predicted.stdout.splitlines()) == 2
    evaluated = run("-m", "pefttools", "evaluate", str(out), "--json")
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    scores = json.loads((out / "result.json").read_text("utf-8"))["test"]
    assert json.loads(evaluated.stdout)["accuracy"] == scores["accuracy"]
    exported = run("-m", "pefttools", "export", str(out), "--to", "merged")
    assert exported.returncode == 0, exported.stderr[-3000:]
    assert (out / "export" / "merged" / "model.safetensors").is_file()
    reported = run("-m", "pefttools", "report", str(out))
    assert reported.returncode == 2
    assert "Traceback" not in reported.stderr
