"""What masked language modelling shares: windows of a text, their masks, metrics, and masks filled."""

from __future__ import annotations

import hashlib
from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from pefttools.data import masking, windows
from pefttools.data.batching import batches, eval_budget
from pefttools.data.fields import text
from pefttools.data.splitting import LeftOut, Row, Splits
from pefttools.errors import UserError
from pefttools.tasks import _vocabulary
from pefttools.tasks._vocabulary import PLACES
from pefttools.tasks.base import IGNORED, LABELS, Columns, Prediction, Task

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

TOP = 5
"""Number of predicted tokens for each mask."""
WORDS = "words"
"""Column with the index of the word that each token belongs to."""


class MaskedTokensTask(Task, ABC):
    """Predict masked tokens; the loss is cross-entropy over them."""

    fields: ClassVar[Mapping[str, bool]] = {"text": True, "id": False}
    inputs: ClassVar[tuple[str, ...]] = ("text",)
    targets: ClassVar[tuple[str, ...]] = ()
    samples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "word1 word2 apple [MASK] word3 pear"},
        {"text": "red word4 [MASK] drill"},
        {"text": "word5 word6 [MASK] word7 plum blue"},
        {"text": "saw [MASK]"},
    )
    primary: ClassVar[str] = "perplexity"
    score_range: ClassVar[tuple[float, float] | None] = None
    lower_is_better: ClassVar[bool] = True
    compared_by_logarithm: ClassVar[bool] = True
    pipeline_tag: ClassVar[str | None] = "fill-mask"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    peft_type: ClassVar[str | None] = None
    own_head: ClassVar[bool] = False
    texts_are_data: ClassVar[bool] = False
    generates: ClassVar[bool] = True  # `predict` fills masks; an evaluation generates nothing
    takes_rounding: ClassVar[bool] = False
    defers_output_layer: ClassVar[bool] = True

    max_length: int = Field(default=128, ge=8)
    """Maximum tokens of a window; longer texts are split into several windows."""
    mask_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that become targets; every window has at least one."""
    replaced_share: float = Field(default=0.8, ge=0, le=1)
    """Share of the targets that are replaced by the mask token."""
    random_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the targets that are replaced by a random token; the rest stay unchanged."""
    whole_word: bool = False
    """Make all sub-words of a word targets together; at most one word of a window is masked in part."""

    @model_validator(mode="after")
    def _shares_of_one(self) -> Self:
        if self.replaced_share + self.random_share > 1 + 1e-9:
            raise ValueError(
                f"replaced_share and random_share add up to {self.replaced_share + self.random_share:g}, more than 1"
            )
        return self

    @property
    def _shares(self) -> masking.Shares:
        return masking.Shares(self.mask_share, self.replaced_share, self.random_share)

    def read(self, values: Mapping[str, Any]) -> Row:
        if isinstance(values.get("text"), str) and not values["text"].strip():
            raise LeftOut("empty text")
        row: Row = {"text": text(values.get("text"), "text")}
        if values.get("id") is not None:
            row["id"] = str(values["id"])
        return row

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        del splits
        masking.vocabulary(tokenizer)
        if self.whole_word and not tokenizer.is_fast:
            raise UserError(
                "task.whole_word: the base model's slow tokenizer does not report word boundaries; set it to false"
            )
        return []

    def _room(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Number of tokens in a window, without the special tokens."""
        return min(self.max_length, tokenizer.model_max_length) - windows.frame(tokenizer).num_tokens

    def _windows(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, with_masks: bool = False
    ) -> list[tuple[int, windows.Piece]]:
        """(index of the row, window with special tokens) for every window of every row."""
        frame, room = windows.frame(tokenizer), self._room(tokenizer)
        texts = windows.pieces([row["text"] for row in rows], tokenizer, with_masks)
        return [(i, part.framed(frame)) for i, piece in enumerate(texts) for part in windows.cut(piece, room)]

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        """Masked windows with their labels."""
        import torch

        columns: dict[str, list[Any]] = {n: [] for n in ("input_ids", LABELS, "num_targets", "row")}
        vocabulary = masking.vocabulary(tokenizer)
        for row, piece in self._windows(rows, tokenizer):
            seed = hashlib.sha256(f"{piece.ids}".encode()).digest()[:7]
            draw = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
            ids, labels = masking.masked(
                piece.ids, vocabulary, self._shares, piece.words if self.whole_word else None, draw
            )
            values = {"input_ids": ids, LABELS: labels, "num_targets": sum(i != IGNORED for i in labels), "row": row}
            for name, value in values.items():
                columns[name].append(value)
        return {**columns, "cut": [False] * len(columns["row"])}

    def _training_windows(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[windows.Piece]:
        """The windows that are trained on, with special tokens."""
        return [piece for _, piece in self._windows(rows, tokenizer)]

    def encode_training(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        """Unmasked windows, and the number of targets that `collate_training` draws in each."""
        pieces = self._training_windows(rows, tokenizer)
        vocabulary = masking.vocabulary(tokenizer)
        columns: dict[str, list[Any]] = {
            "input_ids": [piece.ids for piece in pieces],
            "num_targets": [masking.num_targets(piece.ids, vocabulary, self._shares) for piece in pieces],
            "cut": [False] * len(pieces),
        }
        return columns | ({WORDS: [piece.words for piece in pieces]} if self.whole_word else {})

    def collate_training(
        self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int
    ) -> dict[str, Tensor]:
        texts = columns["input_ids"]
        rows = zip(texts, columns.get(WORDS, [None] * len(texts)), masking.draws(columns, len(texts)), strict=True)
        vocabulary = masking.vocabulary(tokenizer)
        masked, labels = zip(
            *(masking.masked(ids, vocabulary, self._shares, words, draw) for ids, words, draw in rows), strict=True
        )
        return self.collate({"input_ids": masked, LABELS: labels}, tokenizer, multiple)

    def collate(self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int) -> dict[str, Tensor]:
        batch = super().collate(columns, tokenizer, multiple)
        if LABELS in batch:
            batch[PLACES] = _vocabulary.places(columns[LABELS], batch[LABELS].shape[1])
        return batch

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
        losses, right = _vocabulary.scored(outputs, *self._targets(outputs, batch))
        numbers = (batch[LABELS] != IGNORED).sum(1).tolist()
        parts = zip(losses.split(numbers), right.split(numbers), numbers, strict=True)
        return [
            {"nll": loss.sum().item(), "num_correct": hits.sum().item(), "num_targets": n} for loss, hits, n in parts
        ]

    def aggregate(self, row: Row, encoded: Sequence[Mapping[str, Any]], parts: Sequence[Prediction]) -> Prediction:
        del row, encoded
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        from pefttools.metrics._language import perplexity

        del references
        right, number = (sum(p[name] for p in predictions) for name in ("num_correct", "num_targets"))
        return {"perplexity": perplexity(predictions), "accuracy": right / max(1, number)}

    def reference(self, row: Row) -> Any:
        return row["text"]

    def generate(
        self, model: nn.Module, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[int, Prediction]]:
        """Yield (index, prediction) for every text: the text with filled masks, and the likeliest tokens of every mask.

        Raises:
            UserError: a text has no mask.
        """
        from pefttools.nn.sharding import without_gradients

        mask, token = masking.vocabulary(tokenizer).mask, str(tokenizer.mask_token)
        if empty := [number for number, row in enumerate(rows, 1) if token not in row["text"]]:
            raise UserError(f"predict: row {empty[0]} has no {token} to fill: {rows[empty[0] - 1]['text'][:80]!r}")
        device = next(model.parameters()).device
        parts = [(i, piece.ids) for i, piece in self._windows(rows, tokenizer, with_masks=True) if mask in piece.ids]
        lengths = [len(ids) for _, ids in parts]
        fills: dict[int, list[list[dict[str, Any]]]] = {}  # by window
        for indices in batches(range(len(parts)), lengths, 64, eval_budget(device.type), 1):
            batch = self.collate({"input_ids": [parts[i][1] for i in indices]}, tokenizer, 1)
            batch = {name: value.to(device) for name, value in batch.items()}
            with without_gradients(model):
                logits = self.logits(model(**self.inputs_of(batch)), batch).float()
            for index, ids, line in zip(indices, batch["input_ids"], logits, strict=True):
                best = line[ids == mask].softmax(-1).topk(min(TOP, line.shape[-1]))
                fills[index] = [
                    _named(p, i, tokenizer) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                ]
        for number, group in groupby(range(len(parts)), key=lambda i: parts[i][0]):
            found = [fill for i in group for fill in fills[i]]
            yield number, {"prediction": _filled(rows[number]["text"], token, found), "fills": found}

    def repeat_to_length(self, row: Mapping[str, Any], length: int) -> dict[str, Any]:
        longer = super().repeat_to_length(row, length)
        number = max(1, round(self.mask_share * length))
        return {**longer, LABELS: [*longer["input_ids"][:number], *[IGNORED] * (length - number)]}


def _named(
    probabilities: Sequence[float], ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """Predicted tokens for a mask, the likeliest first; a token inside a word keeps its prefix (`##ing`)."""
    texts = [tokenizer.convert_ids_to_tokens(i) for i in ids]
    shown = [t if t.startswith("##") else str(tokenizer.decode([i])).strip() for i, t in zip(ids, texts, strict=True)]  # type: ignore[union-attr]
    return [{"token": token, "probability": p} for token, p in zip(shown, probabilities, strict=True)]


def _filled(text: str, mask: str, fills: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """The text with each mask replaced by its likeliest token."""
    first, *others = text.split(mask)
    for fill, part in zip(fills, others, strict=False):
        token: str = fill[0]["token"]
        first = first.rstrip() + token.removeprefix("##") if token.startswith("##") else first + token
        first += part
    return first
