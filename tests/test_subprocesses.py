"""Worker processes that start clean: forked from a server, or spawned where there is CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pefttools import subprocesses


@pytest.fixture(autouse=True)
def _uncached_context() -> Iterator[None]:
    subprocesses._context.cache_clear()
    yield
    subprocesses._context.cache_clear()


@pytest.mark.parametrize(("cuda", "method"), [(False, "forkserver"), (True, "spawn")])
def test_process_starts_in_the_current_folder(
    cuda: bool, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.chdir(tmp_path)
    process = subprocesses.started(os.mkdir, "made")
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "made").is_dir()
    assert subprocesses._context().get_start_method() == method
