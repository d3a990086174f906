"""Exact results of training: record them before a change that should not affect results, and compare them afterwards.

    python benchmarks/golden.py --record       # write benchmarks/results/golden.json
    python benchmarks/golden.py                # train everything again; the exit code is 1 if a value differs
    python benchmarks/golden.py --only lora    # only cases whose names contain this text
    python benchmarks/golden.py --file F       # another record, such as one of an older commit made on this machine

Cases: every strategy and its variants on tiny models of three architectures, every task, and the first 40 steps of the
six recipes of text classification (with --recipes). Each is one `pefttools train` in fp32 on one thread. The losses of
all steps, the scores, a hash of the saved weights and a hash of the rows are compared. Other processors and versions of
torch round differently, so the record contains both, and is compared on the same ones only.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import hashlib
import io
import json
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parent / "results" / "golden.json"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers")
SIZES: Mapping[str, Mapping[str, Any]] = {
    "bert": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "bos_token_id": 3, "eos_token_id": 2},
    "bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "bos_token_id": 3,
             "eos_token_id": 2, "decoder_start_token_id": 2},
}  # fmt: skip
ARCHITECTURES = {"AutoModelForCausalLM": "llama", "AutoModelForSeq2SeqLM": "bart"}
"""A task's model class -> architecture; bert for all others."""
KEYWORDS = {"fruit": ("apple", "pear", "plum"), "tool": ("hammer", "saw", "drill"), "colour": ("red", "green", "blue")}
WORDS = [*(f"word{i}" for i in range(40)), *(word for words in KEYWORDS.values() for word in words)]
RECIPES = ("question-type-lora", "question-type-head", "question-type-full", "spam-lora", "sentiment-lora",
           "news-topic-lora")  # fmt: skip
FORTY_STEPS = ("data.train_rows=1280", "train.epochs=1", "train.batch_size=32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--recipes", action="store_true", help="also the recipes, which need their bases and rows")
    parser.add_argument("--file", type=Path, default=FILE, help="the record; by default results/golden.json")
    parser.add_argument("--only", default="", metavar="TEXT")
    arguments = parser.parse_args()
    file: Path = arguments.file
    recorded = json.loads(file.read_text()) if file.exists() else {"cases": {}}
    if not arguments.record and recorded.get("machine") != machine():
        sys.exit(
            f"recorded on {recorded.get('machine')}, this is {machine()}; record in a checkout of the older commit"
        )
    differing = 0
    with tempfile.TemporaryDirectory() as place:
        for name, words in cases(Path(place), arguments.recipes):
            if arguments.only not in name:
                continue
            found = measured(words, Path(place) / "run")
            before = recorded["cases"].get(name)
            if arguments.record:
                recorded["cases"][name] = found
            problem = "" if arguments.record else difference(before, found)
            differing += bool(problem)
            print(f"{name:48}{problem or ('recorded' if arguments.record else 'equal')}", flush=True)
    if arguments.record:
        file.write_text(json.dumps({"machine": machine(), "cases": recorded["cases"]}, indent=1) + "\n")
    elif recorded.get("machine") != machine():
        print(f"the record was made on {recorded.get('machine')}, but this is {machine()}")
    sys.exit(bool(differing))


def machine() -> dict[str, str]:
    """The processor and the versions on which rounding depends."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return {"processor": f"{platform.machine()} {capability}", **{name: metadata.version(name) for name in LIBRARIES}}


def difference(before: Mapping[str, Any] | None, found: Mapping[str, Any]) -> str:
    """A message about the first value that differs, or an empty text."""
    if before is None:
        return "DIFFERS: is not in the record"
    for name, value in before.items():
        if found.get(name) != value:
            return f"DIFFERS: {name} {str(value)[:80]} became {str(found.get(name))[:80]}"
    return ""


def cases(place: Path, recipes: bool) -> Iterator[tuple[str, list[str]]]:
    """Name and command line of every case; checkpoints and rows are written to `place`."""
    from pefttools.strategies import strategies
    from pefttools.tasks import tasks

    rows = [row(number) for number in range(240)]
    for architecture in SIZES:
        recipe = write_recipe(place, architecture, "text_classification", rows, {"max_length": 32})
        for name in strategies.names():
            for variant, settings in {"": {}, **strategies.get(name).variants}.items():
                more = [
                    f"strategy.{key}={json.dumps(v) if not isinstance(v, str) else v}" for key, v in settings.items()
                ]
                yield f"{architecture} {name} {variant}".strip(), [str(recipe), f"strategy={name}", *more]
    for name in tasks.names():
        task = tasks.get(name)
        recipe = write_recipe(
            place, ARCHITECTURES.get(task.auto_class, "bert"), name, [dict(row) for row in task.samples] * 4,
            {"max_length": 32, **task.sample_settings},
        )  # fmt: skip
        yield f"task {name}", [str(recipe)]
    for name in RECIPES if recipes else ():
        yield f"recipe {name}", [name, *FORTY_STEPS, "train.precision=fp32", "train.trackers=[]", "train.log_every=1"]


def row(number: int) -> dict[str, str]:
    """Words, one of which decides the label."""
    label = list(KEYWORDS)[number % len(KEYWORDS)]
    words = [f"word{(number * 7 + i * 11) % 40}" for i in range(3 + number % 6)]
    words.insert(number % len(words), KEYWORDS[label][number // 3 % 3])
    return {"text": " ".join(words), "label": label}


def write_recipe(place: Path, architecture: str, task: str, rows: list[dict[str, Any]], settings: Any) -> Path:
    folder = place / f"{architecture}-{task}"
    write_checkpoint(architecture, task, folder)
    files = {}
    for split, part in {"train": rows, "validation": rows[::3], "test": rows[1::3]}.items():
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in part), "utf-8")
    values = {
        "base": str(folder), "data": {**files, "deduplicate": "none"}, "strategy": "lora",
        "task": {"name": task, **settings},
        "train": {"epochs": 2, "batch_size": 8, "precision": "fp32", "trackers": [], "log_every": 1,
                  "learning_rate": 0.003},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), "utf-8")
    return folder / "recipe.yaml"


def write_checkpoint(architecture: str, task: str, folder: Path) -> None:
    """Write a tiny model with random weights, and a tokenizer with one token for each word."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from pefttools.tasks import tasks

    special = {"pad": "<pad>", "unk": "<unk>", "eos": "</s>", "bos": "<s>", "mask": "<mask>"}
    vocabulary = {word: i for i, word in enumerate([*special.values(), *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 3), ("</s>", 2)]
    )
    inputs = ["input_ids", "attention_mask"]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=64,
        model_input_names=inputs,
        **{f"{name}_token": word for name, word in special.items()},
    ).save_pretrained(folder)
    config = transformers.AutoConfig.for_model(
        architecture, vocab_size=len(vocabulary), max_position_embeddings=80, pad_token_id=0, **SIZES[architecture]
    )
    torch.manual_seed(0)
    with redirect_stderr(io.StringIO()):
        getattr(transformers, tasks.get(task).auto_class).from_config(config).save_pretrained(folder)


def measured(words: list[str], out: Path) -> dict[str, Any]:
    """The results of one run, or its exit code."""
    import shutil

    from pefttools import cli

    stderr = io.StringIO()
    with redirect_stderr(stderr), redirect_stdout(io.StringIO()):
        code = cli.run(["train", *words, "--out", str(out)])
    if code:  # a refusal; its words may change
        return {"exit code": code}
    result = json.loads((out / "result.json").read_text())
    steps = out / "metrics.jsonl"
    lines = [json.loads(line) for line in steps.read_text().splitlines()] if steps.exists() else []
    found = {
        "rows": result["data"]["digest"][:16], "weights": weights(out)[:16],
        "before": result["before"], "validation": result["validation"], "test": result["test"],
        "losses": [line["loss"] for line in lines if "loss" in line],
    }  # fmt: skip
    shutil.rmtree(out)
    return found


def weights(run: Path) -> str:
    """The sha256 of all tensors that a run saved."""
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for file in sorted(run.rglob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            digest.update(f"{file.relative_to(run)} {name} {tensor.dtype} {tensor.shape}".encode())
            digest.update(tensor.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
