"""adapter: only what was trained, the head with it; the base stays where it is.

Where the strategy `loads_by_peft` and the task adds no tokens, the folder is peft's own and loads by plain
`PeftModel.from_pretrained`. Otherwise it holds the trained tensors and loads by `pefttools.load`.
"""

from __future__ import annotations

import json
from pathlib import Path

from pefttools.exporters.base import Exporter
from pefttools.run import Trained, write_recipe


class Adapter(Exporter):
    """The run's adapter with the tokenizer beside it."""

    def write(self, trained: Trained, folder: Path) -> None:
        trained.recipe.strategy.save(trained.model, folder)
        trained.base.tokenizer.save_pretrained(folder)
        if not _is_peft(trained):
            write_recipe(
                folder / "recipe.yaml", trained.recipe, "# An adapter of pefttools; `pefttools.load` reads it."
            )

    def loader(self, trained: Trained) -> dict[str, str]:
        if not _is_peft(trained):
            return {"kind": "pefttools"}
        values = json.dumps({**trained.task.config_values(), "pad_token_id": trained.base.model.config.pad_token_id})
        return {
            "kind": "peft",
            "auto_class": trained.task.auto_class,
            "base": str(trained.base.folder),
            "config": values,
        }


def _is_peft(trained: Trained) -> bool:
    return trained.recipe.strategy.loads_by_peft and not trained.task.new_tokens
