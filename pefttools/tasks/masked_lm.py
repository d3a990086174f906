"""Masked language modelling: an encoder's pretraining is continued on plain text of a domain, before fine-tuning.

A row is a `text`: a line of a .txt file (empty lines are skipped), a file of a folder, or a column. Texts longer than
`max_length` are split into windows; nothing is truncated. In every window a share of the tokens becomes targets (Devlin
et al. 2019): most of them are replaced by the mask token, some by a random token, and some stay unchanged. Training
draws new targets every time; evaluation draws them by a hash of the text, so they are always the same.

Metrics, over the target tokens: perplexity and accuracy. `predict` fills the masks of a text: `--text "Paris is the
[MASK] of France."`.
"""

from __future__ import annotations

from pefttools.tasks._masked_tokens import MaskedTokensTask


class MaskedLM(MaskedTokensTask):
    """Predict masked tokens; the loss is cross-entropy over them."""
