"""What commands read besides data: recipes, overrides, runs, exported artifacts, bases, suites and their results."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fuzzing import workspace
from fuzzing.data_files import folder_of
from fuzzing.mutations import VALUES, mutated_bytes
from fuzzing.readers import Reader, outcome_of

RECIPES = ("question-type-lora", "spam-lora", "bbc-domain-mlm", "dialogue-smollm2-lora", "en-es-t5")
PARTS = (
    "base", "base.source", "base.quantize", "base.layers", "data", "data.train", "data.train.format",
    "data.columns", "data.columns.text", "data.labels", "data.labels.0", "data.bins", "data.validation",
    "data.test.sha256", "data.train_rows", "strategy", "strategy.name", "strategy.rank", "strategy.targets",
    "strategy.alpha", "task", "task.name", "task.max_length", "task.labels", "task.chat_template", "train",
    "train.epochs", "train.learning_rate", "train.optimizer", "train.optimizer.betas", "train.optimizer.name",
    "train.warmup", "train.batch_size", "train.schedule", "train.trackers", "train.betas", "regularizers",
    "regularizers.l2", "regularizers.ewc.rows", "objectives", "objectives.sam", "objectives.distillation.teacher",
    "augmentations", "augmentations.eda.share", "seed", "name", "description", "", ".", "a.b.c", "nonsense",
    "train..epochs", "=", "seeds", "tuning.trials",
)  # fmt: skip
"""Keys of overrides."""
TEXTS = (
    "1", "0", "-1", "3", "1e-4", "1e999", "nan", "true", "no", "null", "~", "", " ", "lora", "full", "peft",
    "[1,2]", "[]", "{}", "{a: 1}", "{name: lora, rank: 4}", "{name: [}", "[a, {b: c}]", "a: b", "#x",
    "!!python/name:os.system", "&a [*a]", "\t", "\n", "é", "日本", "'", '"', "[" * 500, "{a: " * 200, "2024-01-01",
    "1:30", "007", "=", "a=b", "\ud800", "\0", "hf:x", "pypi:a==1/b", "pypi:a==1/../b", "/", "../..", "x" * 300,
    "? a", "- a", "%", "@", "`", "<<: {a: 1}", "{<<: 1}", "{? [a] : 1}", "{1: 2, null: 3}", "{a: 1, a: 2}",
    "1_000", "0x1f", "0o17", "+1", ".5", "5.", "inf", "-inf",
)  # fmt: skip
"""Values of overrides."""


class Overrides(Reader):
    """Overrides of shipped recipes: there is no file, so a message must name a key."""

    def prepare(self) -> None:
        pass

    def attempt(self, number: int, folder: Path) -> str:
        del folder
        from pefttools.recipe import recipes

        draw = random.Random(f"{self.name} {number}")
        words = [self._word(draw) for _ in range(draw.randint(1, 3))]
        return outcome_of(lambda: recipes.load(draw.choice(RECIPES), words), "")[0]

    @staticmethod
    def _word(draw: random.Random) -> str:
        key = draw.choice(PARTS)
        value = draw.choice((draw.choice(TEXTS), draw.choice(TEXTS), str(draw.choice(VALUES))))
        if draw.random() < 0.3:
            value = mutated_bytes(value.encode("utf-8", "surrogatepass"), draw).decode("utf-8", "surrogateescape")[
                :5000
            ]
        if draw.random() < 0.1:
            key = mutated_bytes(key.encode(), draw).decode("utf-8", "surrogateescape")[:200]
        return f"{key}={value}" if draw.random() < 0.97 else key + value


def of_recipe(path: Path) -> Any:
    from pefttools.recipe import recipes

    return recipes.load(str(path)).recipe.digest


def of_suite(path: Path) -> Any:
    from pefttools.bench import suite

    loaded = suite.load(str(path))
    return [cell.learning_rates for cell in loaded.cells()]


def of_results(path: Path) -> Any:
    """What `bench --collect` does, without the charts."""
    from pefttools.bench import suite, summary, sweep, terminal

    found = sweep.Sweep(suite.load(str(workspace.suite())), path)
    if not found.records:
        return None
    return list(terminal.suite(summary.summarise(found), str(path)))


def of_run(part: Callable[[Any], Any]) -> Callable[[Path], Any]:
    """A function that opens a run and reads a part of it."""

    def read(path: Path) -> Any:
        from pefttools.training.run import Run

        return part(Run.open(path))

    return read


def trained(path: Path) -> Any:
    """The model of a run, as `predict`, `evaluate` and `export` load it."""
    from pefttools.inference.predictor import load_predictor, recipe_of

    recipe_of(path)
    load_predictor(path, "fp32")


def base(path: Path) -> Any:
    """The base at this path, as `train` loads it."""
    from pefttools.bases.loading import BaseSettings
    from pefttools.tasks import tasks

    task, _ = tasks.parse({"name": "text_classification", "labels": ["a", "b"]}, "task")
    assert task is not None
    task.load(BaseSettings(source=str(path)))


def gguf_base(path: Path) -> Any:
    """The GGUF file, as it is dequantised once into the cache."""
    import tempfile

    from pefttools.bases.gguf import _convert

    with tempfile.TemporaryDirectory() as folder:
        _convert(path, Path(folder))


def curve(run: Any) -> Any:
    from pefttools.bench import trial

    return trial.curve(run, "accuracy")


def _folder(name: str, make: Callable[[], Path], read: Callable[[Path], Any], *targets: str) -> Reader:
    return Reader(name, lambda: [folder_of(make())], read, "it", targets=targets, keyed=True)


def _run(name: str, read: Callable[[Path], Any], *targets: str, strategy: str = "lora") -> Reader:
    return _folder(f"run: {name}", lambda: workspace.run(strategy), read, *targets)


def readers() -> list[Reader]:
    """The readers of everything but data."""
    return [
        Overrides("overrides", lambda: [], of_recipe, ""),
        Reader("recipe", lambda: [file.read_bytes() for file in (workspace.recipe("lora"), run_recipe())], of_recipe,
               "recipe.yaml", keyed=True),
        Reader("suite", lambda: [workspace.suite().read_bytes()], of_suite, "suite.yaml", keyed=True),
        Reader("results of a suite", results, of_results, "it"),
        _run("recipe.yaml", of_run(lambda run: run.recipe().digest), "recipe.yaml"),
        _run("result.json", trained, "result.json"),
        _run("metrics.jsonl", of_run(curve), "metrics.jsonl"),
        _run("rows.parquet", of_run(lambda run: run.row_hashes()), "rows.parquet"),
        _run("predictions.parquet", of_run(lambda run: (run.predictions(), run.scored_rows())), "predictions.parquet"),
        _run("adapter in peft's format", trained, "adapter/*"),
        _run("adapter in our format", trained, "adapter/*", strategy=workspace.OWN),
        *(_folder(f"artifact: {name}", lambda name=name: workspace.artifact(name), trained)
          for name in ("adapter", "merged", "onnx")),
        _folder("base: config.json", lambda: workspace.bases()[0], base, "config.json"),
        _folder("base: tokenizer", lambda: workspace.bases()[0], base, "tokenizer*"),
        _folder("base: safetensors", lambda: workspace.bases()[0], base, "model.safetensors"),
        _folder("base: pytorch_model.bin", lambda: workspace.bases()[1], base, "pytorch_model.bin"),
        Reader("base: GGUF", lambda: [workspace.gguf()], gguf_base, "it.gguf"),
    ]  # fmt: skip


def run_recipe() -> Path:
    return workspace.run("lora") / "recipe.yaml"


def results() -> Sequence[Any]:
    """The folder of a suite with its trials, and one with the archive of records only."""
    whole = workspace.of_text(workspace.results())
    return [
        {name: data for name, data in whole.items() if name == "suite.yaml" or name.startswith("trials/")},
        {name: whole[name] for name in ("suite.yaml", "records.jsonl")},
    ]
