"""A run that died and was resumed, compared with an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import losses, power_cut, train_tiny, without_clock
from test_train import assert_same_weights


def assert_resumes_exactly(
    recipe_file: Path, died: Path, common: list[str], whole: Path, expected: dict[str, Any], died_after: int = 7
) -> None:
    """Train into `died` with a power cut after some steps, resume it, and compare it with the run `whole`."""
    with power_cut(died_after):
        train_tiny(recipe_file, died, *common, "train.checkpoint_seconds=0")
    _, resumed = train_tiny(recipe_file, died, *common, resume=True)
    assert losses(died) == losses(whole)
    assert_same_weights(whole, died)
    assert without_clock(resumed) == without_clock(expected)
