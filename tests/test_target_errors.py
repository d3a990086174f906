"""Modules that cannot be targets and peft settings with a counterpart: the error names the setting to use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pefttools import cli


def refusal(capsys: pytest.CaptureFixture[str], recipe: Path, *overrides: str) -> str:
    assert cli.run(["train", str(recipe), *overrides]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_error_about_a_target_outside_the_blocks_names_base_head(
    recipe_file: Path, bases: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"base={bases('llama')}"
    message = refusal(capsys, recipe_file, base, "strategy.targets=embed_tokens")
    assert "is outside the blocks (model.embed_tokens); to train it completely besides" in message
    message = refusal(capsys, recipe_file, base, "strategy.targets=[all,score]")
    assert "is part of the head (score), which every strategy trains completely; leave it out" in message


@pytest.mark.parametrize(
    ("setting", "cure"),
    [
        ("modules_to_save", "list more modules to train fully in base.head"),
        ("target_modules", "it is strategy.targets"),
    ],
)
def test_error_about_a_peft_setting_names_its_counterpart(
    setting: str, cure: str, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, recipe_file, "strategy=peft", f"strategy.settings.{setting}=[lm_head]")
    assert f"{setting} cannot be set here: " in message
    assert cure in message
    assert "did you mean" not in message
