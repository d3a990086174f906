"""The bounds of metrics: between which values a score can lie. Intervals of scores do not leave them."""

from __future__ import annotations

SHARES = frozenset(
    (
        "accuracy", "bleu", "chrf", "exact_match", "exact_match_answerable", "f1", "f1_answerable", "f1_directed",
        "f1_macro", "f1_micro", "no_answer_accuracy", "pair_accuracy", "precision", "recall", "rouge1", "rouge2",
        "rouge_l", "stopped",
    )
)  # fmt: skip
CORRELATIONS = frozenset(("pearson", "spearman"))


def bounds(metric: str) -> tuple[float, float] | None:
    """The lowest and highest value of a metric; None if it has no bounds, or they are not known."""
    return (0.0, 1.0) if metric in SHARES else (-1.0, 1.0) if metric in CORRELATIONS else None
