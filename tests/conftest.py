"""Tiny models and rows, made here: tests need no network and no file from outside the repository."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis  # noqa: F401  # before objects are frozen, because it searches for references to some
import pytest
import yaml
from filelock import FileLock

from pefttools.reporter import Reporter

if "PYTEST_XDIST_WORKER" in os.environ:  # its parent process has set the value below
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so that no test connects to the hub


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that no worker starts a long file when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


WORDS = [f"word{i}" for i in range(40)]
KEYS = {"fruit": ["apple", "pear", "plum"], "tool": ["hammer", "saw", "drill"], "colour": ["red", "green", "blue"]}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_rows(
    number: int, seed: int = 0, labels: tuple[str, ...] = ("fruit", "tool", "colour")
) -> list[dict[str, str]]:
    """Sentences of filler words with one keyword that decides the label."""
    draw = random.Random(seed)
    rows = []
    for i in range(number):
        label = labels[i % len(labels)]
        words = draw.choices(WORDS, k=draw.randint(3, 9))
        words.insert(draw.randrange(len(words)), draw.choice(KEYS[label]))
        rows.append({"text": " ".join(words), "label": label})
    return rows


def make_tokenizer(inputs: tuple[str, ...] = ("input_ids", "attention_mask")) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate([*SPECIAL, *WORDS, *(w for ws in KEYS.values() for w in ws)])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, model_input_names=list(inputs), **names)


def make_base(family: str, folder: Path) -> Path:
    """A tiny headless checkpoint of a family: `bert`, `roberta`, `llama` or `bart`."""
    import torch
    import transformers

    tokenizer = make_tokenizer(
        ("input_ids", "token_type_ids", "attention_mask") if family == "bert" else ("input_ids", "attention_mask")
    )
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 80, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(1234)
    values: dict[str, Any] = {"num_labels": len(KEYS), **sizes}
    if family == "llama":
        values["num_key_value_heads"] = 2
    if family == "bart":
        halves = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
        values = {f"{half}_{n}": size for half in ("encoder", "decoder") for n, size in halves.items()}
        values |= {"d_model": 32, "num_labels": len(KEYS)} | {n: sizes[n] for n in list(sizes)[-2:]}
        values |= {"vocab_size": len(tokenizer), "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    model = transformers.AutoModelForSequenceClassification.from_config(
        transformers.AutoConfig.for_model(family, **values)
    )
    pretrain(model, tokenizer)
    model.base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pretrain(model: Any, tokenizer: Any) -> None:
    """Pretrain a model on the words, with a head that is not saved."""
    import torch

    rows = make_rows(1500, seed=7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for start in range(0, len(rows), 25):
        batch = tokenizer([row["text"] for row in rows[start : start + 25]], padding=True, return_tensors="pt")
        labels = torch.tensor([list(KEYS).index(row["label"]) for row in rows[start : start + 25]])
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


class Listener(Reporter):
    """A reporter that collects notes and warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write the user's own caches."""
    from pefttools.bases.loading import prepare_libraries

    prepare_libraries()
    root = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("PEFTTOOLS_CACHE", str(root / "pefttools"))
    patch.setenv("HF_HOME", str(root / "hf"))
    patch.setattr(os, "fsync", lambda _: None)  # tests need no protection from power cuts
    yield
    patch.undo()


@pytest.fixture(scope="session")
def bases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> folder of its tiny checkpoint, made once, by the first worker that needs it."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if hasattr(request.config, "workerinput") else root) / "bases"
    folder.mkdir(exist_ok=True)

    def base(family: str) -> Path:
        with FileLock(folder / f"{family}.lock"):
            if not (folder / family).exists():
                make_base(family, folder / f"{family}.part").rename(folder / family)
        return folder / family

    return base


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A tokenizer with one token a word, shared by the tests of a file."""
    return make_tokenizer()


@pytest.fixture
def wrapped(bases: Callable[[str], Path]) -> Callable[[str], Any]:
    """Way of training -> a tiny BERT wrapped for it, for tests of penalties."""
    from regularized import Wrapped

    return lambda how: Wrapped(bases("bert"), how)


@pytest.fixture
def recipe_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Architecture and sections -> a recipe on an untrained tiny base; the feature cache starts empty."""
    from feature_runs import write_feature_recipe

    monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / "cache"))
    return lambda architecture, **sections: write_feature_recipe(tmp_path, architecture, **sections)


@pytest.fixture
def bert_recipe(recipe_of: Callable[..., Path]) -> Path:
    return recipe_of("bert")


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 rows of three classes, as JSON lines."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", make_rows(600))


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path], rows_file: Path) -> Path:
    """A deterministic recipe that trains a tiny BERT in seconds and logs every step."""
    task = {"name": "text_classification", "max_length": 32}
    train = {"epochs": 3, "learning_rate": 0.003, "log_every": 1}
    return write_recipe(
        tmp_path_factory.mktemp("recipe") / "tiny.yaml", bases("bert"), rows_file, task=task, train=train
    )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Path:
    """A finished LoRA run of the tiny recipe."""
    return train_tiny(recipe_file, tmp_path_factory.mktemp("run") / "run")[0]


def train_tiny(recipe_file: Path, out: Path, *overrides: str, resume: bool = False) -> tuple[Path, dict[str, Any]]:
    """Train in this process; returns the run folder and its result."""
    from pefttools.recipe import recipes
    from pefttools.training.driver import train

    return out, train(recipes.load(str(recipe_file), overrides).recipe, out, resume=resume)


def _train(recipe_file: Path, out: Path, *overrides: str) -> None:
    train_tiny(recipe_file, out, *overrides)


def in_two(target: Callable[..., None], *args: Any) -> list[int | None]:
    """Run a function in two processes with the environment of torchrun, but forked after the libraries were imported.

    Returns:
        their exit codes.
    """
    from pefttools import subprocesses

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **address}
    processes = []
    for rank in ("0", "1"):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}.items():
                patch.setenv(name, value)
            processes.append(subprocesses.started(target, *args))
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def train_in_two(recipe_file: Path, out: Path, *overrides: str) -> None:
    """Train in two processes."""
    assert in_two(_train, recipe_file, out, *overrides) == [0, 0]


@contextmanager
def power_cut(step: int) -> Iterator[None]:
    """Inside, a run fails after `step` steps; the error is caught here."""
    from pefttools.training import loop

    plain = loop.Loop.step

    def dies(self: Any) -> None:
        if self.progress.step == step:
            raise RuntimeError("power cut")
        plain(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(loop.Loop, "step", dies)
        yield


NO_HASHES = shutil.ignore_patterns("hashes.json")
"""For `shutil.copytree`: a copy of a run whose files may be edited, like a run of an older version."""


def losses(run: Path) -> list[float]:
    """The loss of every step of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def without_clock(result: dict[str, Any]) -> dict[str, Any]:
    """A result without times and memory."""
    timed = ("seconds", "cpu_seconds", "step_seconds", "tokens_per_second", "peak_bytes")
    return {**result, "train": {k: v for k, v in result["train"].items() if k not in timed}}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def write_recipe(path: Path, base: Path, rows: Path, /, **sections: Any) -> Path:
    """Write a recipe for LoRA in fp32 without dropout; `sections` add or replace settings."""
    values: dict[str, Any] = {
        "base": {"source": str(base), "dropout": 0.0},
        "data": {"train": str(rows)},
        "strategy": "lora",
        "train": {"batch_size": 16, "precision": "fp32", "trackers": []},
    }
    for name, settings in sections.items():
        values[name] = {**values.get(name, {}), **settings} if isinstance(settings, dict) else settings
    path.write_text(yaml.safe_dump(values))
    return path


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path
