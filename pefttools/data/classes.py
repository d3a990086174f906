"""Class labels: read them from rows, check them, write them to the model's configuration, and score predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pefttools.data import written_lists
from pefttools.data.fields import listed, natural
from pefttools.data.splitting import Row, Splits
from pefttools.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value", bound=Hashable)
METRICS = ("accuracy", "f1", "per_class")
"""Metrics for rows with one label."""


def label(value: Any) -> str:
    """A label of any scalar type as text; raises ValueError if there is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with a gap becomes floats in some formats
    if isinstance(value, (list, tuple, Mapping)):
        raise ValueError(f"has a label that is not a single text: {value!r}")
    if value is None or value != value or not str(value).strip():  # only NaN differs from itself
        raise ValueError("has no label")
    if written_lists.is_mapping(value):
        raise ValueError(f"has a label that is not a single text: {value!r}")
    if written_lists.is_list(value):
        raise ValueError(
            f"has a list as label, {value!r}; set task.multi_label=true (of text_classification) if rows"
            " may have several"
        )
    return str(value).strip()


def names(rows: Iterable[Row]) -> set[str]:
    """All labels of the rows, which may have one or several each."""
    return {name for row in rows for name in (row["label"] if isinstance(row["label"], list) else [row["label"]])}


def too_few(found: set[str]) -> list[str]:
    """One problem if the training rows have fewer than two classes, else none."""
    if len(found) > 1:
        return []
    has = f"one class only ({min(found)!r})" if found else "no labels"
    return [f"data.train: has {has}; give rows of at least two classes"]


def unused(labels: Sequence[str], known: set[str]) -> list[str]:
    """One problem if `task.labels` has classes that no training row has, else none."""
    missing = sorted(set(labels) - known, key=natural)
    if not missing:
        return []
    return [f"task.labels: no training row has {listed(missing)}; training has {listed(sorted(known, key=natural))}"]


def new_in_splits(splits: Splits, labels: Sequence[str]) -> list[str]:
    """One problem for every split with labels that no training row has."""
    return [
        f"data.{split}: labels that no training row has: {listed(unknown_labels)}. Training has {listed(labels)};"
        " set data.min_class_rows to leave out rare classes, or data.labels to rename labels"
        for split, rows in splits.named().items()
        if (unknown_labels := sorted(names(rows) - set(labels), key=natural))
    ]


def check_labels(key: str, rows: Sequence[Row], labels: Sequence[str]) -> None:
    """Raises UserError if rows have labels other than these."""
    if unknown_labels := sorted(names(rows) - set(labels), key=natural):
        raise UserError(f"{key}: labels the model does not know: {listed(unknown_labels)}. It has {listed(labels)}")


def config_values(labels: Sequence[str]) -> dict[str, Any]:
    """The entries for classes in a model's configuration."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
    }


def predictions(logits: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The likeliest class of every row, and the probabilities of all classes, from logits of shape (rows, classes)."""
    shares = logits.softmax(-1)
    rows = zip(shares.argmax(-1).tolist(), shares.tolist(), strict=True)
    return [{"prediction": labels[i], "probabilities": dict(zip(labels, row, strict=True))} for i, row in rows]


def indices(names: Iterable[str], labels: Sequence[str]) -> list[int]:
    """The indices of class names in `labels`."""
    places = {name: i for i, name in enumerate(labels)}
    return [places[name] for name in names]


def scores(
    predictions: Sequence[str], references: Sequence[str], labels: Sequence[str], names: Sequence[str] = METRICS
) -> dict[str, Any]:
    """Metrics of one predicted class per row; `per_class` has the classes' names as keys.

    Args:
        names: the metrics to compute.
    """
    return scores_of_indices(indices(predictions, labels), indices(references, labels), labels, names)


def scores_of_indices(
    predictions: Sequence[Any], references: Sequence[Any], labels: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """The metrics of `scores`, from one class index per row, or from a vector of 1 and 0 per row for several labels."""
    from pefttools.metrics import combined

    values = combined(*names).compute(predictions=list(predictions), references=list(references))
    assert values is not None
    values["per_class"] = {labels[int(i)]: numbers for i, numbers in values["per_class"].items()}
    return values


def most_frequent(values: Iterable[Value]) -> Value:
    """The most frequent value; the first of several."""
    return Counter(values).most_common(1)[0][0]
