"""Share of texts that equal their reference, or one of several, apart from white space."""

from pefttools.metrics._text import References, several
from pefttools.metrics.base import TextMetric


class ExactMatch(TextMetric):
    """`exact_match`, a fraction."""

    def _compute(self, predictions: list[str], references: References) -> dict[str, float]:  # type: ignore[override]
        pairs = zip(predictions, several(references), strict=True)
        hits = [
            " ".join(prediction.split()) in {" ".join(text.split()) for text in texts} for prediction, texts in pairs
        ]
        return {"exact_match": sum(hits) / len(hits)}
