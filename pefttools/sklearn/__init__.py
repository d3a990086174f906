"""A classifier of texts with scikit-learn's interface, for its pipelines, searches and cross-validation.

from pefttools.sklearn import Classifier
Classifier(strategy="lora", epochs=3).fit(texts, labels).predict(["…"])
"""

from __future__ import annotations

from pefttools.sklearn.classifier import Classifier

__all__ = ["Classifier"]
