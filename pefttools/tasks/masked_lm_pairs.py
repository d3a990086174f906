"""Masked language modelling with pairs of text parts: BERT's own pretraining, continued on plain text of a domain.

A row is a text of several sentences, as in `masked_lm`. Every text is cut into pairs of neighbouring parts, and in half
of the pairs the parts do not belong together: with `pairs: next` the second part is from another text (next-sentence
prediction, Devlin et al. 2019), with `pairs: order` the two parts are swapped (sentence order, Lan et al. 2020). Tokens
of both parts are masked as in `masked_lm`. The base needs a head for both (BERT, ALBERT and their relatives); a
checkpoint without its weights gets a new one. Training draws anew in every epoch; evaluation draws by a hash.

Metrics: perplexity and accuracy over the masked tokens, and `pair_accuracy`. `predict` fills masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pefttools.bases import loading
from pefttools.data import masking
from pefttools.data.sentence_pairs import NOTHING, Pair, PairFrame, pair_frame, pairs
from pefttools.data.splitting import Row, Splits
from pefttools.data.windows import Piece
from pefttools.errors import UserError
from pefttools.tasks._masked_tokens import MaskedTokensTask
from pefttools.tasks.base import IGNORED, LABELS, Columns, Prediction, Task, without_virtual

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedTokenizerBase

HEADS = ("seq_relationship", "sop_classifier")
"""Names of transformers' modules that score pairs."""
PAIR = "pair"
"""Column of the pairs' labels: 0 if the parts belong together, 1 if not, `IGNORED` for a text of one word."""
PARTS = "parts"
TYPES = "token_type_ids"


class MaskedLMPairs(MaskedTokensTask):
    """Predict masked tokens, and whether two parts of a text belong together.

    The loss is the mean cross-entropy of the masked tokens plus that of the pairs, in which a pair counts by its number
    of masked tokens.
    """

    auto_class: ClassVar[str] = "AutoModelForPreTraining"
    defers_output_layer: ClassVar[bool] = False  # the model has two heads
    target_logits = Task.target_logits  # tokens and pairs have different classes
    target_classes = Task.target_classes

    pairs: Literal["next", "order"] = "next"
    """What parts that do not belong together are: the second one is from another text (`next`), or they are swapped
    (`order`)."""

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        texts = [row["text"] for row in splits.train[:200]]
        found = pairs(texts, tokenizer, self._room(tokenizer))
        if not any(pair.second.ids for pair in found):
            raise UserError("data.train: its texts have one word each, so there are no pairs; use task=masked_lm")
        if self.pairs == "next" and not any(pair.other.ids for pair in found):
            raise UserError(
                "task.pairs=next takes wrong second parts from other texts, but data.train has one text only;"
                " set task.pairs=order"
            )
        return super().remarks(splits, tokenizer)

    def adapt(self, base: loading.Base) -> None:
        """Refuse a base whose architecture has no head for pairs."""
        if not any(path.split(".")[-1] in HEADS for path, _ in base.model.named_modules()):
            raise UserError(
                f"base: {base.source} cannot do this task: {type(base.model).__name__} has no head for pairs of"
                " sentences, which BERT and ALBERT have; use task=masked_lm, or another base"
            )

    def _room(self, tokenizer: PreTrainedTokenizerBase) -> int:
        return min(self.max_length, tokenizer.model_max_length) - pair_frame(tokenizer).num_tokens

    def _drawn(self, pair: Pair, frame: PairFrame, draw: Generator | None) -> tuple[Piece, list[int], int]:
        """The pair with special tokens as drawn: its tokens, its token types, and its label."""
        import torch

        wrong = (pair.second, pair.first) if self.pairs == "order" else (pair.first, pair.other)
        drawn_wrong = torch.rand((), generator=draw).item() < 0.5
        if not pair.second.ids:
            return *frame.framed(pair.first, NOTHING), IGNORED
        if drawn_wrong and wrong[1].ids:
            return *frame.framed(*wrong), 1
        return *frame.framed(pair.first, pair.second), 0

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        """Masked pairs with their labels."""
        import torch

        columns: dict[str, list[Any]] = {n: [] for n in ("input_ids", TYPES, LABELS, PAIR, "num_targets", "row")}
        vocabulary, frame = masking.vocabulary(tokenizer), pair_frame(tokenizer)
        for pair in pairs([row["text"] for row in rows], tokenizer, self._room(tokenizer)):
            seed = hashlib.sha256(f"{pair.first.ids} {pair.second.ids}".encode()).digest()[:7]
            draw = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
            piece, types, label = self._drawn(pair, frame, draw)
            words = piece.words if self.whole_word else None
            ids, labels = masking.masked(piece.ids, vocabulary, self._shares, words, draw)
            number = sum(i != IGNORED for i in labels)
            for name, value in zip(columns, (ids, types, labels, label, number, pair.row), strict=True):
                columns[name].append(value)
        return _typed({**columns, "cut": [False] * len(columns["row"])}, tokenizer)

    def encode_training(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        """The parts of every pair, from which `collate_training` draws; `input_ids` are the parts that belong
        together."""
        names = ("input_ids", TYPES, PARTS, "num_targets", "length", "cut")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        vocabulary, frame = masking.vocabulary(tokenizer), pair_frame(tokenizer)
        for pair in pairs([row["text"] for row in rows], tokenizer, self._room(tokenizer)):
            piece, types = frame.framed(pair.first, pair.second)
            wrong, _ = frame.framed(pair.first, pair.other if pair.other.ids else pair.second)
            number = min(masking.num_targets(ids, vocabulary, self._shares) for ids in (piece.ids, wrong.ids))
            parts = [[part.ids, part.words] for part in (pair.first, pair.second, pair.other)]
            length = max(len(piece.ids), len(wrong.ids))
            for name, value in zip(names, (piece.ids, types, parts, number, length, False), strict=True):
                columns[name].append(value)
        return _typed(columns, tokenizer)

    def collate_training(
        self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int
    ) -> dict[str, Tensor]:
        vocabulary, frame = masking.vocabulary(tokenizer), pair_frame(tokenizer)
        found: dict[str, list[Any]] = {name: [] for name in ("input_ids", TYPES, LABELS, PAIR)}
        draws = masking.draws(columns, len(columns[PARTS]))
        for parts, number, draw in zip(columns[PARTS], columns["num_targets"], draws, strict=True):
            pair = Pair(0, *(Piece(ids, words) for ids, words in parts))
            piece, types, label = self._drawn(pair, frame, draw)
            words = piece.words if self.whole_word else None
            ids, labels = masking.masked(piece.ids, vocabulary, self._shares, words, draw, number)
            for name, value in zip(found, (ids, types, labels, label), strict=True):
                found[name].append(value)
        return self.collate(_typed(found, tokenizer), tokenizer, multiple)

    def collate(self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int) -> dict[str, Tensor]:
        import torch

        batch = super().collate(columns, tokenizer, multiple)
        return {**batch, PAIR: torch.tensor(columns[PAIR])} if PAIR in columns else batch

    def logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return without_virtual(outputs.prediction_logits, batch)

    def row_logits(self, outputs: Any) -> Tensor:
        """The logits of the pairs, shape (rows, 2)."""
        found: Tensor = outputs.sop_logits if hasattr(outputs, "sop_logits") else outputs.seq_relationship_logits
        return found.float()

    def logits_of_rows(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Tensor]:
        import torch

        tokens = super().logits_of_rows(outputs, batch)
        return [torch.cat([row.flatten(), pair]) for row, pair in zip(tokens, self.row_logits(outputs), strict=True)]

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        import torch

        pair_losses = torch.nn.functional.cross_entropy(
            self.row_logits(outputs), batch[PAIR], reduction="none", ignore_index=IGNORED
        )
        weights = (batch[LABELS] != IGNORED).sum(1)
        return super().loss(outputs, batch) + (weights * pair_losses).sum()

    def divergence(self, outputs: Any, others: Any, batch: Mapping[str, Tensor]) -> Tensor:
        from pefttools.nn import divergence

        (tokens, _), (other_tokens, _) = self._targets(outputs, batch), self._targets(others, batch)
        of_pairs = divergence.of_classes(self.row_logits(outputs), self.row_logits(others))
        weights = (batch[LABELS] != IGNORED).sum(1) * (batch[PAIR] != IGNORED)
        return divergence.of_classes(tokens, other_tokens).sum() + (weights * of_pairs).sum()

    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        found = super().predict(outputs, batch)
        right = (self.row_logits(outputs).argmax(-1) == batch[PAIR]).tolist()
        known = (batch[PAIR] != IGNORED).tolist()
        return [
            {**one, "num_right_pairs": int(r), "num_pairs": int(k)}
            for one, r, k in zip(found, right, known, strict=True)
        ]

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        right, number = (sum(p[name] for p in predictions) for name in ("num_right_pairs", "num_pairs"))
        return {**super().metrics(predictions, references), **({"pair_accuracy": right / number} if number else {})}

    def repeat_to_length(self, row: Mapping[str, Any], length: int) -> dict[str, Any]:
        return {**super().repeat_to_length(row, length), PAIR: 0}

    def shown(self, encoded: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
        together = {0: "the parts belong together", 1: "the parts do not belong together"}
        label = encoded.get(PAIR, IGNORED)
        return super().shown(encoded, tokenizer) + (f"\n-> {together[label]}" if label in together else "")


def _typed(columns: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    """The columns, without token types if the model has none."""
    if TYPES not in tokenizer.model_input_names:
        del columns[TYPES]
    return columns
