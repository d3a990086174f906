"""What every exporter answers."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pefttools.recipe.recipes import Recipe
from pefttools.settings import Choice
from pefttools.training.run import Trained

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.exporters.proof import Proof

Dtype = Literal["float32", "bfloat16", "float16"]
LOGITS: Mapping[str, float] = {
    "float32": 1e-5, "float16": 5e-3, "bfloat16": 8e-2, "q8_0": 1e-1, "nf4": 1e-3, "fp4": 1e-3, "int8": 3e-1,
}  # fmt: skip
"""Largest difference of a logit from the trained model's, by what weights were rounded to, in parts of the largest one
(a classifier's in fp32: as it is).

In float32 both models compute in float64: then it is of weights alone, and merging and loading are held to it whatever
is rounded to. Rounding is held to its own: bfloat16 moved SmolLM2's logits by 0.043 after full fine-tuning. Quantised
bases compute in fp32; int8 rounds what meets the weights too, by 0.19 there, which no merged model can repeat."""
METRIC, ROUNDED_METRIC = 1e-3, 1e-2
"""How far `apart` the task's metrics may be; the second where weights are rounded."""


def apart(name: str, value: float, other: float) -> float:
    """How far a metric is from another of that name, in parts of the other where that is above 1.

    Perplexities, the exponentials of mean losses, are compared by those losses: they are what rounding moves evenly.
    """
    if name == "perplexity":
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

    def refuse(self, recipe: Recipe) -> None:
        """Raises UserError when runs of this recipe cannot be exported so; asked before anything is loaded."""

    @property
    def rounds_to(self) -> str:
        """What the artifact's weights are rounded to, by the names of `LOGITS`."""
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

    libraries: ClassVar[tuple[str, ...]] = ()
    """Whose versions the manifest tells beside those that are always there."""

    def metric_tolerance(self, rows: int) -> float:
        """How far the task's metric on so many rows may be from the trained model's; by a row, where weights round."""
        return METRIC if self.rounds_to == "float32" else max(ROUNDED_METRIC, 1 / rows)

    def tolerance(self, scale: float) -> float:
        """How far a logit of the loaded artifact may be from that of the model that was written."""
        return LOGITS["float32"] * scale


def adds_tokens(folder: Path) -> bool:
    """Whether an adapter holds rows for new tokens, which peft finds no place for in a plain base."""
    file = folder / "adapter_config.json"
    saved = json.loads(file.read_text("utf-8")).get("modules_to_save") or [] if file.is_file() else []
    return any(path.endswith(".extra") for path in saved)
