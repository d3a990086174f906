"""`evaluate.Metric` classes that work without a network, one file per metric.

`evaluate.load` would download metrics from the hub. These classes compute the same numbers with the reference
libraries, and `evaluate.combine` combines them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pefttools.registry import Registry
from pefttools.sources.cache import cache_dir

if TYPE_CHECKING:
    from evaluate import CombinedEvaluations

metrics: Registry = Registry("metric", __name__, "Metric")
text_metrics: Registry = Registry("metric of texts", __name__, "TextMetric")
"""The metrics that compare generated texts with their references."""


def modules_of(*names: str) -> list[str]:
    """The modules that the named metrics import and that the core does not install (see `extras`)."""
    return list(dict.fromkeys(module for name in names for module in getattr(metrics.get(name), "modules", ())))


def combined(*names: str) -> CombinedEvaluations:
    """The named metrics as one object with `.compute(predictions=…, references=…)`. Raises UserError for unknown
    names."""
    import evaluate

    classes = [metrics.get(name) for name in names]
    folder = str(cache_dir("metrics"))  # evaluate creates a folder even when it keeps everything in memory
    return evaluate.combine([cls(keep_in_memory=True, cache_dir=folder) for cls in classes])
