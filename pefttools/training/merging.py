"""Merging runs: a weighted sum of what they learnt becomes a run of its own, and is scored.

`parameters` sums trained tensors by name, as in model soups (Wortsman et al. 2022; for adapters Chronopoulou et al.
2023). For LoRA this is not the sum of the changes BA. `changes` is that sum: it concatenates the factors, so that ranks
add up.
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
from pefttools.training import results, stack
from pefttools.training.checkpoint import Progress
from pefttools.training.evaluation import Evaluator
from pefttools.training.own_rows import own_rows, validation_rows
from pefttools.training.run import MARK, Run, write_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from pefttools.recipe.recipe import Recipe

How = Literal["changes", "parameters"]
SUMMED_EXACTLY = {"rank", "alpha", "rslora", "dropout", "lr_ratio", "init"}
"""Settings of LoRA in which runs may differ if their changes are summed, since each change has its own scale."""


def merge(
    paths: Sequence[Path],
    weights: Sequence[float],
    out: Path,
    how: How | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Write the weighted sum of runs as a finished run; returns its `result.json`.

    Args:
        weights: one weight for each run; they need not add up to 1.
        how: what is summed; by default `changes` for plain LoRA, else `parameters`.

    Raises:
        UserError: the runs differ in base, task or strategy, or `out` is not free. Nothing is written.
    """
    runs = [Run.open(path) for path in paths]
    recipes = [run.recipe() for run in runs]
    how = how or ("changes" if all(map(_sums_changes, recipes)) else "parameters")
    _refuse_unlike(runs, recipes, weights, SUMMED_EXACTLY if how == "changes" else set())
    if how == "changes" and (other := [run.path for run, r in zip(runs, recipes, strict=True) if not _sums_changes(r)]):
        raise UserError(
            f"--by changes: {other[0]} cannot be merged by its weight changes, which needs strategy=lora without"
            " `dora`, an `eva_ratio` above 1, or an `init` that changes the base; use --by parameters, which sums the"
            " trained parameters themselves and gives another result"
        )
    atomic.refuse_unless_empty(out)
    if len({run.result()["data"]["digest"] for run in runs}) > 1:
        reporter.warn(
            f"the runs had different rows; the merged run is scored on those of {runs[0].path.name}, on which other"
            " runs may have been trained"
        )
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
        hint = ("merge: use --by parameters, which does not increase the rank",) if how == "changes" else ()
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
        write_recipe(merged.recipe_file, recipe, f"{MARK}\n# Except that this one is a weighted sum: {summands}.")
        stack.save(stack.of_run(runs[0].path), part)
        params = _write_adapter(recipe, summed, merged, reporter)
        result = _scored(merged, recipe, params, runs[0], reporter) | {"merged_from": about, "merged_by": how}
        return results.write(merged, result)


def _refuse_unlike(
    runs: Sequence[Run], recipes: Sequence[Recipe], weights: Sequence[float], allowed: AbstractSet[str]
) -> None:
    """Raises UserError when the runs differ in base, task, or strategy settings that are not `allowed` to differ."""
    if len(runs) < 2 or len(runs) != len(weights):
        raise UserError(
            f"merge: name at least two runs and a weight for each, got {len(runs)} runs and {len(weights)} weights"
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise UserError("--weights: must be finite numbers")
    settings = [_settings(run, recipe) for run, recipe in zip(runs, recipes, strict=True)]
    problems = []
    for run, found in zip(runs[1:], settings[1:], strict=True):
        for section, values in found.items():
            first = settings[0][section]
            unlike = [key for key in first | values if first.get(key) != values.get(key)]
            if section == "strategy":
                unlike = [key for key in unlike if key not in allowed]
            if unlike:
                differences = "; ".join(
                    f"{section}.{key} is {_short(values.get(key))}, not {_short(first.get(key))}" for key in unlike
                )
                problems.append(f"merge: {run.path.name} has another {section} than {runs[0].path.name}: {differences}")
    if problems:
        raise UserError(*problems)


def _settings(run: Run, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The settings in which runs must agree, by section of the recipe."""
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
        raise UserError("merge: the runs' tensors have different names or shapes")
    return {
        name: sum(weight * run[name] for weight, run in zip(weights, tensors, strict=True))  # type: ignore[misc]
        for name in tensors[0]
    }


def _changes(
    tensors: Sequence[Mapping[str, Tensor]], weights: Sequence[float], scales: Sequence[float]
) -> dict[str, Tensor]:
    """Concatenated factors, whose product is the weighted sum of the scaled products BA; other tensors are summed.

    Args:
        scales: the scale of each run's products; the sum has the first run's scale.
    """
    import torch

    factors = [name for name in tensors[0] if ".lora_A." in name or ".lora_B." in name]
    summed = _parameters([{n: t for n, t in run.items() if n not in {*factors}} for run in tensors], weights)
    relative = [weight * scale / scales[0] for weight, scale in zip(weights, scales, strict=True)]
    for name in factors:
        if ".lora_A." in name:
            summed[name] = torch.cat([run[name] for run in tensors])
        else:
            summed[name] = torch.cat([w * run[name] for w, run in zip(relative, tensors, strict=True)], dim=1)
    return summed


def _scale(recipe: Recipe) -> float:
    """The scale of the product BA."""
    lora = recipe.strategy
    assert isinstance(lora, Lora)
    return lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)


def _wider(recipes: Sequence[Recipe]) -> Recipe:
    """The recipe of the concatenated factors, whose product has the scale of the first run."""
    first = recipes[0].strategy
    assert isinstance(first, Lora)
    rank = sum(recipe.strategy.rank for recipe in recipes)  # type: ignore[attr-defined]
    alpha = _scale(recipes[0]) * (math.sqrt(rank) if first.rslora else rank)
    wider = first.with_values(rank=rank, alpha=alpha, init="default")
    return recipes[0].model_copy(update={"strategy": wider})


def _write_adapter(recipe: Recipe, tensors: dict[str, Tensor], merged: Run, reporter: Reporter) -> dict[str, int]:
    """Write a run's adapter folder with these tensors; returns its numbers of parameters."""
    from safetensors.torch import save_file

    base, folder = stack.load_base(recipe, merged.path, reporter), merged.adapter
    model = recipe.strategy.wrap(base)
    folder.mkdir()
    recipe.strategy.save(model, folder)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    return count_parameters(model, base.head)


def _scored(merged: Run, recipe: Recipe, params: Mapping[str, int], first: Run, reporter: Reporter) -> dict[str, Any]:
    """Score the merged run, whose adapter is written, on the first run's rows; returns its result."""
    task, like = recipe.task, first.result()
    (ids, validation), own = validation_rows(first, task, reporter), own_rows(first, task)
    test = own.rows if own.split == "test" else []
    splits = Splits([], validation, test, ids={"validation": ids, "test": own.ids})
    base = stack.load_base(recipe, merged.path, reporter)
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
    like.pop("ledger", None)  # the merged run has forgotten other things
    return {
        **like,
        **results.of_outcome(merged, recipe, recipe.digest, params, scores["validation"], scores["test"]),
        "train": {**like["train"], **results.of_progress(Progress(), epochs=0.0)},
    }
