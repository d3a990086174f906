"""Loading a run or an artifact for predictions; several runs on one base share its weights in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import hashes
from pefttools.data.encoding import Encoded, columns_of, cut_rows
from pefttools.errors import UserError, damage_of
from pefttools.exporters import exporters
from pefttools.inference.optimize import Precision, optimize_for_inference, optimized
from pefttools.recipe.recipe import Recipe
from pefttools.recipe.recipes import load as load_recipe
from pefttools.reporter import SILENT, Reporter
from pefttools.strategies._peft_strategy import merge_peft
from pefttools.strategies.base import is_quantised
from pefttools.training.evaluation import Evaluator
from pefttools.training.run import Run, load

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.data.splitting import Row
    from pefttools.tasks.base import Prediction, Task

MANIFEST, RECIPE = "manifest.json", "recipe.yaml"


@dataclass(frozen=True)
class Predictor:
    """A model with its tokenizer and recipe, for predictions."""

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe

    @property
    def task(self) -> Task:
        return self.recipe.task

    def predict(self, rows: Sequence[Row], reporter: Reporter = SILENT) -> list[Prediction]:
        """One prediction a row, in the rows' order."""
        return self._predict(rows, self._encoded(rows), reporter) if rows else []

    def attempt(self, rows: Sequence[Row], reporter: Reporter = SILENT) -> tuple[list[Prediction | UserError], int]:
        """A prediction or an error for each row, in the rows' order, and the number of truncated rows.

        The message of an error lacks its subject, the row: "is longer than 64 tokens".
        """
        encoded, checked = self._checked(rows)
        if self.task.truncation == "refuse":
            limit = min(self.task.max_length, self.tokenizer.model_max_length)
            error = UserError(f"is longer than {limit} tokens, and task.truncation is refuse")
            checked = [error if one is True else one for one in checked]
        good = [i for i, one in enumerate(checked) if not isinstance(one, UserError)]
        if len(good) == len(rows):
            return [*self._predict(rows, encoded, reporter)], sum(map(bool, checked))
        found: list[Any] = list(checked)
        for i, answer in zip(good, self.predict([rows[i] for i in good], reporter), strict=True):
            found[i] = answer
        return found, sum(checked[i] is True for i in good)

    def _encoded(self, rows: Sequence[Row]) -> Encoded | None:
        return None if self.task.generates else Encoded(columns_of(rows, self.task, self.tokenizer))

    def _checked(self, rows: Sequence[Row]) -> tuple[Encoded | None, list[bool | UserError]]:
        """The encoded rows; and for each row whether it is truncated, or an error if it cannot be encoded."""
        try:
            encoded = self._encoded(rows)
            if encoded is None:
                return None, [*self.task.truncated(rows, self.tokenizer)]
            return encoded, [*cut_rows(encoded.columns, len(rows))]
        except (UserError, ValueError) as error:
            if len(rows) > 1:
                return None, [one for row in rows for one in self._checked([row])[1]]
            return None, [UserError(f"cannot be encoded for the model: {error}")]

    def _predict(self, rows: Sequence[Row], encoded: Encoded | None, reporter: Reporter) -> list[Prediction]:
        evaluator = Evaluator(self.model, self.task, self.tokenizer, reporter=reporter)
        if self.task.generates:
            return evaluator.generated(rows, "predicting")
        encoded = encoded or Encoded(columns_of(rows, self.task, self.tokenizer))
        return evaluator.predictions(encoded, rows, "predicting")[0]


def is_artifact(path: Path) -> bool:
    """Whether `export` wrote this folder."""
    return (path / MANIFEST).is_file() and (path / RECIPE).is_file()


def recipe_of(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a run or an artifact. Raises UserError when the path is neither, or the run is not finished."""
    return load_recipe(str(path / RECIPE), overrides).recipe if is_artifact(path) else Run.open(path).recipe(overrides)


def load_predictor(
    path: Path, precision: Precision, reporter: Reporter = SILENT, merge: bool = True, whole_outputs: bool = False
) -> Predictor:
    """The model of a run, merged where possible, or of an artifact, as its exporter loads it.

    Args:
        whole_outputs: whether the last block's outputs are wanted for all tokens, not only for those the head reads.

    Raises:
        UserError: the path is neither a finished run nor an artifact, or the artifact is damaged.
    """
    name = path.absolute().name
    if not is_artifact(path):
        trained = load(path, reporter)
        return Predictor(
            name, optimized(trained, precision, merge, whole_outputs), trained.base.tokenizer, trained.recipe
        )
    hashes.refuse_damaged(path)
    with damage_of(path / MANIFEST, "export the run again"):
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        settings = {**manifest.get("settings", {}), "name": manifest["exporter"]}
        head = [str(name) for name in manifest.get("head", [])]
    exporter, problems = exporters.parse(settings, str(path / MANIFEST))
    if exporter is None:
        raise UserError(*problems)
    recipe = recipe_of(path)
    with damage_of(path, "export the run again"):
        loaded = exporter.load(path.absolute(), recipe)
    if loaded.problems:
        raise UserError(*(f"{path}: {problem}" for problem in loaded.problems))
    model: Any = loaded.model.eval()
    if not is_quantised(model):
        model = model.float()  # weights rounded to 16 bits still compute in fp32
    if hasattr(model, "peft_config") and merge and recipe.strategy.mergeable and not recipe.base.quantize:
        model = merge_peft(model).eval()
    if next(iter(model.parameters())).numel():  # an ONNX graph has no torch weights
        model = optimize_for_inference(model, recipe.task, head, precision, whole_outputs)
    return Predictor(name, model, loaded.tokenizer, recipe)


def load_predictors(
    paths: Sequence[Path], precision: Precision, reporter: Reporter = SILENT, whole_outputs: bool = False
) -> list[Predictor]:
    """Several runs on one base, whose weights are in memory once.

    Raises:
        UserError: the runs have different bases, or two have the same name.
    """
    bases = {str(path): Run.open(path).result()["base"] for path in paths}
    if len({base["sha256"] for base in bases.values()}) > 1:
        found_on = ", ".join(f"{path} on {base['id']}" for path, base in bases.items())
        raise UserError(f"--run: all runs must have the same base, but they are {found_on}; predict with each alone")
    names = [path.absolute().name for path in paths]
    if len(set(names)) < len(names):
        raise UserError(
            f"--run: the folders of the runs must have different names, but they are {', '.join(names)}; rename one"
        )
    found: list[Predictor] = []
    for path in paths:
        found.append(load_predictor(path, precision, reporter, merge=False, whole_outputs=whole_outputs))
        share([one.model for one in found])
    return found


def share(models: Sequence[nn.Module]) -> None:
    """Make the last model use the other models' memory for weights of equal name and value."""
    import torch

    *others, last = models
    known = {_bare(name): parameter for model in others for name, parameter in model.named_parameters()}
    for name, parameter in last.named_parameters():
        same = known.get(_bare(name))
        if same is not None and same.dtype == parameter.dtype and torch.equal(same, parameter):
            parameter.data = same.data


def _bare(name: str) -> str:
    """A weight's name without the parts that peft's wrappers add."""
    parts: Iterable[str] = name.removeprefix("base_model.model.").split(".")
    return ".".join(part for part in parts if part not in ("base_layer", "original_module"))
