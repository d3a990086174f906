"""Classes as labels of rows: read, named in the model's configuration, and told to the user where they do not fit."""

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
"""Of rows with one label."""


def label(value: Any) -> str:
    """A label of any plain type as text; raises ValueError where there is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with a gap becomes floats in some formats
    if isinstance(value, (list, tuple, Mapping)):
        raise ValueError(f"has a label that is not a single text: {value!r}")
    if value is None or value != value or not str(value).strip():  # NaN is not itself
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
    """Every label that a row has, where some have several too."""
    return {name for row in rows for name in (row["label"] if isinstance(row["label"], list) else [row["label"]])}


def one_only(found: set[str]) -> list[str]:
    """The problem of rows to train on that have fewer than two classes."""
    if len(found) > 1:
        return []
    has = f"one class only ({min(found)!r})" if found else "no labels"
    return [f"data.train: has {has}; give rows of at least two classes"]


def idle(labels: Sequence[str], known: set[str]) -> list[str]:
    """The problem of classes given in `task.labels` that no training row has."""
    unused = sorted(set(labels) - known, key=natural)
    if not unused:
        return []
    return [f"task.labels: no training row has {listed(unused)}; training has {listed(sorted(known, key=natural))}"]


def new_in_splits(splits: Splits, labels: Sequence[str]) -> list[str]:
    """A problem for every split with labels that training lacks."""
    return [
        f"data.{split}: labels that no training row has: {listed(strange)}. Training has {listed(labels)};"
        " set data.min_class_rows to leave out rare classes, or data.labels to rename labels"
        for split, rows in splits.named().items()
        if (strange := sorted(names(rows) - set(labels), key=natural))
    ]


def refuse_strange(key: str, rows: Sequence[Row], labels: Sequence[str]) -> None:
    """Raises UserError when rows have other labels than these."""
    if strange := sorted(names(rows) - set(labels), key=natural):
        raise UserError(f"{key}: labels the model does not know: {listed(strange)}. It has {listed(labels)}")


def config_values(labels: Sequence[str]) -> dict[str, Any]:
    """What a model's configuration says of its classes."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
    }


def predictions(logits: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The likeliest class of every row, and the probability of each: predictions of logits (rows, classes)."""
    shares = logits.softmax(-1)
    rows = zip(shares.argmax(-1).tolist(), shares.tolist(), strict=True)
    return [{"prediction": labels[i], "probabilities": dict(zip(labels, row, strict=True))} for i, row in rows]


def indices(names: Iterable[str], labels: Sequence[str]) -> list[int]:
    """The places of class names in `labels`."""
    places = {name: i for i, name in enumerate(labels)}
    return [places[name] for name in names]


def scores(
    predictions: Sequence[str], references: Sequence[str], labels: Sequence[str], names: Sequence[str] = METRICS
) -> dict[str, Any]:
    """Metrics of one predicted class a row; `per_class` is by the classes' names.

    Args:
        names: of the metrics.
    """
    return scores_of_indices(indices(predictions, labels), indices(references, labels), labels, names)


def scores_of_indices(
    predictions: Sequence[Any], references: Sequence[Any], labels: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """The same, from an index a row, or from 1 and 0 for every class of a row where rows have several."""
    from pefttools.metrics import combined

    values = combined(*names).compute(predictions=list(predictions), references=list(references))
    assert values is not None
    values["per_class"] = {labels[int(i)]: numbers for i, numbers in values["per_class"].items()}
    return values


def most_frequent(values: Iterable[Value]) -> Value:
    """The value that comes most often; of several the first."""
    return Counter(values).most_common(1)[0][0]
