"""The classifier; see the package."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from pefttools.api.functions import fit
from pefttools.api.trained_run import TrainedRun
from pefttools.errors import UserError

Texts = Sequence[str] | numpy.ndarray


class Classifier(ClassifierMixin, BaseEstimator):
    """Fine-tunes a pretrained encoder to classify texts, one class a text.

    Validation rows for the choice of the checkpoint are split off the rows of `fit`; no test rows are, because
    scikit-learn's own tools keep those apart.

    Args:
        base: as for `pefttools.fit`.
        strategy: the strategy's name, or a mapping with `name` and settings.
        epochs: passes over the training rows.
        learning_rate: None takes the strategy's own.
        seed: of all randomness.
        validation_share: share of the rows of `fit` that choose the checkpoint.
        train: further settings of the training loop.
        overrides: further settings of the recipe by dotted keys.
        out: the run folder; None takes a temporary one, which lives as long as the classifier.
        progress: show notes and progress on stderr.

    Attributes:
        classes_: the labels, sorted, shape (classes,).
        run_: the finished run.
    """

    def __init__(
        self, base: str | Mapping[str, Any] | None = None, strategy: str | Mapping[str, Any] = "lora",
        epochs: float = 3, learning_rate: float | None = None, seed: int = 0, validation_share: float = 0.1,
        train: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None,
        out: str | Path | None = None, progress: bool = False,
    ) -> None:  # fmt: skip
        self.base, self.strategy, self.epochs = base, strategy, epochs
        self.learning_rate, self.seed = learning_rate, seed
        self.validation_share, self.train, self.overrides = validation_share, train, overrides
        self.out, self.progress = out, progress

    def fit(self, X: Texts, y: Sequence[Any] | numpy.ndarray) -> Self:
        """Train on texts, shape (rows,), and their labels, shape (rows,).

        Raises:
            ValueError: the numbers of texts and labels differ, something is no text, or there is only one class.
            UserError: a setting is wrong.
        """
        texts, labels = _texts(X), numpy.asarray(y)
        if labels.ndim != 1 or len(labels) != len(texts):
            raise ValueError(f"y: must have one label for each of {len(texts)} texts, but has the shape {labels.shape}")
        self.classes_, codes = numpy.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: there must be at least two classes, but there is {len(self.classes_)} class")
        rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        train = {"epochs": self.epochs, "trackers": [], **rate, **(self.train or {})}
        shares = {"data.test_share": 0, "data.validation_share": self.validation_share}
        self._scratch = None if self.out else _Scratch()
        self.run_: TrainedRun = fit(
            (texts, [f"class {code}" for code in codes]), base=self.base, strategy=self.strategy, train=train,
            seed=self.seed, overrides={**shares, **(self.overrides or {})},
            out=self.out or self._scratch.folder / "run",  # type: ignore[union-attr]
            progress=self.progress,
        )  # fmt: skip
        return self

    def predict_proba(self, X: Texts) -> numpy.ndarray:
        """The probabilities of the classes, shape (rows, classes), in the order of `classes_`."""
        check_is_fitted(self, "run_")
        texts = _texts(X)
        if not texts:
            raise ValueError("X: there are no texts")
        found = self.run_.predict(texts)
        if failed := next((one["error"] for one in found if "error" in one), None):
            raise UserError(failed)
        names = [f"class {code}" for code in range(len(self.classes_))]
        return numpy.array([[one["probabilities"].get(name, 0.0) for name in names] for one in found])

    def predict(self, X: Texts) -> numpy.ndarray:
        """The likeliest class of each text, shape (rows,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags


class _Scratch:
    """A temporary folder that is removed with this object."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pefttools-"))

    def __del__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _texts(X: Any) -> list[str]:
    """The texts as a list. Raises ValueError when they are none, or have two dimensions."""
    values = X.tolist() if hasattr(X, "tolist") else list(X)
    wrong = next((i for i, one in enumerate(values) if not isinstance(one, str)), None)
    if isinstance(X, str) or wrong is not None:
        what = "one text" if isinstance(X, str) else f"row {wrong} is {type(values[wrong]).__name__}"  # type: ignore[index]
        raise ValueError(f"X: must be texts, one a row; {what}")
    return values
