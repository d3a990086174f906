"""The interface of exporters."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

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
"""Largest allowed difference of a logit from the trained model's where weights are not rounded: as a share of the
largest logit, for a classifier absolute. Both models compute in float64, so only weights can differ. Merging and
loading must stay within it whatever the dtype of the artifact."""
METRIC, ROUNDED_METRIC = 1e-3, 1e-2
"""Allowed difference (see `apart`) of the task's metrics; the second where weights are rounded."""


def apart(task: Task, value: float, other: float) -> float:
    """The difference of two values of the task's primary metric, relative to `other` where that is above 1.

    Perplexities are compared by their logarithms, the mean losses, because rounding changes those evenly.
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
    """Errors found while loading, such as missing weights."""


class Chat(NamedTuple):
    """A prompt, and what the loaded model generates for it."""

    source: Mapping[str, Any]
    """`messages` (and `tools`) for the chat template, or a `text`."""
    prompt: Sequence[int]
    """Its token ids."""
    answer: Mapping[str, Any]
    """The generated `text`, `finish` and `num_tokens`."""


class Exporter(Choice, ABC):
    """Writes one kind of artifact, and loads it as its users will."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """Further packages whose versions the manifest lists."""
    needs_base: ClassVar[bool] = False
    """Whether users need the base to load the artifact; then the model card names the base's source."""
    roundings: ClassVar[Mapping[str, float]] = {"float32": EXACT, "float16": 5e-3, "bfloat16": 8e-2}
    """Data type of the weights -> how far rounding to it may change a logit, as a share of the largest logit.

    After full fine-tuning, bfloat16 changed SmolLM2's logits by 0.043.
    """

    def refuse(self, recipe: Recipe) -> None:
        """Raises UserError when runs of this recipe cannot be exported so; called before anything is loaded."""

    @property
    def rounds_to(self) -> str:
        """Data type of the artifact's weights, a key of `roundings`."""
        return "float32"

    def round(self, model: nn.Module) -> None:
        """Round the weights in place to the values that they have in the artifact."""
        import torch

        for parameter in model.parameters():  # rotary angles are buffers, and must keep their precision
            parameter.data = parameter.data.to(getattr(torch, self.rounds_to))

    @property
    def approximates(self) -> bool:
        """Whether the artifact only approximates the trained model; then its error is reported, and no error raised."""
        return False

    def prepare(self, trained: Trained, proof: Proof) -> tuple[nn.Module, dict[str, Any]]:
        """The model to write, before rounding, and facts for the manifest; may modify `trained` in place.

        Raises:
            UserError: this strategy or task cannot be exported so.
        """
        del proof
        return trained.model, {}

    @abstractmethod
    def write(self, model: nn.Module, proof: Proof, folder: Path) -> None:
        """Write the prepared model and its tokenizer to an existing folder; may modify the model in place.

        Raises:
            UserError: this strategy or task cannot be exported so.
        """

    @abstractmethod
    def load(self, folder: Path, recipe: Recipe) -> Loaded:
        """Load the artifact as its users will, with the library it is made for."""

    def served(
        self, folder: Path, inputs: Sequence[Sequence[int]], logits: Sequence[Tensor], chats: Sequence[Chat] = ()
    ) -> tuple[dict[str, Any], list[str]]:
        """Compare the program that serves such artifacts, where it is not the library that `load` uses.

        Args:
            inputs: token ids of the compared rows.
            logits: the loaded model's logits of these rows.
            chats: prompts, and what the loaded model generates for them.

        Returns:
            Facts for the manifest, and problems.
        """
        del folder, inputs, logits, chats
        return {}, []

    def metric_tolerance(self, rows: int) -> float:
        """Allowed difference of the task's metric from the trained model's; rounded weights may change one row."""
        return METRIC if self.rounds_to == "float32" else max(ROUNDED_METRIC, 1 / rows)

    def tolerance(self, scale: float) -> float:
        """Allowed difference of a logit between the loaded artifact and the model that was written."""
        return EXACT * scale

    def library(self, folder: Path, trained: Trained) -> str:
        """The hub's name of the library that loads the artifact."""
        del folder, trained
        return self.name

    @classmethod
    def sentences(cls, manifest: Mapping[str, Any]) -> Iterator[str]:
        """Lines that the command line prints for this kind of artifact, besides those for every export."""
        del manifest
        yield from ()

    def num_embeddings(self, folder: Path) -> int:
        """Number of embeddings that the base must have before an adapter with added tokens is loaded; 0 for any."""
        del folder
        return 0

    @classmethod
    def card_rows(cls, manifest: Mapping[str, Any]) -> Mapping[str, str]:
        """Rows that this exporter adds to the table of a model card: measurement -> result."""
        del manifest
        return {}


def adds_tokens(folder: Path) -> bool:
    """Whether an adapter contains embeddings of new tokens, which peft cannot load into a plain base."""
    file = folder / "adapter_config.json"
    saved = json.loads(file.read_text("utf-8")).get("modules_to_save") or [] if file.is_file() else []
    return any(path.endswith(".extra") for path in saved)
