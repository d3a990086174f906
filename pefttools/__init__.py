"""Parameter-efficient fine-tuning of pretrained transformers, with verified results.

From Python: `recipe.recipes.load(name, overrides).recipe` reads a recipe, `training.driver.train(recipe, out)` trains
it, `load(run)` loads the trained model, and `exporters.driver.export(run, to)` exports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pefttools.training.run import Trained as Trained
    from pefttools.training.run import load as load

__all__ = ["Trained", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # torch is not imported before a model is needed
        from pefttools.training import run

        return getattr(run, name)
    raise AttributeError(f"module 'pefttools' has no attribute {name!r}")
