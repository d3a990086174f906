"""Valid folders that commands read, made once: tiny bases, runs, exported artifacts and a suite's results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from fuzzing.data_files import ROWS, folder_of, lines

ROOT = Path("runs/fuzz/valid").absolute()
OWN = "adapter"
"""A strategy whose weights are in pefttools' own format; those of `lora` are in peft's."""


def bases() -> tuple[Path, Path]:
    """A tiny BERT, as a folder with safetensors and as one with a `pytorch_model.bin`."""
    folder, pickled = ROOT / "bert", ROOT / "bert-bin"
    if not folder.exists():
        import torch
        import transformers

        sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        config = transformers.BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=64, pad_token_id=0)
        torch.manual_seed(0)
        model, tokenizer = transformers.BertModel(config), _tokenizer()
        for target in (pickled, folder):
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
        (pickled / "model.safetensors").unlink()
        torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    return folder, pickled


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for row in ROWS for w in row["text"].split()})]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words[:64])}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    names = {f"{name}_token": word for name, word in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **names)


def recipe(strategy: str) -> Path:
    """A recipe of one epoch on the rows of the data files."""
    file, rows = ROOT / f"{strategy}.yaml", ROOT / "rows.jsonl"
    if not file.exists():
        ROOT.mkdir(parents=True, exist_ok=True)
        rows.write_bytes(lines(ROWS))
        values = {
            "base": {"source": str(bases()[0]), "dropout": 0.0},
            "data": {"train": str(rows), "columns": {"text": "text"}},
            "task": {"name": "text_classification", "max_length": 32},
            "strategy": strategy,
            "train": {"epochs": 1, "batch_size": 8, "precision": "fp32", "trackers": [], "log_every": 1},
        }
        file.write_text(yaml.safe_dump(values))
    return file


def run(strategy: str) -> Path:
    """A finished run."""
    folder = ROOT / f"run-{strategy}"
    if not folder.exists():
        _command("train", recipe(strategy), "--out", folder)
        (folder / "hashes.json").unlink()  # by which every change is noticed before the readers see it
    return folder


def artifact(exporter: str) -> Path:
    """An exported artifact of the run of LoRA."""
    folder = ROOT / f"artifact-{exporter}"
    if not folder.exists():
        _command("export", run("lora"), "--to", exporter, "--out", folder)
        (folder / "hashes.json").unlink(missing_ok=True)
    return folder


def suite() -> Path:
    """A suite file of one short trial a strategy."""
    file = ROOT / "suite.yaml"
    if not file.exists():
        values = {
            "description": "Two strategies.",
            "recipe": str(recipe("lora")),
            "set": {"train.epochs": 1},
            "axes": {"strategies": ["lora", "frozen"]},
            "seeds": [0],
            "tuning": {"trials": 1},
        }
        file.write_text(yaml.safe_dump(values))
    return file


def results() -> Path:
    """The results of the suite."""
    folder = ROOT / "results"
    if not (folder / "summary.json").exists():
        _command("bench", suite(), "--out", folder)
    return folder


def of_text(folder: Path) -> Mapping[str, bytes]:
    """The files of a folder without those that nothing reads again."""
    unread = (".html", ".png", ".svg", ".md", ".db", ".lock")
    return {name: data for name, data in folder_of(folder).items() if not name.endswith(unread)}


def gguf() -> bytes:
    """A tiny Llama in a GGUF file."""
    file = ROOT / "tiny.gguf"
    if not file.exists():
        _write_gguf(file)
    return file.read_bytes()


def _write_gguf(file: Path) -> None:
    import numpy
    from gguf import GGUFWriter

    draw, width, inside = numpy.random.default_rng(0), 16, 32
    words = ["<end>", "w", *map(str, range(10)), *(f"w{i}" for i in range(10))]
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inside)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges(["w 1", "w 2"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    shapes = {"token_embd": (len(words), width), "output_norm": (width,), "output": (len(words), width)}
    shapes |= {f"blk.0.{name}": (width, width) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.0.{name}": (inside, width) for name in ("ffn_gate", "ffn_up")}
    shapes |= {"blk.0.ffn_down": (width, inside), "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _command(*words: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pefttools", *map(str, words)],
        env={**os.environ, "PEFTTOOLS_CACHE": str(ROOT / "cache")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"pefttools {words[0]} failed: {done.stderr[-2000:]}")


def record() -> str:
    """A finished trial's record as JSON."""
    return json.dumps(json.loads(next((results() / "trials").glob("[!.]*.json")).read_text("utf-8")))
