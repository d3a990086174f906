"""One contract over the registry: a new metric file is tested with no edit here."""

from __future__ import annotations

import pytest

from pefttools.metrics import combined, metrics


@pytest.mark.parametrize("name", metrics.names())
def test_a_metric_is_explained_and_can_be_combined(name: str) -> None:
    assert metrics.summaries()[name]
    cls = metrics.get(name)
    assert cls.__doc__
    (made,) = combined(name).evaluation_modules
    assert type(made) is cls
    assert made.features
