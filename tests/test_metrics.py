"""The contract of every metric in the registry; a new metric file is tested without an edit here."""

from __future__ import annotations

import pytest

from pefttools.errors import UserError
from pefttools.metrics import combined, metrics, text_metrics
from pefttools.tasks import tasks


@pytest.mark.parametrize("name", metrics.names())
def test_a_metric_is_explained_and_can_be_combined(name: str) -> None:
    assert metrics.summaries()[name]
    cls = metrics.get(name)
    assert cls.__doc__
    (made,) = combined(name).evaluation_modules
    assert type(made) is cls
    assert made.features


def test_generation_tasks_take_text_metrics_only() -> None:
    assert {"bleu", "chrf", "rouge"} <= set(text_metrics.names())
    assert "accuracy" not in text_metrics.names()
    assert tasks.parse({"name": "causal_lm", "scores": ["bleu", "exact_match"]}, "task")[1] == []
    (problem,) = tasks.parse({"name": "causal_lm", "scores": ["rogue"]}, "task")[1]
    assert problem.startswith("task.scores: unknown metric of texts 'rogue'; did you mean 'rouge'? Known: bleu, chrf")
    with pytest.raises(UserError, match="unknown metric of texts 'accuracy'"):
        text_metrics.get("accuracy")
