"""What every exporter answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from pefttools.recipe import Recipe
from pefttools.registry import Choice
from pefttools.run import Trained


class Exporter(Choice, ABC):
    """Writes one kind of artifact and says how a stranger loads it."""

    def refuse(self, recipe: Recipe) -> None:
        """Raises UserError when runs of this recipe cannot be exported so; asked before anything is loaded."""

    @abstractmethod
    def write(self, trained: Trained, folder: Path) -> None:
        """Write the artifact to an existing folder; may use up the model.

        Raises:
            UserError: this strategy or task cannot be exported so.
        """

    @abstractmethod
    def loader(self, trained: Trained) -> dict[str, str]:
        """How a fresh process loads the folder: `kind` (see `verify.load`) and what that kind needs."""
