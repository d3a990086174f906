"""BLEU of the whole corpus (Papineni et al. 2002; Post 2018), by sacrebleu with its own settings."""

from typing import ClassVar

from pefttools.metrics._text import References, bleu_tokenizer, several, streams
from pefttools.metrics.base import TextMetric


class Bleu(TextMetric):
    """`bleu`, a fraction."""

    modules: ClassVar[tuple[str, ...]] = ("sacrebleu",)

    def _compute(  # type: ignore[override]
        self, predictions: list[str], references: References, tokenizer: str = "auto"
    ) -> dict[str, float]:
        """The score; `tokenizer` is one of sacrebleu's, or `auto` to choose by the references' script."""
        import sacrebleu

        if tokenizer == "auto":
            tokenizer = bleu_tokenizer(text for row in several(references) for text in row)
        bleu = sacrebleu.BLEU(tokenize=tokenizer, force=True)  # force: no warning about texts that end in " ."
        return {"bleu": bleu.corpus_score(predictions, streams(references)).score / 100}
