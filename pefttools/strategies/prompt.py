"""prompt: virtual tokens before the text (Lester et al. 2021), through peft.

They are initialised with tokens drawn from the vocabulary, which is better than random vectors (same paper, figure 3b).
In an encoder, [CLS] moves to index p, while pooler and head read index 0, the first virtual token; so expect worse
results than with `prefix`. Learning rate: 0.3 with Adafactor in the paper; 1e-3 to 3e-2 with AdamW.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pefttools.bases.limits import refuse_last_token, take_positions
from pefttools.nn.shape import Shape
from pefttools.strategies._peft_strategy import PeftStrategy

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig

    from pefttools.bases.loading import Base


class Prompt(PeftStrategy):
    """Settings of prompt: the number of virtual tokens, and their initialisation."""

    default_lr: ClassVar[float] = 1e-2
    lr_range: ClassVar[tuple[float, float]] = (1e-3, 1e-1)
    mergeable: ClassVar[bool] = False
    why_not_merged: ClassVar[str] = (
        "virtual tokens are not weights of the base, so they cannot be merged;"
        " use --to adapter, or train strategy=lora, which merges"
    )
    exact_start: ClassVar[bool] = False

    tokens: int = Field(default=20, ge=1)
    """p, the number of virtual tokens. The maximum length of a text shrinks by this number."""
    init: Literal["vocabulary", "random"] = Field(default="vocabulary")
    """Initial values of the virtual tokens."""

    def config(self, base: Base) -> PeftConfig:
        from peft import PromptTuningConfig, PromptTuningInit

        start = PromptTuningInit.SAMPLE_VOCAB if self.init == "vocabulary" else PromptTuningInit.RANDOM
        return PromptTuningConfig(
            task_type=base.task_type,
            num_virtual_tokens=self.tokens,
            prompt_tuning_init=start,
            # peft does not know every family's names of these two
            token_dim=base.model.get_input_embeddings().embedding_dim,  # type: ignore[arg-type]
            num_attention_heads=base.model.config.num_attention_heads,
            modules_to_save=list(base.head),
            num_transformer_submodules=1,  # otherwise peft adds as many for a decoder, which it never uses
        )

    def make_room(self, base: Base) -> None:
        refuse_last_token(base)
        take_positions(base, self.tokens, "strategy.tokens")

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        return None if Shape.of(config) is None else self.tokens * config.hidden_size
