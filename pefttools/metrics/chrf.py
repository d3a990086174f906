"""chrF2 of the whole corpus (Popović 2015), by sacrebleu with its own settings: character 1- to 6-grams."""

from typing import ClassVar

from pefttools.metrics._text import References, streams
from pefttools.metrics.base import TextMetric


class Chrf(TextMetric):
    """`chrf`, a fraction."""

    modules: ClassVar[tuple[str, ...]] = ("sacrebleu",)

    def _compute(self, predictions: list[str], references: References) -> dict[str, float]:  # type: ignore[override]
        import sacrebleu

        return {"chrf": sacrebleu.CHRF().corpus_score(predictions, streams(references)).score / 100}
