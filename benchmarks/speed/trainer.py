"""transformers' Trainer as a contender, with its defaults or tuned by an expert.

Learning rate, schedule, warmup, weight decay and clipping are those of the recipe; they affect the result, not the
speed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import memory
import torch
import trainer_models
import transformers
from datasets import Dataset
from torch import nn

from pefttools.bases.loading import Base
from pefttools.data.encoding import encode, encode_once
from pefttools.data.splitting import load_splits
from pefttools.device import precision_of
from pefttools.recipe.recipe import Recipe
from pefttools.strategies.base import trained
from pefttools.tasks.base import LABELS, Task
from pefttools.training.evaluation import Evaluator


class Watch(transformers.TrainerCallback):
    """Records when training begins and when the last step ends, in seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.began = self.last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.last = time.perf_counter()


def run(
    recipe: Recipe,
    tuned: bool,
    warm_up: Recipe | None = None,
    tokenise: Callable[..., Any] = encode,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train once; returns times in seconds, memory in bytes, and the test score.

    Args:
        warm_up: the recipe on a few rows, trained first; its measurements are dropped.
        tokenise: `encode` with its cache, or `encode_once` without.
        watch: measures the time; a new one when None.
    """
    if warm_up is not None:
        run(warm_up, tuned)
    watch = watch or Watch()
    begun = time.perf_counter()
    splits = load_splits(recipe.data, recipe.task)
    task = recipe.task.fit(splits)
    base, model = trainer_models.build(recipe, task)
    rows = tokenise(splits.train, task, base, "train", training=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(recipe, base, model, dataset(rows, lengths=tuned), tuned, folder, watch)
        weighed = time.perf_counter()
        loaded = memory.begin()
        begun += time.perf_counter() - weighed
        trainer.train()
    measured = {
        "seconds": watch.last - watch.began, "wall_seconds": watch.last - begun, "loaded_bytes": loaded,
        "peak_bytes": memory.peak(), "trainable": sum(p.numel() for p in trained(model).values()),
        "rows": round(recipe.train.epochs * len(rows)), "tokens": round(recipe.train.epochs * sum(rows["length"])),
        "precision": "bf16" if trainer.args.bf16 else "fp32",
    }  # fmt: skip
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    if not splits.test:
        return measured
    return {**measured, "score": score(model, task, base, splits.test)}


def first_step(recipe: Recipe) -> float:
    """The time at the end of the first step, in seconds of `time.perf_counter`; tokenises without a cache."""
    watch = Watch()
    run(recipe, tuned=False, tokenise=encode_once, watch=watch)
    return watch.last


def dataset(rows: Any, lengths: bool) -> Dataset:
    """The tokenised rows as a dataset for Trainer; with `lengths` if it groups by length."""
    names = [n for n in (*("length",) * lengths, "input_ids", "token_type_ids", LABELS) if n in rows.column_names]
    columns = {name: rows[name][:] for name in names}
    return Dataset.from_dict({**columns, "attention_mask": [[1] * len(ids) for ids in columns["input_ids"]]})


def trainer_of(
    recipe: Recipe, base: Base, model: nn.Module, rows: Dataset, tuned: bool, folder: str, watch: Watch
) -> transformers.Trainer:
    """A Trainer with the recipe's settings."""
    settings = recipe.train
    assert settings.learning_rate is not None
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup or 0,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm or 0,
        seed=recipe.seed,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
        bf16=tuned and precision_of("auto") == "bf16",
        fp16=tuned and precision_of("auto") == "fp16",
        train_sampling_strategy="group_by_length" if tuned else "random",
    )
    made = transformers.Trainer(
        model=model,  # type: ignore[arg-type]  # a PeftModel is not a PreTrainedModel, but is accepted
        args=arguments,
        train_dataset=rows,
        processing_class=base.tokenizer,
        data_collator=collator(base, recipe.task, 8 if tuned else None),
        callbacks=[watch],
    )
    made.remove_callback(transformers.trainer_callback.PrinterCallback)
    return made


def collator(base: Base, task: Task, multiple: int | None) -> Any:
    """The collator that pads a batch; None for Trainer's own."""
    if not task.own_head:  # labels of a language model are padded, too
        return transformers.DataCollatorForSeq2Seq(base.tokenizer, pad_to_multiple_of=multiple)
    return transformers.DataCollatorWithPadding(base.tokenizer, pad_to_multiple_of=multiple) if multiple else None


def score(model: nn.Module, task: Task, base: Base, rows: Sequence[Any]) -> float:
    """The task's metric on test rows, computed by pefttools' evaluation."""
    encoded = encode(rows, task, base, "test")
    return Evaluator(model, task, base.tokenizer).score(encoded, rows, "test").metrics[task.primary]
