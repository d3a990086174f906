"""The cases of the benchmark: the contenders of each, and the recipe that all of them follow."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import chats
import smoke

from pefttools.recipe import recipes
from pefttools.recipe.recipe import Recipe

ENCODER, DECODER = "question-type-lora", "dialogue-smollm2-lora"
TRAINING = ("trainer", "trainer_tuned", "pefttools")
BATCHES_TO_WARM_UP = 3
FOREVER = 10**9
"""Epochs between evaluations and seconds between checkpoints, so that both happen only at the end."""


@dataclass(frozen=True)
class Case:
    """One kind of work to measure. The first contender is the reference, the second the same tuned by an expert."""

    about: str
    kind: Literal["train", "predict", "cold", "fixed"]
    contenders: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    recipe: str = ENCODER
    epochs: float = 1
    rows_share: float = 1.0
    """Share of `--rows`."""
    accuracy: tuple[str, ...] = ()
    """For `--accuracy`: the recipe with the full number of epochs, and its overrides; empty if not measured."""


QUERY_VALUE = ("strategy=lora", "strategy.targets=[query,value]")
FULL = ("strategy=full", "train.head_lr_scale=1")
"""Trainer has one learning rate for all parameters, so the head has the same one here."""

CASES = {
    "lora": Case("LoRA on query and value", "train", TRAINING, QUERY_VALUE, accuracy=(ENCODER, *QUERY_VALUE)),
    "lora-all": Case("LoRA on every matrix of the blocks", "train", TRAINING, ("strategy=lora",)),
    "full": Case("full fine-tuning", "train", TRAINING, FULL, accuracy=("question-type-full", *FULL)),
    "head": Case(
        "the head alone, 5 epochs", "train", TRAINING, ("strategy=top_layers",), epochs=5,
        accuracy=("question-type-head",),
    ),
    "last-2": Case(
        "the last two blocks, 5 epochs", "train", TRAINING, ("strategy=top_layers", "strategy.layers=2"), epochs=5,
        accuracy=(ENCODER, "strategy=top_layers", "strategy.layers=2"),
    ),
    "bitfit": Case("biases", "train", TRAINING, ("strategy=bitfit",)),
    "adapter": Case("bottleneck adapters", "train", TRAINING, ("strategy=adapter",)),
    "nobf16": Case(
        "LoRA on query and value, bf16 switched off", "train", ("trainer", "pefttools"),
        (*QUERY_VALUE, "train.precision=fp32"),
    ),
    "smollm": Case(
        "SmolLM2-135M on chats, LoRA on every matrix, batches of 8", "train", (*TRAINING, "pefttools_packed"),
        ("data.test_share=0.1", "task.generate_rows=0", "task.system=null", "task.max_length=256",
         "train.batch_size=8"),
        DECODER, rows_share=1 / 16,
    ),
    "predict": Case("predicting with the merged LoRA model", "predict", ("pipeline", "pipeline_tuned", "pefttools"),
                    QUERY_VALUE),
    "fixed": Case("a LoRA step (query, value) on a batch of 32 rows of 32 tokens", "fixed", ("step",), QUERY_VALUE),
    "cold": Case(
        "seconds from starting the process", "cold",
        ("trainer", "pefttools_empty", "pefttools_cached", "python", "import", "help"), QUERY_VALUE,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Order:
    """One measurement to make: the arguments of its process."""

    case: str
    contender: str
    round: int
    """Number of the round, which is also the seed."""
    folder: str
    """Folder of the measurements and of the files they need."""
    rows: int
    """Number of rows to train on or to predict; 0 for all."""
    epochs: float | None = None
    """Epochs; those of the case when None."""
    smoke: bool = False
    full: bool = False
    """Whether to train the whole recipe, with all rows and epochs, for its accuracy."""

    @property
    def identity(self) -> dict[str, Any]:
        """The values that identify its measurement in the folder."""
        return {"case": self.case, "contender": self.contender, "round": self.round, "full": self.full}

    @property
    def about(self) -> Case:
        return CASES[self.case]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def recipe_of(order: Order, *overrides: str) -> Recipe:
    """The recipe that every contender of a case follows, with further overrides."""
    case, folder = order.about, Path(order.folder)
    name, *own = case.accuracy if order.full else (case.recipe, *case.overrides)
    if order.smoke:
        own = [*own, *smoke.overrides(case.recipe == DECODER, folder)]
    elif case.recipe == DECODER:
        own = [*own, f"data.train={chats.write(folder / 'chats.jsonl')}"]
    own += [  # cache features in memory only, because a round must not use those of an earlier one
        f"seed={order.round}", "train.trackers=[]", f"train.evaluate_every={FOREVER}",
        f"train.checkpoint_seconds={FOREVER}", "train.feature_cache=memory",
    ]  # fmt: skip
    if not order.full:
        own += ["data.validation_share=0.02", f"train.epochs={order.epochs or case.epochs:g}"]
        if order.rows:
            own.append(f"data.train_rows={max(1, round(order.rows * case.rows_share))}")
    elif order.smoke:
        own.append("train.epochs=1")
    packed = ["task.packing=true"] if order.contender == "pefttools_packed" else []
    return recipes.load(name, [*own, *packed, *overrides]).recipe


def to_warm_up(order: Order) -> Recipe:
    """The recipe on a few rows, so that one-time imports and compilation are not timed."""
    batch = recipe_of(order).train.batch_size
    few = (f"data.train_rows={BATCHES_TO_WARM_UP * batch}", "data.test_share=0", "data.validation_share=0.02")
    return recipe_of(order, *few, "train.epochs=1")
