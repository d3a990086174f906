"""Methods of peft that have no strategy of their own: trained, loaded again, and proven by an export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sample_runs import SampleRuns

from pefttools import cli
from pefttools.inference.prediction import predict_rows
from pefttools.training.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning", "ignore:Sparse CSR:UserWarning"),  # SHIRA
]
TYPES: dict[str, str] = {
    "IA3": "", "LN_TUNING": "", "LOHA": "r: 4", "LOKR": "r: 4", "HRA": "r: 4", "VERA": "r: 8", "MISS": "r: 4",
    "SHIRA": "r: 2", "RANDLORA": "r: 4", "OFT": "oft_block_size: 8", "C3A": "block_size: 8", "ROAD": "group_size: 8",
    "FOURIERFT": "n_frequency: 16", "WAVEFT": "n_frequency: 16",
    "VBLORA": "vector_length: 8, num_vectors: 16, topk: 2, r: 2",
}  # fmt: skip
"""Type -> settings that fit a tiny model."""
PROVEN = ("IA3", "FOURIERFT")
"""Types whose export once failed; the others have the same code path."""


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> Callable[..., Path]:
    runs = SampleRuns(tmp_path_factory, bases)
    return lambda kind, task="text_classification": runs(
        task, f"strategy={{name: peft, type: {kind}, settings: {{{TYPES[kind]}}}}}", "train.epochs=1"
    )


@pytest.mark.parametrize("kind", TYPES)
def test_a_loaded_run_predicts_what_it_predicted(kind: str, run_of: Callable[..., Path]) -> None:
    run = Run.open(run_of(kind))
    rows = run.scored_rows()
    assert rows is not None
    _, _, expected = run.predictions()
    found = list(predict_rows(run.path, [{"text": row["text"]} for row in rows.rows], precision="fp32"))
    for one, stored in zip(found, expected, strict=True):
        assert list(one["probabilities"].values()) == pytest.approx(list(stored["probabilities"]), abs=1e-5)


@pytest.mark.parametrize("task", ["text_classification", "causal_lm"])
@pytest.mark.parametrize("kind", PROVEN)
def test_an_export_is_proven(kind: str, task: str, run_of: Callable[..., Path], tmp_path: Path) -> None:
    assert cli.run(["export", str(run_of(kind, task)), "--to", "adapter", "--out", str(tmp_path / "out")]) == 0
