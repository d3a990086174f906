"""The baseline: scores of the base before training. All strategies and learning rates share it, so it is cached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import atomic, metrics
from pefttools.data.encoding import code_files
from pefttools.reporter import Reporter
from pefttools.sources.cache import entry, stored
from pefttools.training.evaluation import Evaluator
from pefttools.training.placement import place
from pefttools.training.wrapping import load_base

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pefttools.training.preparation import Prepared


def baseline_scores(ready: Prepared, rows_of: str, accelerator: Accelerator, reporter: Reporter) -> dict[str, Any]:
    """The base's metrics on the split `rows_of`, from the cache where an earlier run computed them.

    Where training goes on from a trained model, the metrics are those of that model, and are not cached; nor are
    those of a task with metrics of the user's own.
    Runs with several processes do not use the cache: their processes might disagree on whether the file exists.
    """
    recipe, task = ready.recipe, ready.recipe.task
    if ready.earlier or task.extra_metrics:  # the code of metrics of the user's own is not known
        return _scored(ready, rows_of, accelerator, reporter)
    depends_on = [
        recipe.base.model_dump(mode="json"),
        [ready.base.sha256, task.as_dict(), ready.splits.digest, recipe.seed],
        [rows_of, str(accelerator.device)],
    ]
    code = [*code_files(task), *sorted(Path(metrics.__file__).parent.glob("*.py"))]
    file = entry("baseline", depends_on, code)
    if accelerator.num_processes > 1:
        return _scored(ready, rows_of, accelerator, reporter)

    def create() -> None:
        atomic.write_json(file, _scored(ready, rows_of, accelerator, reporter))

    return json.loads(stored(file, create, "scores of the base", reporter).read_text("utf-8"))


def _scored(ready: Prepared, name: str, accelerator: Accelerator, reporter: Reporter) -> dict[str, Any]:
    """Compute the base's metrics, on a newly loaded base where the strategy's initialization has changed outputs."""
    from accelerate.utils import set_seed

    recipe, model, layer = ready.recipe, ready.model, ready.layer
    if not recipe.strategy.exact_start and not (ready.earlier and ready.earlier.continues):
        set_seed(recipe.seed)
        model, layer = load_base(recipe, reporter, earlier=ready.earlier).model, None
        place(model, recipe.train, accelerator.device)
    evaluator = Evaluator(model, recipe.task, ready.base.tokenizer, accelerator, reporter, layer)
    rows, encoded = ready.splits.named()[name], ready.encoded[name]
    return evaluator.score(encoded, rows, f"{name}, baseline", generate=True).metrics
