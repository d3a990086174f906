"""The run folder: the files of a run, and loading its trained model.

    recipe.yaml  result.json  metrics.jsonl  rows.parquet  predictions.parquet  hashes.json  adapter/  tensorboard/
    checkpoints/

A folder is always either resumable or finished: `recipe.yaml` is written first and `result.json` last, each atomically.
`hashes.json` has the sha256 of every other file of a finished run, which `Run.open` checks.
The folder contains the rows that the run was scored on: `Run.scored_rows` returns them even if their file has changed.
`Run.row_hashes` returns the hashes of the training and validation rows.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from filelock import FileLock, Timeout

from pefttools import atomic, hashes
from pefttools.bases import loading, quantized
from pefttools.errors import UserError, damage_of
from pefttools.objectives.base import Loaded
from pefttools.recipe import recipes
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import SILENT, Reporter
from pefttools.sources.cache import cache_dir
from pefttools.sources.pins import content_sha256
from pefttools.strategies.base import CONFIG
from pefttools.training import calibrated, run_rows, stack
from pefttools.training.launch import launched

if TYPE_CHECKING:
    from torch import nn

    from pefttools.data.rows import Splits
    from pefttools.tasks.base import Prediction, Task
    from pefttools.training.run_rows import RowHashes, ScoredRows


On = Literal["trained", "full", "dequantised"]
MARK = recipes.RUN_MARK
RESULT = ("base", "data", "train")
"""Keys of result.json that every reader needs."""
GIVEN = "given"
"""Folder of a run with the rows and the model that `pefttools.fit` was given in memory."""
DIFFERENCES = 4
"""Number of settings that a message names."""


@dataclass(frozen=True)
class Trained:
    """A trained model in memory, in evaluation mode."""

    model: nn.Module
    base: loading.Base
    task: Task
    recipe: Recipe
    path: Path
    """The run, or the exported adapter."""


class Run:
    """The paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.result_file = path / "result.json"
        self.metrics_file = path / "metrics.jsonl"
        self.rows_file = path / "rows.parquet"
        self.predictions_file = path / "predictions.parquet"
        self.adapter = path / "adapter"
        self.checkpoints = path / "checkpoints"

    @classmethod
    def open(cls, path: Path) -> Run:
        """A finished run. Raises UserError when there is none, it is not finished, or one of its files is damaged."""
        run = cls(path.absolute())
        if not run.exists:
            inside = next((one for one in path.absolute().parents[:2] if (one / "recipe.yaml").is_file()), None)
            if path.is_file() and inside:
                raise UserError(f"{path}: is a file of {inside}; name that folder")
            raise UserError(f"{path}: there is no run here; name a folder that `pefttools train --out` has written")
        if not run.finished:
            raise UserError(f"{path}: this run is not finished; finish it with `{run.resume_command}`")
        hashes.refuse_damaged(run.path)
        return run

    @property
    def exists(self) -> bool:
        """Whether the recipe here is one that a run wrote. Raises UserError when it cannot be read."""
        with damage_of(self.recipe_file):
            return self.recipe_file.is_file() and self.recipe_file.read_text("utf-8").startswith(MARK)

    @property
    def resume_command(self) -> str:
        """The command that continues this run; overrides are already in its recipe."""
        return launched(f"train {self.recipe_file} --out {self.path} --resume")

    @property
    def finished(self) -> bool:
        return self.result_file.is_file()

    def written_files(self) -> list[Path]:
        """The files of the run that exist, without checkpoints, tracker logs, and result.json."""
        folders = [*self.adapter.rglob("*"), *(self.path / stack.FOLDER).rglob("*")]
        own = (self.recipe_file, self.metrics_file, self.rows_file, self.predictions_file, *folders)
        return [file for file in own if file.is_file()]

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        return recipes.load(str(self.recipe_file), overrides).recipe

    def result(self) -> dict[str, Any]:
        """The content of result.json. Raises UserError when it is damaged."""
        with damage_of(self.result_file):
            found = json.loads(self.result_file.read_text("utf-8"))
            missing = [name for name in RESULT if not isinstance(found.get(name), dict)]
            if missing:
                raise ValueError(f"it has no {missing[0]}")
            return found

    def create(self, resolved: Recipe) -> None:
        """Create the folder with its recipe."""
        write_recipe(self.recipe_file, resolved, MARK)

    def refuse_unless_free(self, recipe: Recipe, resume: bool, overwrite: bool = False) -> None:
        """Raises UserError when training here would overwrite something or mix two runs, or nothing can be written.

        Args:
            overwrite: whether a run that is here, of whatever recipe, may be overwritten.
        """
        if resume and overwrite:
            raise UserError("--overwrite: starts the run anew, and --resume goes on with it; choose one")
        if overwrite and self.exists:
            return
        if self.exists:
            state = "a finished" if self.finished else "an unfinished"
            earlier = self.recipe()
            if earlier.digest != recipe.digest:
                shown = recipe.differences(earlier)
                more = f"; {len(shown) - DIFFERENCES} more" if len(shown) > DIFFERENCES else ""
                raise UserError(
                    f"--out: {self.path} contains {state} run of another recipe"
                    f" ({'; '.join(shown[:DIFFERENCES])}{more}); name another folder,"
                    " add --overwrite to remove that run"
                    + ("" if self.finished else f", or finish it with `{self.resume_command}`")
                )
            if not resume:
                raise UserError(
                    f"--out: {self.path} contains {state} run of this recipe; add --resume to"
                    f" {'see its result' if self.finished else 'go on with it'}, --overwrite to train it anew, or name"
                    " another folder"
                )
            return
        part = f".{self.recipe_file.name}."
        if self.path.is_dir() and any(
            one.name != GIVEN and not one.name.startswith(part) for one in self.path.iterdir()
        ):
            raise UserError(f"--out: {self.path} is not empty; name a new or empty folder")
        atomic.refuse_unless_writable(self.path)

    @contextmanager
    def only_one(self) -> Iterator[None]:
        """Lock the folder for this process. Raises UserError while another process trains in it."""
        lock = FileLock(cache_dir("runs", hashlib.sha256(str(self.path).encode()).hexdigest() + ".lock"), timeout=0)
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"--out: another process is training in {self.path}; wait for it, or name another folder"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def forget(self) -> None:
        """Remove a run's files, and the folder if nothing else is in it."""
        own = (self.recipe_file, self.metrics_file, self.rows_file, self.predictions_file, self.path / hashes.FILE)
        own += (self.path / calibrated.FILE,)
        for file in (self.result_file, *own):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.adapter, self.path / stack.FOLDER, self.path / "tensorboard"):
            shutil.rmtree(folder, ignore_errors=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def overwrite(self) -> None:
        """Remove a run's files, and what was made from the run: exports, reports and its calibration."""
        given = self.path / GIVEN
        self.path.mkdir(parents=True, exist_ok=True)
        for made in ("export", "report.html"):
            shutil.rmtree(self.path / made, ignore_errors=True)
            (self.path / made).unlink(missing_ok=True)
        given.mkdir(exist_ok=True)  # keeps the folder
        self.forget()
        if not any(given.iterdir()):
            given.rmdir()

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """Remove the lines for steps after `step` from metrics.jsonl, and a line that a crash cut short."""
        if not self.metrics_file.exists():
            return
        lines = [line for line in self.lines() if line["step"] <= step]
        atomic.write_text(self.metrics_file, "".join(json.dumps(line) + "\n" for line in lines))

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without one that a crash cut short."""
        with damage_of(self.metrics_file):
            texts = self.metrics_file.read_text("utf-8").splitlines(keepends=True)
            return [_metrics(json.loads(text)) for text in texts if text.endswith("\n")]

    def save_rows(self, splits: Splits, task: Task) -> None:
        """Write rows.parquet, whose hashes identify the run's rows later."""
        run_rows.write_hashes(self.rows_file, splits, task)

    def save_predictions(self, splits: Splits, split: str, task: Task, predictions: Sequence[Prediction]) -> None:
        """Write predictions.parquet, with the rows of the split that was scored."""
        rows = splits.named()[split]
        references = [task.reference(row) for row in rows]
        run_rows.write_predictions(self.predictions_file, split, splits.ids_of(split), rows, references, predictions)

    def predictions(self) -> tuple[list[str], list[Any], list[Prediction]]:
        """The ids, references and predictions in predictions.parquet, with probabilities as a list."""
        return run_rows.read_predictions(self.predictions_file)

    def row_hashes(self) -> dict[str, RowHashes] | None:
        """Split -> the hashes of its rows; None for a run of an older version, which did not write them."""
        return run_rows.read_hashes(self.rows_file) if self.rows_file.is_file() else None

    def scored_rows(self) -> ScoredRows | None:
        """The rows that this run was scored on, from its own folder and checked against their hashes.

        None for a run of an older version, which did not write them. Raises UserError when the rows were changed.
        """
        hashes = self.row_hashes()
        return None if hashes is None else run_rows.read_scored(self.predictions_file, hashes)

    def forget_checkpoints(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def write_recipe(file: Path, resolved: Recipe, title: str) -> None:
    """Write a resolved recipe, from which the run can be trained again."""
    text = yaml.safe_dump(resolved.as_dict(), sort_keys=False, allow_unicode=True)
    atomic.write_text(file, f"{title}\n# pefttools train {file.name}\n{text}")


def load(path: Path | str, reporter: Reporter = SILENT, on: On = "trained", is_calibrated: bool = True) -> Trained:
    """The trained model of a finished run, or of an exported adapter folder that is not in peft's format.

    Args:
        on: the base to load for a run on a quantised base: the `trained` one, the `full`-precision one, or the
            `dequantised` one, whose weights are those that the quantised weights represent.
        is_calibrated: whether to divide the logits by the temperature that `pefttools calibrate` found for the run, and
            to predict by its thresholds. An exported adapter has them anyway.

    Raises:
        UserError: there is no such model, or its base has changed since the training.
    """
    run = Run(Path(path).absolute())
    is_export = (run.path / CONFIG).is_file() and run.recipe_file.is_file()
    if not is_export:
        run = Run.open(Path(path))
    else:
        hashes.refuse_damaged(run.path)
    settings = run.recipe()
    base = settings.task.load(settings.base.with_values(quantize=None) if on == "full" else settings.base, reporter)
    stack.merged_into(base, stack.of_run(run.path))
    if on == "dequantised":
        base.model, base.quantised = quantized.dequantised(base.model), ()
    facts = run.path / "manifest.json" if is_export else run.result_file
    with damage_of(facts):
        expected = json.loads(facts.read_text("utf-8"))["base"]["sha256"] if facts.is_file() else base.sha256
    if base.sha256 != expected:
        raise UserError(
            f"{path}: the base {base.source} has changed: its sha256 is {base.sha256}, the run's was {expected}"
        )
    from pefttools.nn import new_tokens

    if is_export and json.loads((run.path / CONFIG).read_text("utf-8")).get("trainable_token_indices"):
        base.model = new_tokens.fold(base.model)  # peft adds the trained rows to a plain table
    model = settings.strategy.load(base, run.path if is_export else run.adapter)
    if is_calibrated and not is_export and (calibration := calibrated.read(run.path, run.adapter)):
        settings = settings.with_values(task=calibration.apply(model, base.head, settings.task))
    return Trained(model.eval(), base, settings.task, settings, run.path)


def loaded_run(path: str) -> Loaded:
    """The trained model of a finished run as an objective's teacher. Raises UserError when there is none."""
    trained = load(path, is_calibrated=False)
    key = content_sha256(trained.path if (trained.path / CONFIG).is_file() else Run(trained.path).adapter)
    return Loaded(trained.model, trained.base.tokenizer, trained.task, trained.base, f"{trained.base.sha256} {key}")


def _metrics(line: Any) -> dict[str, Any]:
    """A line of metrics.jsonl. Raises ValueError if it has no step, no progress, or scores that are not by name."""
    numbers = (int, float)
    sound = isinstance(line, dict) and all(isinstance(line.get(name), numbers) for name in ("step", "progress"))
    if not sound or not isinstance(line.get("validation", {}), dict):
        raise ValueError(f"a line is not one that a run writes: {json.dumps(line)[:80]}")
    return line
