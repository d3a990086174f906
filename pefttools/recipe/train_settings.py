"""The section `train` of a recipe: the settings of the training loop."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator

from pefttools.optimizers import optimizers
from pefttools.optimizers.adamw import AdamW
from pefttools.optimizers.base import Optimizer
from pefttools.settings import DEFAULT_NOT_IN_DIGEST, NOT_IN_DIGEST, Settings


class TrainSettings(Settings):
    """Settings of the training loop."""

    only_with: ClassVar[Any] = {"best_mode": ("train.best_metric", lambda train: train.best_metric is not None)}

    epochs: float = Field(default=3.0, gt=0)
    """Passes over the training rows."""
    batch_size: int = Field(default=32, ge=1)
    """Rows per step, over all processes and accumulated micro-batches. This number changes what the model learns."""
    micro_batch_size: int = Field(default=1024, ge=1)
    """Upper limit of rows computed at once. A step with more rows accumulates gradients over several micro-batches."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Upper limit of padded tokens computed at once; null chooses a limit for the device (on a CPU, more is slower)."""
    memory: str | None = Field(default=None, json_schema_extra=NOT_IN_DIGEST)
    """Keep the run within this memory, `auto` for what is free or a size such as 8GB, by computing fewer tokens at once
    and, if need be, with `gradient_checkpointing`. Both change only rounding. Needs a plan of the run before it begins,
    which takes some seconds."""
    memory_tokens: int | None = Field(default=None, ge=1, json_schema_extra=NOT_IN_DIGEST)
    """Upper limit of padded tokens computed at once that `memory` chose; `micro_batch_tokens` is the one to set."""
    pad_multiple: int | None = Field(default=None, ge=1)
    """Batches are padded to a multiple of this many tokens; null means 8 on a GPU and 4 on a CPU."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """ξ: the learning rate of layer l of L is multiplied by ξ^(L-l). The head gets the full rate, the embeddings the
    lowest."""
    optimizer: Optimizer = AdamW()
    """The optimizer: a name, or a mapping of `name` and the optimizer's settings."""
    learning_rate: float | None = Field(default=None, gt=0)
    """The peak learning rate; null means the strategy's default."""
    head_lr_scale: float | None = Field(default=None, gt=0)
    """Factor on the learning rate of a new head; null means the strategy's default. With strategies
    that use peft (lora, ia3, …), the head has the same learning rate as the other weights."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the learning rate's decrease after the warmup."""
    warmup: float | None = Field(default=None, ge=0, lt=1)
    """Share of the steps over which the learning rate rises; null means the strategy's default."""
    weight_decay: float = Field(default=0.01, ge=0)
    """With adam, sgd and adagrad it is added to the gradient; with the others it is decoupled. Biases and norms get
    none."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to this norm; null turns clipping off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the computations. `auto` means bf16 if the processor or GPU supports it natively, fp16 on other
    CUDA GPUs, else fp32. fp16 needs a CUDA GPU. Trained weights are fp32."""
    gradient_checkpointing: bool = Field(default=False, json_schema_extra=NOT_IN_DIGEST)
    """Store only the inputs of blocks and compute the blocks again in the backward pass. This takes less memory and is
    about a third slower."""
    shard: bool = Field(default=False, json_schema_extra=NOT_IN_DIGEST)
    """Let the processes of a launch share all weights, gradients and the optimizer's state, for models that are larger
    than a device: each stores 1/N of them. This takes more time, because every block's weights are exchanged."""
    compile: bool = Field(default=False, json_schema_extra=NOT_IN_DIGEST)
    """Compile the steps with torch.compile. The first step takes at least half a minute longer, so this pays off in
    long runs of large models."""
    liger: bool = Field(default=False, json_schema_extra=NOT_IN_DIGEST)
    """Compute rotary positions, norms and gated MLPs of a language model with Liger's kernels, which take less time and
    memory. This needs a CUDA GPU."""
    evaluate_every: float = Field(default=1.0, gt=0)
    """Epochs between evaluations on the validation rows. There is always one at the end of training."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations without a better score; null never stops early."""
    best_metric: str | None = Field(default=None, json_schema_extra=DEFAULT_NOT_IN_DIGEST)
    """The metric of the validation rows that chooses the best weights, and that `patience` watches: one of the task's,
    `loss`, or one of `task.extra_metrics`; null means the task's primary metric."""
    best_mode: Literal["auto", "max", "min"] = Field(default="auto", json_schema_extra=DEFAULT_NOT_IN_DIGEST)
    """Whether the best value of `best_metric` is the highest or the lowest; `auto` takes the lowest of losses,
    perplexities and errors, and the highest of any other."""
    log_every: int = Field(default=10, ge=1, json_schema_extra=NOT_IN_DIGEST)
    """Steps between lines of metrics.jsonl."""
    checkpoint_seconds: float = Field(default=30.0, ge=0, json_schema_extra=NOT_IN_DIGEST)
    """Seconds between checkpoints. A run that is killed loses at most this much work."""
    checkpoint_steps: int | None = Field(default=None, ge=1, json_schema_extra=NOT_IN_DIGEST)
    """Steps between checkpoints, in addition to those by time; null writes them by time only."""
    last_checkpoints: int = Field(default=2, ge=1, json_schema_extra=NOT_IN_DIGEST)
    """Number of checkpoints to keep, the last ones. If the last one is damaged, `--resume` takes the one before."""
    keep_checkpoints: bool = Field(default=False, json_schema_extra=NOT_IN_DIGEST)
    """Keep the checkpoints of a finished run."""
    feature_cache: Literal["auto", "memory", "disk", "off"] = Field(default="auto", json_schema_extra=NOT_IN_DIGEST)
    """Where to cache the outputs of the frozen lowest blocks, so that each row passes through them only once. `auto`
    caches only if the outputs are read more than once: on disk for later runs, and in memory if they fit. `memory`
    caches in memory only. `disk` caches on disk and reads memory-mapped."""
    feature_cache_bytes: int = Field(default=2 * 2**30, ge=0, json_schema_extra=NOT_IN_DIGEST)
    """Upper limit of memory for cached features, in bytes."""
    feature_disk_bytes: int = Field(default=20 * 2**30, ge=0, json_schema_extra=NOT_IN_DIGEST)
    """Upper limit of disk space for the cached features of all runs, in bytes. The least recently read are deleted
    first."""
    trackers: tuple[str, ...] | None = Field(default=None, json_schema_extra=NOT_IN_DIGEST)
    """Accelerate trackers by name: tensorboard, wandb, mlflow, …; null means TensorBoard if it is installed."""

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        if value is not None and value != "auto" and not in_bytes(value):
            raise ValueError(f"{value!r} is not a size of memory; write auto, or a size such as 8GB or 900MB")
        return value

    def tokens_at_once(self, default: int) -> int:
        """The padded tokens that a micro-batch may have.

        Args:
            default: the limit for the device, where the recipe sets none.
        """
        limit = self.micro_batch_tokens or default
        return limit if self.memory_tokens is None else min(limit, self.memory_tokens)

    @field_validator("feature_cache", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare off as false

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
    """The optimizer that a recipe chooses in `train.optimizer`, or None and the problems.

    A mapping without `name` has settings of the default optimizer.
    """
    if isinstance(value, Mapping) and "name" not in value:
        value = {"name": TrainSettings.model_fields["optimizer"].default.name, **value}
    return optimizers.parse(value, "train.optimizer")


def in_bytes(text: str) -> int | None:
    """The bytes of a size such as 16GB or 900MiB; None for another text. Units are powers of 1,024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([gm])i?b?", text.strip().lower())
    return int(float(found[1]) * (1 << (30 if found[2] == "g" else 20))) if found else None
