"""The section `train` of a recipe: how the one loop goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator

from pefttools.optimizers import optimizers
from pefttools.optimizers.adamw import AdamW
from pefttools.optimizers.base import Optimizer
from pefttools.recipe.schedule import SCHEDULES
from pefttools.settings import NOT_IN_DIGEST, Settings


class TrainSettings(Settings):
    """The loop."""

    epochs: float = Field(default=3.0, gt=0)
    """Passes over the training rows."""
    batch_size: int = Field(default=32, ge=1)
    """Rows a step, over all processes and accumulation: the number that changes what is learnt."""
    micro_batch_size: int = Field(default=1024, ge=1)
    """Most rows that are computed at once; a step of more is accumulated."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Most padded tokens that are computed at once; null suits the device (on a CPU more is slower)."""
    pad_multiple: int | None = Field(default=None, ge=1)
    """Batches are padded to a multiple of this many tokens; null suits the device (8 on a GPU, 4 on a CPU)."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """ξ: the learning rate of layer l of L is multiplied with ξ^(L-l); the head has the whole, the embeddings least."""
    optimizer: Optimizer = AdamW()
    """What makes a step of the gradients: a name, or a mapping of `name` and its settings."""
    learning_rate: float | None = Field(default=None, gt=0)
    """The highest learning rate; the strategy's default when null."""
    head_lr_scale: float | None = Field(default=None, gt=0)
    """What the learning rate of a new head is multiplied with; the strategy's default when null. Of the methods of peft
    the head learns like the rest."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate falls after the warmup."""
    warmup: float | None = Field(default=None, ge=0, lt=1)
    """Share of the steps over which the learning rate rises; the strategy's default when null."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Added to the gradient by adam, sgd and adagrad, decoupled by the others; biases and norms are left out."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; null leaves them."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What steps compute in; `auto` is bf16 where the processor multiplies it natively. Trained weights are fp32."""
    gradient_checkpointing: bool = Field(default=False, json_schema_extra=NOT_IN_DIGEST)
    """Blocks keep their inputs only and are computed again on the way back: less memory, about a third slower."""
    compile: bool = Field(default=False, json_schema_extra=NOT_IN_DIGEST)
    """Steps through torch.compile: half a minute and more before the first, which pays in long runs of large models."""
    evaluate_every: float = Field(default=1.0, gt=0)
    """Epochs between looks at the validation rows; the end is always one."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many looks without a better score."""
    log_every: int = Field(default=10, ge=1, json_schema_extra=NOT_IN_DIGEST)
    """Steps between lines of metrics.jsonl."""
    checkpoint_seconds: float = Field(default=30.0, ge=0, json_schema_extra=NOT_IN_DIGEST)
    """At most so much work is lost when a run dies."""
    keep_checkpoints: bool = Field(default=False, json_schema_extra=NOT_IN_DIGEST)
    """Keep the checkpoints of a finished run."""
    feature_cache: Literal["auto", "memory", "disk", "off"] = Field(default="auto", json_schema_extra=NOT_IN_DIGEST)
    """Where to keep what the frozen lowest blocks make of every row, computed once: `auto`, if it is read more than
    once, on disk for later runs and in memory where it fits; `memory` there alone; `disk` mapped from there."""
    feature_cache_bytes: int = Field(default=2 * 2**30, ge=0, json_schema_extra=NOT_IN_DIGEST)
    """Most memory that takes."""
    feature_disk_bytes: int = Field(default=20 * 2**30, ge=0, json_schema_extra=NOT_IN_DIGEST)
    """Most disk that takes, of all runs together; what nobody read for longest goes first."""
    trackers: tuple[str, ...] = Field(default=("tensorboard",), json_schema_extra=NOT_IN_DIGEST)
    """Accelerate trackers by name: tensorboard, wandb, mlflow, …"""

    @field_validator("feature_cache", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML's reading of a bare off

    @field_validator("optimizer", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, Optimizer):
            return value
        optimizer, problems = parse_optimizer(value)
        if problems:
            raise ValueError("; ".join(problems))
        return optimizer

    @field_serializer("optimizer")
    def _as_a_choice(self, optimizer: Optimizer) -> dict[str, Any]:
        return optimizer.as_dict()


def parse_optimizer(value: Any) -> tuple[Optimizer | None, list[str]]:
    """From what a recipe holds under `train.optimizer` to the choice, or the problems.

    A mapping without `name` has the settings of the default optimizer.
    """
    if isinstance(value, Mapping) and "name" not in value:
        value = {"name": TrainSettings.model_fields["optimizer"].default.name, **value}
    return optimizers.parse(value, "train.optimizer")


assert set(SCHEDULES) == set(TrainSettings.model_fields["schedule"].annotation.__args__)  # type: ignore[union-attr]
