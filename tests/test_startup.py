"""Imports that a command must avoid: unneeded libraries would take most of the time of a short command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMAND = "import sys; from pefttools.cli import run; code = run(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
COMPILER = {"bitsandbytes", "torch._inductor.compile_fx"}
TRAINING = {"datasets", "pandas", "sklearn", "evaluate", "tensorboard"}

PLAIN_THEN_QUANTISED = """
import sys
from pefttools.bases.loading import prepare_libraries
prepare_libraries()
from pefttools.compatibility.probe import probe
from pefttools.strategies.{module} import {name}
from pefttools.tasks.text_classification import TextClassification
task = TextClassification.example()
first = probe(task, {name}(), "bert")
assert first.fits and first.merges and "peft" in sys.modules, first
assert "bitsandbytes" not in sys.modules
again = probe(task, {name}(), "bert", True)
assert again.fits, again
assert "bitsandbytes" in sys.modules
from peft import helpers, import_utils
assert import_utils.is_bnb_available() and import_utils.is_bnb_4bit_available()
assert helpers.bnb.nn.Linear4bit
"""


def run(code: str, *arguments: str) -> str:
    """The output of a new process."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def imported(*arguments: str) -> set[str]:
    """The modules that a process has imported after a command."""
    return {*run(COMMAND, *arguments).splitlines()[-1].split()}


def test_predicting_a_text_does_not_import_training_libraries(finished_run: Path) -> None:
    modules = imported("predict", str(finished_run), "--text", "hammer word1")
    assert "peft" in modules
    assert not modules & {*COMPILER, *TRAINING}


def test_plan_does_not_import_bitsandbytes(recipe_file: Path) -> None:
    modules = imported("plan", str(recipe_file), "train.precision=bf16")
    assert "peft" in modules
    assert not modules & COMPILER


def test_peft_finds_bitsandbytes_once_a_quantized_base_is_loaded() -> None:
    run(PLAIN_THEN_QUANTISED.format(module="lora", name="Lora"))
