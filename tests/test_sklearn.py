"""The classifier in scikit-learn's own tools."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from conftest import make_rows
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from pefttools.sklearn import Classifier

pytestmark = pytest.mark.slow

ROWS = make_rows(120)
TEXTS, NAMES = [row["text"] for row in ROWS], [row["label"] for row in ROWS]
NUMBERS = numpy.array([10 * sorted({*NAMES}).index(name) for name in NAMES])
CHECKS = (
    "check_estimator_cloneable", "check_no_attributes_set_in_init", "check_parameters_default_constructible",
    "check_get_params_invariance", "check_set_params", "check_mixin_order", "check_estimator_repr",
    "check_valid_tag_types",
)  # fmt: skip
OVERRIDES = {"task.max_length": 32, "train.precision": "fp32"}


@pytest.fixture
def classifier(bases: Callable[[str], Path]) -> Classifier:
    return Classifier(base=str(bases("bert")), epochs=6, learning_rate=0.01, overrides=OVERRIDES)


def test_labels_of_any_kind_come_back(classifier: Classifier) -> None:
    fitted = classifier.fit(TEXTS, NUMBERS)
    assert list(fitted.classes_) == [0, 10, 20]
    probabilities = fitted.predict_proba(TEXTS[:7])
    assert probabilities.shape == (7, 3)
    assert numpy.allclose(probabilities.sum(axis=1), 1, atol=1e-3)
    assert list(fitted.predict(TEXTS[:7])) == list(fitted.classes_[probabilities.argmax(axis=1)])
    assert fitted.predict(numpy.array(TEXTS[:7])).dtype == NUMBERS.dtype
    assert fitted.score(TEXTS, NUMBERS) > 0.6
    folder = fitted.run_.path
    assert folder.is_dir()
    unfitted: Any = clone(fitted)
    assert unfitted.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        unfitted.predict(TEXTS)
    del fitted, classifier


def test_search_and_validation(classifier: Classifier) -> None:
    one: Any = clone(classifier)
    small = one.set_params(epochs=1)
    search = GridSearchCV(small, {"strategy": ["bitfit", {"name": "lora", "rank": 2}]}, cv=2).fit(TEXTS, NAMES)
    assert search.best_params_["strategy"] in ("bitfit", {"name": "lora", "rank": 2})
    assert set(search.predict(TEXTS[:9])) <= {*NAMES}
    pipeline = make_pipeline(FunctionTransformer(lambda texts: [text.lower() for text in texts]), small)
    assert len(cross_val_score(pipeline, TEXTS, NAMES, cv=2)) == 2


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (TEXTS, NAMES[:-1], "one label for each of 120 texts"),
        ([1, 2], ["a", "b"], "row 0 is int"),
        ("a text", ["a"], "one text"),
        (["a", "b"], ["x", "x"], "at least two classes"),
    ],
)
def test_wrong_rows_are_refused(classifier: Classifier, texts: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier.fit(texts, labels)


@pytest.mark.parametrize("name", CHECKS)
def test_checks_of_scikit_learn_that_need_no_numbers(name: str) -> None:
    """Its other checks fit random numbers, which a classifier of texts refuses."""
    getattr(estimator_checks, name)("Classifier", Classifier())


def test_check_estimator_finds_no_fault() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        found = estimator_checks.check_estimator(Classifier(), on_fail=None, on_skip=None)
    assert {one["status"] for one in found} == {"passed"}
