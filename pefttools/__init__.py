"""Parameter-efficient fine-tuning of pretrained transformers, with verified results.

From Python: `run = pefttools.fit(rows, task="text_classification", strategy="lora")`, then `run.metrics`,
`run.predict([…])` and `run.export("merged")`. `pefttools.train` takes a recipe, as the command line does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pefttools.api.functions import advise as advise
    from pefttools.api.functions import benchmark as benchmark
    from pefttools.api.functions import evaluate as evaluate
    from pefttools.api.functions import export as export
    from pefttools.api.functions import fit as fit
    from pefttools.api.functions import plan as plan
    from pefttools.api.functions import predict as predict
    from pefttools.api.functions import train as train
    from pefttools.api.serving import Server as Server
    from pefttools.api.serving import serve as serve
    from pefttools.api.session import register as register
    from pefttools.api.trained_run import TrainedRun as TrainedRun
    from pefttools.api.trained_run import compare as compare
    from pefttools.api.wrapping import strategy as strategy
    from pefttools.api.wrapping import wrap as wrap
    from pefttools.errors import EnvironmentFault as EnvironmentFault
    from pefttools.errors import Interrupted as Interrupted
    from pefttools.errors import UserError as UserError
    from pefttools.training.callbacks import Callback as Callback
    from pefttools.training.run import Trained as Trained
    from pefttools.training.run import load as load

PLACES = {
    "pefttools.api.functions": ("advise", "benchmark", "evaluate", "export", "fit", "plan", "predict", "train"),
    "pefttools.api.serving": ("Server", "serve"),
    "pefttools.api.session": ("register",),
    "pefttools.api.trained_run": ("TrainedRun", "compare"),
    "pefttools.api.wrapping": ("strategy", "wrap"),
    "pefttools.errors": ("EnvironmentFault", "Interrupted", "UserError"),
    "pefttools.training.callbacks": ("Callback",),
    "pefttools.training.run": ("Trained", "load"),
}
"""Module -> the names that it offers here."""

__all__ = [name for names in PLACES.values() for name in names]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    for module, names in PLACES.items():  # nothing heavy is imported before it is needed
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'pefttools' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
