"""merged: a plain transformers folder with the change folded into the weights."""

from __future__ import annotations

from pathlib import Path

from pefttools.errors import UserError
from pefttools.exporters.base import Exporter
from pefttools.recipe import Recipe
from pefttools.run import Trained
from pefttools.strategies.base import is_quantised


class Merged(Exporter):
    """Loads by `AutoModel….from_pretrained(folder)` with tokenizer and label names; nothing of ours is needed."""

    def refuse(self, recipe: Recipe) -> None:
        strategy = recipe.strategy
        if not strategy.mergeable:
            raise UserError(f"--to merged: {strategy.name} cannot be merged: {strategy.why_not_merged}")

    def write(self, trained: Trained, folder: Path) -> None:
        if is_quantised(trained.base.model):
            raise UserError("--to merged: merging into a quantised base rounds the change away; use --to adapter")
        model = trained.task.plain(trained.recipe.strategy.merge(trained.model))
        model.save_pretrained(folder)
        trained.base.tokenizer.save_pretrained(folder)

    def loader(self, trained: Trained) -> dict[str, str]:
        return {"kind": "transformers", "auto_class": trained.task.auto_class}
