"""Fine-tune a pretrained transformer by changing as little of it as will do, and prove the result.

From Python: `load(run)` for a trained model, `recipe.load(name, overrides)` and `train.train(recipe, out)` to make
one, `export.export(run, to)` to hand it on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pefttools.training.run import Trained as Trained
    from pefttools.training.run import load as load

__all__ = ["Trained", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # torch is not imported until a model is asked for
        from pefttools.training import run

        return getattr(run, name)
    raise AttributeError(f"module 'pefttools' has no attribute {name!r}")
