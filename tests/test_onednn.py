"""fp32 matrix products by oneDNN: as exact as fp32, disabled afterwards, and not used where they are inexact."""

from __future__ import annotations

import pytest
import torch

from pefttools.nn import onednn
from pefttools.recipe.train_settings import TrainSettings
from pefttools.training import speedups


def test_onednn_is_as_exact_as_fp32_and_restored_afterwards() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(200, 300), torch.randn(300, 150)
    before, own = onednn.allowance(), one @ other
    expected = one.double() @ other.double()
    with onednn.by_onednn():
        error = (one @ other - expected).abs().max() / expected.abs().max()
    assert error <= onednn.EXACT
    assert onednn.allowance() == before
    assert torch.equal(one @ other, own)


def test_onednn_is_not_used_where_it_is_inexact(monkeypatch: pytest.MonkeyPatch) -> None:
    before = onednn.allowance()
    monkeypatch.setattr(onednn, "EXACT", -1.0)  # nothing is as exact as that
    onednn._exact.cache_clear()
    try:
        with onednn.by_onednn():
            assert onednn.allowance() == before
    finally:
        onednn._exact.cache_clear()


def test_steps_use_onednn_and_restore_the_setting_after_an_error() -> None:
    before = onednn.allowance()
    expected = "bf16" if torch.backends.mkldnn.is_available() and onednn._exact() else before
    with pytest.raises(KeyError), speedups.steps(torch.nn.Linear(2, 2), TrainSettings(), "cpu", "fp32"):
        assert onednn.allowance() == expected
        raise KeyError
    assert onednn.allowance() == before
