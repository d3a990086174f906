"""Runs of one shape as one: the weighted sum of what they learnt, scored like a run of its own.

`parameters` sums trained tensors by name, as model soups do (Wortsman et al. 2022; of adapters Chronopoulou et al.
2023). Of LoRA that is not the sum of the changes BA, which `changes` is: the factors side by side, at the ranks' sum.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pefttools import atomic
from pefttools.bases.loading import prepare_libraries
from pefttools.bases.parameters import count_parameters
from pefttools.data.encoding import encode
from pefttools.data.rows import Splits
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.strategies.base import WEIGHTS, read
from pefttools.strategies.lora import Lora
from pefttools.training import results
from pefttools.training.checkpoint import Progress
from pefttools.training.evaluation import Evaluator
from pefttools.training.own_rows import own_rows, validation_rows
from pefttools.training.run import MARK, Run, write_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from pefttools.recipe.recipe import Recipe

How = Literal["changes", "parameters"]
SUMMED_EXACTLY = {"rank", "alpha", "rslora", "dropout", "lr_ratio", "init"}
"""Settings of LoRA in which runs may differ whose changes are summed: each is scaled by its own."""


def merge(
    paths: Sequence[Path],
    weights: Sequence[float],
    out: Path,
    how: How | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Write the weighted sum of runs as a finished run; the answer is its `result.json`.

    Args:
        weights: one a run, as they are: they need not add up to 1.
        how: what is summed; `changes` for LoRA where that can be, else `parameters`.

    Raises:
        UserError: the runs differ in base, task or strategy, or `out` is not free. Nothing is written.
    """
    runs = [Run.open(path) for path in paths]
    recipes = [run.recipe() for run in runs]
    how = how or ("changes" if all(map(_sums_changes, recipes)) else "parameters")
    _refuse_unlike(runs, recipes, weights, SUMMED_EXACTLY if how == "changes" else set())
    if how == "changes" and (other := [r.strategy.name for r in recipes if not _sums_changes(r)]):
        raise UserError(f"--by changes: takes plain LoRA, not {other[0]} as it is set; --by parameters")
    atomic.refuse_unless_empty(out)
    if len({run.result()["data"]["digest"] for run in runs}) > 1:
        reporter.warn(f"the runs had other rows; all is scored on those of {runs[0].path.name}, which others may know")
    prepare_libraries()
    tensors = [read(run.adapter) for run in runs]
    if how == "changes":
        summed, recipe = _changes(tensors, weights, list(map(_scale, recipes))), _wider(recipes)
    else:
        summed, recipe = _parameters(tensors, weights), recipes[0]
    recipe = recipe.model_copy(update={"name": out.absolute().name})
    try:
        return _write_run(out, recipe, summed, runs, weights, how, reporter)
    except UserError as error:
        hint = ("merge: --by parameters keeps the rank",) if how == "changes" else ()
        raise UserError(*error.problems, *hint) from error
    except Exception as error:
        if not atomic.of_disk(error):
            raise
        raise UserError(f"--out: {out} cannot be written: {error}") from error


def _write_run(
    out: Path,
    recipe: Recipe,
    summed: dict[str, Tensor],
    runs: Sequence[Run],
    weights: Sequence[float],
    how: How,
    reporter: Reporter,
) -> dict[str, Any]:
    """Write the sum as a finished run, scored on the rows of the first one; returns its `result.json`."""
    sources = list(zip(weights, runs, strict=True))
    summands = ", ".join(f"{weight:g} x {run.path.name}" for weight, run in sources)
    about = [
        {"run": run.path.name, "digest": run.result()["digest"], "weight": weight, "test": run.result()["test"]}
        for weight, run in sources
    ]
    with atomic.new_folder(out.absolute()) as part:
        merged = Run(part)
        write_recipe(merged.recipe_file, recipe, f"{MARK}\n# Not of this one, which is a weighted sum: {summands}.")
        params = _write_adapter(recipe, summed, merged.adapter, reporter)
        result = _scored(merged, recipe, params, runs[0], reporter) | {"merged_from": about, "merged_by": how}
        return results.write(merged, result)


def _refuse_unlike(
    runs: Sequence[Run], recipes: Sequence[Recipe], weights: Sequence[float], allowed: AbstractSet[str]
) -> None:
    """Raises UserError when the runs differ in more than `allowed` settings of their strategy; names what differs."""
    if len(runs) < 2 or len(runs) != len(weights):
        raise UserError(f"merge: takes two runs or more and a weight for each, got {len(runs)} and {len(weights)}")
    if not all(math.isfinite(weight) for weight in weights):
        raise UserError("--weights: takes finite numbers")
    settings = [_settings(run, recipe) for run, recipe in zip(runs, recipes, strict=True)]
    problems = []
    for run, found in zip(runs[1:], settings[1:], strict=True):
        for section, values in found.items():
            first = settings[0][section]
            unlike = [key for key in first | values if first.get(key) != values.get(key)]
            if section == "strategy":
                unlike = [key for key in unlike if key not in allowed]
            if unlike:
                told = "; ".join(
                    f"{section}.{key} is {_short(values.get(key))}, not {_short(first.get(key))}" for key in unlike
                )
                problems.append(f"merge: {run.path.name} has another {section} than {runs[0].path.name}: {told}")
    if problems:
        raise UserError(*problems)


def _settings(run: Run, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What runs of one shape have in common, by section of the recipe."""
    base = recipe.base.model_dump(exclude={"source", "dropout"})
    return {
        "base": {**base, "sha256": run.result()["base"]["sha256"]},
        "task": recipe.task.as_dict(),
        "strategy": recipe.strategy.as_dict(),
    }


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sums_changes(recipe: Recipe) -> bool:
    strategy = recipe.strategy
    return isinstance(strategy, Lora) and not strategy.dora and not strategy.rewrites_base and strategy.eva_ratio == 1


def _parameters(tensors: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of tensors by name."""
    if any({n: t.shape for n, t in other.items()} != {n: t.shape for n, t in tensors[0].items()} for other in tensors):
        raise UserError("merge: the runs' tensors are of different names or shapes")
    return {
        name: sum(weight * given[name] for weight, given in zip(weights, tensors, strict=True))  # type: ignore[misc]
        for name in tensors[0]
    }


def _changes(
    tensors: Sequence[Mapping[str, Tensor]], weights: Sequence[float], scales: Sequence[float]
) -> dict[str, Tensor]:
    """Factors side by side, so that their product is the weighted sum of the scaled products; all else summed.

    Args:
        scales: of each run what its products are multiplied with; the first run's is that of the sum.
    """
    import torch

    factors = [name for name in tensors[0] if ".lora_A." in name or ".lora_B." in name]
    summed = _parameters([{n: t for n, t in given.items() if n not in {*factors}} for given in tensors], weights)
    relative = [weight * scale / scales[0] for weight, scale in zip(weights, scales, strict=True)]
    for name in factors:
        if ".lora_A." in name:
            summed[name] = torch.cat([given[name] for given in tensors])
        else:
            summed[name] = torch.cat([w * given[name] for w, given in zip(relative, tensors, strict=True)], dim=1)
    return summed


def _scale(recipe: Recipe) -> float:
    """What the product BA is multiplied with."""
    lora = recipe.strategy
    assert isinstance(lora, Lora)
    return lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)


def _wider(recipes: Sequence[Recipe]) -> Recipe:
    """The recipe of factors side by side, whose product is scaled as the first one's was."""
    first = recipes[0].strategy
    assert isinstance(first, Lora)
    rank = sum(recipe.strategy.rank for recipe in recipes)  # type: ignore[attr-defined]
    alpha = _scale(recipes[0]) * (math.sqrt(rank) if first.rslora else rank)
    wider = first.with_values(rank=rank, alpha=alpha, init="default")
    return recipes[0].model_copy(update={"strategy": wider})


def _write_adapter(recipe: Recipe, tensors: dict[str, Tensor], folder: Path, reporter: Reporter) -> dict[str, int]:
    """An adapter folder as the strategy saves an untrained one, with these tensors; and its numbers of parameters."""
    from safetensors.torch import save_file

    base = recipe.task.load(recipe.base, reporter)
    model = recipe.strategy.wrap(base)
    folder.mkdir()
    recipe.strategy.save(model, folder)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    return count_parameters(model, base.head)


def _scored(merged: Run, recipe: Recipe, params: Mapping[str, int], first: Run, reporter: Reporter) -> dict[str, Any]:
    """The result of a run whose adapter is there; scored on the first run's own rows."""
    task, like = recipe.task, first.result()
    (ids, validation), own = validation_rows(first, task, reporter), own_rows(first, task)
    test = own.rows if own.split == "test" else []
    splits = Splits([], validation, test, ids={"validation": ids, "test": own.ids})
    base = task.load(recipe.base, reporter)
    model = recipe.strategy.load(base, merged.adapter).eval()
    evaluator = Evaluator(model, task, base.tokenizer, reporter=reporter)
    scores: dict[str, Any] = {"validation": None, "test": None}
    for name in scores:
        if rows := splits.named()[name]:
            encoded = encode(rows, task, base, name, reporter)
            found = evaluator.score(encoded, rows, name, generate=name == "test")
            scores[name] = found.metrics
            if name == own.split:
                merged.save_predictions(splits, name, task, found.predictions)
    if first.rows_file.is_file():
        shutil.copyfile(first.rows_file, merged.rows_file)
    return {
        **like,
        **results.of_outcome(merged, recipe, recipe.digest, params, scores["validation"], scores["test"]),
        "train": {**like["train"], **results.of_progress(Progress(), epochs=0.0)},
    }
