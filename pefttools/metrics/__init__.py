"""`evaluate.Metric` classes that work with no network, one file a metric.

`evaluate.load` looks on the hub for names it knows; these are the same numbers from the reference libraries,
combined with `evaluate.combine`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pefttools.registry import Registry
from pefttools.sources.cache import cache_dir

if TYPE_CHECKING:
    from evaluate import CombinedEvaluations

metrics: Registry = Registry("metric", __name__, "Metric")
text_metrics: Registry = Registry("metric of texts", __name__, "TextMetric")
"""Those of them that compare generated texts with their references."""


def combined(*names: str) -> CombinedEvaluations:
    """The metrics of those names as one: `.compute(predictions=…, references=…)`. Raises UserError."""
    import evaluate

    classes = [metrics.get(name) for name in names]
    folder = str(cache_dir("metrics"))  # evaluate creates a folder even for what it keeps in memory
    return evaluate.combine([cls(keep_in_memory=True, cache_dir=folder) for cls in classes])
