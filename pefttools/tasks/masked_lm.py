"""Masked language modelling: an encoder's pretraining is continued on plain text of a domain, before fine-tuning.

A row is a `text`: a line of a .txt file (empty lines are skipped), a file of a folder, or a column. Texts longer than
`max_length` are split into windows; nothing is truncated. In every window a share of the tokens becomes targets (Devlin
et al. 2019): most of them are replaced by the mask token, some by a random token, and some stay unchanged. Training
draws new targets every time; evaluation draws them by a hash of the text, so they are always the same.

Metrics, over the target tokens: perplexity and accuracy. `predict` fills the masks of a text: `--text "Paris is the
[MASK] of France."`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pefttools.data import windows
from pefttools.data.splitting import Row, Splits
from pefttools.tasks._masked_tokens import MaskedTokensTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MaskedLM(MaskedTokensTask):
    """Predict masked tokens; the loss is cross-entropy over them."""

    join_lines: bool = False
    """Join training texts into full windows; for files with short lines."""

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        found = super().remarks(splits, tokenizer)
        tokens = [len(piece.ids) for piece in windows.pieces([row["text"] for row in splits.train[:200]], tokenizer)]
        room = self._room(tokenizer)
        if not self.join_lines and sum(tokens) < len(tokens) * room / 8:
            mean = sum(tokens) / len(tokens)
            return [
                *found,
                f"texts have {mean:.0f} tokens on average, but a window takes {room};"
                " task.join_lines=true fills the windows and trains faster",
            ]
        return found

    def _training_windows(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[windows.Piece]:
        if not self.join_lines:
            return super()._training_windows(rows, tokenizer)
        frame, texts = windows.frame(tokenizer), windows.pieces([row["text"] for row in rows], tokenizer)
        between = frame.after[-1:]
        return [part.framed(frame) for part in windows.join(texts, self._room(tokenizer), between)]
