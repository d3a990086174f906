"""Modules that are no targets, and settings of peft's that are ours: messages lead to what trains them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pefttools import cli


def refusal(capsys: pytest.CaptureFixture[str], recipe: Path, *overrides: str) -> str:
    assert cli.run(["train", str(recipe), *overrides]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_modules_outside_the_blocks_lead_to_what_trains_them(
    recipe_file: Path, bases: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"base={bases('llama')}"
    said = refusal(capsys, recipe_file, base, "strategy.targets=embed_tokens")
    assert "is outside the blocks (model.embed_tokens); base.head=[model.embed_tokens] trains it whole" in said
    said = refusal(capsys, recipe_file, base, "strategy.targets=[all,score]")
    assert "is part of the head (score), which every strategy trains whole; leave it out" in said


@pytest.mark.parametrize(
    ("setting", "cure"),
    [("modules_to_save", "base.head names more modules"), ("target_modules", "it is strategy.targets")],
)
def test_settings_of_pefts_that_are_ours_lead_to_ours(
    setting: str, cure: str, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, recipe_file, "strategy=peft", f"strategy.settings.{setting}=[lm_head]")
    assert f"{setting} cannot be set here: " in said
    assert cure in said
    assert "did you mean" not in said
