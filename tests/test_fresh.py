"""Fresh processes: forked from the server, or started anew where there is CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pefttools import subprocesses


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    subprocesses._context.cache_clear()
    yield
    subprocesses._context.cache_clear()


@pytest.mark.parametrize(("cuda", "way"), [(False, "forkserver"), (True, "spawn")])
def test_a_process_runs_where_this_one_is(
    cuda: bool, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.chdir(tmp_path)
    process = subprocesses.started(os.mkdir, "made")
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "made").is_dir()
    assert subprocesses._context().get_start_method() == way
