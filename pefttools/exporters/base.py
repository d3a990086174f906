"""What every exporter answers."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pefttools.recipe.recipe import Recipe
from pefttools.settings import Choice
from pefttools.training.run import Trained

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.exporters.proof import Proof
    from pefttools.tasks.base import Task

Dtype = Literal["float32", "bfloat16", "float16"]
EXACT = 1e-5
"""Largest difference of a logit from the trained model's where nothing is rounded, in parts of the largest one (a
classifier's: as it is). Both models compute in float64, so it is of weights alone; merging and loading are held to it
whatever is rounded to."""
METRIC, ROUNDED_METRIC = 1e-3, 1e-2
"""How far `apart` the task's metrics may be; the second where weights are rounded."""


def apart(task: Task, value: float, other: float) -> float:
    """How far the task's primary metric is from another value of it, in parts of the other where that is above 1.

    Perplexities, the exponentials of mean losses, are compared by those losses: they are what rounding moves evenly.
    """
    if task.compared_by_logarithm:
        value, other = math.log(value), math.log(other)
    return abs(value - other) / max(1.0, abs(other))


@dataclass(frozen=True)
class Loaded:
    """An artifact in memory."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    problems: list[str] = field(default_factory=list)
    """What was wrong with its keys."""


class Exporter(Choice, ABC):
    """Writes one kind of artifact, and loads it as its users will."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """Whose versions the manifest tells beside those that are always there."""
    needs_base: ClassVar[bool] = False
    """Whether the artifact is of use only with the base; its model card tells where that is from."""
    roundings: ClassVar[Mapping[str, float]] = {"float32": EXACT, "float16": 5e-3, "bfloat16": 8e-2}
    """What weights may be rounded to -> how far that may move a logit, in parts of the largest one.

    bfloat16 moved SmolLM2's logits by 0.043 after full fine-tuning.
    """

    def refuse(self, recipe: Recipe) -> None:
        """Raises UserError when runs of this recipe cannot be exported so; asked before anything is loaded."""

    @property
    def rounds_to(self) -> str:
        """What the artifact's weights are rounded to, a key of `roundings`."""
        return "float32"

    def round(self, model: nn.Module) -> None:
        """Round the weights in place as the artifact's are, to the values that it will have when it is loaded."""
        import torch

        for parameter in model.parameters():  # the angles of rotary positions are buffers, and need their digits
            parameter.data = parameter.data.to(getattr(torch, self.rounds_to))

    @property
    def approximates(self) -> bool:
        """Whether the artifact is meant to differ from the trained model, so that its error is told and not refused."""
        return False

    def prepare(self, trained: Trained, proof: Proof) -> tuple[nn.Module, dict[str, Any]]:
        """The model in memory that is written, before rounding, and facts for the manifest; may use up the trained one.

        Raises:
            UserError: this strategy or task cannot be exported so.
        """
        del proof
        return trained.model, {}

    @abstractmethod
    def write(self, model: nn.Module, proof: Proof, folder: Path) -> None:
        """Write the prepared model to an existing folder, its tokenizer beside it; may use it up.

        Raises:
            UserError: this strategy or task cannot be exported so.
        """

    @abstractmethod
    def load(self, folder: Path, recipe: Recipe) -> Loaded:
        """The artifact as a stranger loads it, by the library it is for."""

    def served(
        self, folder: Path, inputs: Sequence[Sequence[int]], logits: Sequence[Tensor]
    ) -> tuple[dict[str, Any], list[str]]:
        """What the program that artifacts are served by, where it is not the one that `load`s, makes of them.

        Args:
            inputs: token ids of the compared rows.
            logits: what the loaded model said of them, by `Task.logits`.

        Returns:
            Facts for the manifest, and problems.
        """
        del folder, inputs, logits
        return {}, []

    def metric_tolerance(self, rows: int) -> float:
        """How far the task's metric on so many rows may be from the trained model's; by a row, where weights round."""
        return METRIC if self.rounds_to == "float32" else max(ROUNDED_METRIC, 1 / rows)

    def tolerance(self, scale: float) -> float:
        """How far a logit of the loaded artifact may be from that of the model that was written."""
        return EXACT * scale

    def library(self, folder: Path, trained: Trained) -> str:
        """What loads the written artifact, by the hub's name for it."""
        del folder, trained
        return self.name

    @classmethod
    def sentences(cls, manifest: Mapping[str, Any]) -> Iterator[str]:
        """What the command line tells of an export besides what it tells of every one."""
        del manifest
        yield from ()

    @classmethod
    def card_rows(cls, manifest: Mapping[str, Any]) -> Mapping[str, str]:
        """Rows that this exporter adds to the table of a model card: what was measured -> the result."""
        del manifest
        return {}


def adds_tokens(folder: Path) -> bool:
    """Whether an adapter holds rows for new tokens, which peft finds no place for in a plain base."""
    file = folder / "adapter_config.json"
    saved = json.loads(file.read_text("utf-8")).get("modules_to_save") or [] if file.is_file() else []
    return any(path.endswith(".extra") for path in saved)
