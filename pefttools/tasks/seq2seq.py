"""Translation and summarisation: an encoder-decoder (T5, BART, Marian, mBART, NLLB) turns one text into another.

A row is a `source` and a `target` (`data.columns: {source: article, target: highlights}`). It may also be a
`translation`, a mapping of languages to texts as on the hub; then `source_lang` and `target_lang` select the two. Lists
of sentences and objects of sections are joined into one text. The loss is cross-entropy over the target's tokens.
Metrics: perplexity of the targets, and for the first `generate_rows` rows, whose answers come from beam search, BLEU
and chrF (sacrebleu), ROUGE (rouge-score), and `stopped`, the share of answers that end with an end token.

A base model that was pretrained with an instruction needs it again: `prefix` is `"translate English to German: "` or
`"summarize: "` for T5, `">>fra<< "` for a Marian model of several languages. Base models that mark languages with
tokens (mBART, M2M-100, NLLB) expect their own codes in `source_lang` and `target_lang`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pefttools.bases import vocabulary
from pefttools.data import translation
from pefttools.data.batching import padded
from pefttools.data.fields import text
from pefttools.data.splitting import Row, Splits
from pefttools.errors import UserError
from pefttools.metrics import combined, modules_of
from pefttools.settings import NOT_IN_DIGEST
from pefttools.tasks import _vocabulary
from pefttools.tasks._vocabulary import PLACES
from pefttools.tasks.base import IGNORED, LABELS, Columns, Prediction, Task

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.bases.loading import Base
    from pefttools.tasks._generation import Decoding

METRICS = {"bleu": ("bleu", "chrf"), "rouge": ("rouge",), "both": ("bleu", "chrf", "rouge")}
"""`task.metric` -> the metrics of generated texts."""
NUM_CHECKED = 1000
"""Training rows that are checked for warnings and for the script of the targets."""
MUCH_UNKNOWN = 0.01
"""Share of unknown tokens in the targets from which on to warn."""


class Seq2Seq(Task):
    """One target text per row; the loss is cross-entropy over its tokens."""

    fields: ClassVar[Mapping[str, bool]] = {
        "source": False, "text": False, "target": False, "translation": False, "id": False,
    }  # fmt: skip
    inputs: ClassVar[tuple[str, ...]] = ("source",)
    rewritable: ClassVar[tuple[str, ...]] = ("source",)
    targets: ClassVar[tuple[str, ...]] = ("target",)
    samples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"source": "red apple", "target": "apple red"},
        {"source": "word1 word2 word3", "target": "word3 word2 word1"},
        {"source": "saw", "target": "saw"},
        {"source": "blue pear word4", "target": "word4 pear blue"},
    )
    of_data: ClassVar[tuple[str, ...]] = (
        "max_length", "max_target_length", "prefix", "source_lang", "target_lang", "generate_rows", "max_new_tokens",
        "min_new_tokens",
    )  # fmt: skip
    only_with: ClassVar[Any] = {
        "length_penalty": ("task.num_beams above 1", lambda task: task.num_beams > 1),
        "bleu_tokenizer": ("task.metric=bleu or both", lambda task: task.metric != "rouge"),
    }
    primary: ClassVar[str] = "perplexity"
    score_range: ClassVar[tuple[float, float] | None] = None
    lower_is_better: ClassVar[bool] = True
    compared_by_logarithm: ClassVar[bool] = True
    pipeline_tag: ClassVar[str | None] = "text2text-generation"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    peft_type: ClassVar[str | None] = "SEQ_2_SEQ_LM"
    own_head: ClassVar[bool] = False
    model_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", LABELS)
    generates: ClassVar[bool] = True

    max_length: int = Field(default=256, ge=4)
    """Maximum tokens of a source, the prefix included; longer sources are truncated and counted."""
    max_target_length: int = Field(default=128, ge=2)
    """Maximum tokens of a target; longer targets are truncated and counted."""
    prefix: str = ""
    """Text to put before every source; its spaces count."""
    source_lang: str | None = None
    """The language of the sources: a code of the tokenizer, a key of `translation`, or both."""
    target_lang: str | None = None
    """The language of the targets, like `source_lang`."""
    metric: Literal["bleu", "rouge", "both"] = "both"
    """Metrics of generated texts: `bleu` for BLEU and chrF, `rouge` for ROUGE-1, -2 and -L."""
    bleu_tokenizer: Literal["auto", "13a", "zh", "char", "intl"] = Field(
        default="auto", json_schema_extra=NOT_IN_DIGEST
    )
    """How BLEU splits words; `auto` is `zh` for Chinese targets, `char` for others without spaces, and `13a`
    otherwise."""
    generate_rows: int = Field(default=64, ge=0)
    """How many rows, from the first, to generate answers for in an evaluation."""
    num_beams: int = Field(default=4, ge=1)
    """Beams of the beam search; 1 is greedy decoding."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens of a generated answer; `max_target_length` when null."""
    min_new_tokens: int = Field(default=0, ge=0)
    """Minimum tokens of a generated answer."""
    length_penalty: float = 1.0
    """Above 0, the beam search prefers longer answers; below 0, shorter ones."""
    no_repeat_ngram_size: int = Field(default=0, ge=0)
    """Length in tokens of sequences that may not repeat in an answer; 0 allows all repeats."""

    @model_validator(mode="after")
    def _an_answer_has_room(self) -> Self:
        if self.min_new_tokens > self.num_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, above the maximum of {self.num_new_tokens} tokens"
            )
        return self

    @property
    def needed_modules(self) -> Mapping[str, str]:
        names = METRICS[self.metric] if self.generate_rows else ()
        return dict.fromkeys(modules_of(*names), f"metric={self.metric}")

    @property
    def num_new_tokens(self) -> int:
        """Maximum tokens of a generated answer."""
        return self.max_new_tokens or self.max_target_length

    def read(self, values: Mapping[str, Any]) -> Row:
        present = dict(values)
        if present.get("translation") is not None:
            present = {**translation.sides(present["translation"], self.source_lang, self.target_lang), **present}
        if not {"source", "text"} & {*present}:
            raise ValueError("has no source; name its column in data.columns.source")
        row: Row = {"source": text(translation.joined(present.get("source", present.get("text"))), "source")}
        if "target" in present:
            row["target"] = text(translation.joined(present["target"]), "target")
        if present.get("id") is not None:
            row["id"] = str(present["id"])
        return row

    def fit(self, splits: Splits) -> Self:
        from pefttools.metrics._text import bleu_tokenizer

        if problems := [p for name, rows in splits.named().items() for p in _without_target(f"data.{name}", rows)]:
            raise UserError(*problems)
        if self.bleu_tokenizer != "auto":
            return self
        return self.with_values(bleu_tokenizer=bleu_tokenizer(row["target"] for row in splits.train[:NUM_CHECKED]))

    def check_scorable(self, key: str, rows: Sequence[Row]) -> None:
        if problems := _without_target(key, rows):
            raise UserError(*problems)

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        warnings = []
        if (codes := translation.languages(tokenizer)) and not (self.source_lang and self.target_lang):
            warnings.append(
                f"the base model marks {len(codes)} languages with tokens; set task.source_lang and task.target_lang,"
                f" or it treats texts as {self.source_lang or getattr(tokenizer, 'src_lang', None)}"
            )
        self._set_languages(tokenizer)
        texts = {"text_target": [row["target"] for row in splits.train[:NUM_CHECKED]]}
        targets, _ = translation.shortened(tokenizer, texts, tokenizer.model_max_length)
        if not any(end in targets[0] for end in (tokenizer.eos_token_id, tokenizer.sep_token_id)):
            warnings.append("the tokenizer adds no end token to targets, so answers run to task.max_new_tokens")
        tokens = [token for ids in targets for token in ids]
        if (share := tokens.count(tokenizer.unk_token_id) / max(1, len(tokens))) >= MUCH_UNKNOWN:  # type: ignore[arg-type]
            warnings.append(
                f"{share:.1%} of the targets' tokens are unknown to the tokenizer; no answer can contain them"
            )
        return warnings

    def _set_languages(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        return translation.set_languages(tokenizer, self.source_lang, self.target_lang)

    def _source_ids(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[list[int]], list[bool]]:
        """Token ids of the sources, and whether each was truncated."""
        self._set_languages(tokenizer)
        limit = min(self.max_length, tokenizer.model_max_length)
        return translation.shortened(tokenizer, {"text": [self.prefix + row["source"] for row in rows]}, limit)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        sources, cut = self._source_ids(rows, tokenizer)
        if not rows or not all("target" in row for row in rows):
            return {"input_ids": sources, "num_targets": [0] * len(rows), "cut": cut}
        limit = min(self.max_target_length, tokenizer.model_max_length)
        targets, shortened = translation.shortened(tokenizer, {"text_target": [row["target"] for row in rows]}, limit)
        return {
            "input_ids": sources,
            LABELS: targets,
            "num_targets": [len(ids) for ids in targets],
            "length": [len(s) + len(t) for s, t in zip(sources, targets, strict=True)],
            "cut": [a or b for a, b in zip(cut, shortened, strict=True)],
        }

    def collate(self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int) -> dict[str, Tensor]:
        batch = super().collate({n: c for n, c in columns.items() if n != LABELS}, tokenizer, multiple)
        if LABELS in columns:  # labels have their own width
            width = -(-max(map(len, columns[LABELS])) // multiple) * multiple
            batch[LABELS] = padded(columns[LABELS], width, IGNORED)
            batch[PLACES] = _vocabulary.places(columns[LABELS], width)
        return batch

    def adapt(self, base: Base) -> None:
        if self.prefix and any(token in self.prefix for token in base.tokenizer.all_special_tokens):
            vocabulary.keep(base.tokenizer, "split_special_tokens", False)

    def logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return outputs.logits[:, -batch[LABELS].shape[1] :]  # virtual tokens also come before the targets

    def logits_of_rows(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Tensor]:
        targets = batch[LABELS] != IGNORED
        return [row[mask] for row, mask in zip(self.logits(outputs, batch), targets, strict=True)]

    def _targets(self, outputs: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The targets' states as in `_vocabulary`, and their token ids."""
        return self.logits(outputs, batch).flatten(0, 1)[batch[PLACES]], self.target_classes(batch)

    def target_logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return _vocabulary.logits(outputs, self._targets(outputs, batch)[0])

    def target_classes(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch[LABELS].flatten()[batch[PLACES]]

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return _vocabulary.loss(outputs, *self._targets(outputs, batch))

    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        losses, _ = _vocabulary.scored(outputs, *self._targets(outputs, batch))
        numbers = (batch[LABELS] != IGNORED).sum(1).tolist()
        return [
            {"nll": part.sum().item(), "num_targets": number}
            for part, number in zip(losses.split(numbers), numbers, strict=True)
        ]

    def generation_input(self, row: Row) -> dict[str, Any]:
        return {"text": self.prefix + row["source"]}

    def prompts(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Token ids of each row for the encoder."""
        return self._source_ids(rows, tokenizer)[0]

    def decoding(self, tokenizer: PreTrainedTokenizerBase) -> Decoding:
        from pefttools.tasks._generation import Decoding

        first = self._set_languages(tokenizer)
        room = min(self.num_new_tokens, tokenizer.model_max_length)  # the limit of positions holds for the decoder, too
        return Decoding(
            max_new_tokens=room,
            num_beams=self.num_beams,
            more={
                "length_penalty": self.length_penalty,
                "no_repeat_ngram_size": self.no_repeat_ngram_size,
                **({"min_new_tokens": min(room, self.min_new_tokens)} if self.min_new_tokens else {}),
                **({} if first is None else {"forced_bos_token_id": first}),
            },
        )

    def generate(
        self, model: nn.Module, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[int, Prediction]]:
        from pefttools.tasks import _generation

        decoding = self.decoding(tokenizer)
        for index, generated in _generation.generate(model, self.prompts(rows, tokenizer), tokenizer, decoding):
            yield index, {"prediction": generated.text, "finish": generated.finish}

    def num_generated(self, number: int) -> int:
        return min(number, self.generate_rows)

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        from pefttools.metrics import _language
        from pefttools.metrics.bleu import Bleu

        values, pairs = _language.scored_and_answered(predictions, references)
        if not pairs:
            return values
        texts: Any = {
            "predictions": [p["prediction"].strip() for p, _ in pairs],
            "references": [r.strip() for _, r in pairs],
        }
        if self.metric != "rouge":
            values |= Bleu(keep_in_memory=True).compute(**texts, tokenizer=self.bleu_tokenizer) or {}
        names = [name for name in METRICS[self.metric] if name != "bleu"]
        values |= combined(*names).compute(**texts) or {}
        return {**values, "stopped": _language.stopped(pairs)}

    def reference(self, row: Row) -> Any:
        return row.get("target")

    def probe(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**batch, LABELS: batch["input_ids"][:, :4].contiguous()}

    def longest(self, limit: int) -> int:
        return min(self.max_length, limit) + min(self.max_target_length, limit)

    def repeat_to_length(self, row: Mapping[str, Any], length: int) -> dict[str, Any]:
        target = max(1, round(length * self.max_target_length / (self.max_length + self.max_target_length)))
        parts = {"input_ids": length - target, LABELS: target}
        longer = {name: super(Seq2Seq, self).repeat_to_length({"input_ids": row[name]}, n) for name, n in parts.items()}
        return {**row, **{name: value["input_ids"] for name, value in longer.items()}, "length": length}


def _without_target(key: str, rows: Sequence[Row]) -> list[str]:
    """One problem if rows have no target, else none."""
    if not (missing := sum("target" not in row for row in rows)):
        return []
    return [f"{key}: {missing} of {len(rows)} rows have no target; name its column in data.columns.target"]
