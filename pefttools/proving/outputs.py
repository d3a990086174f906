"""The outputs of an artifact in a process of its own, and of the right model, on the same texts."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import subprocesses
from pefttools.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "In 2026, 3 of 4 cats' tails weren't shorter than 12.5 cm!",
    "Wer hat das Buch geschrieben, und warum?",
    "这家餐厅的服务很好，但是菜太咸了。",
    "def area(radius):\n    return 3.14159 * radius ** 2",
)
"""Texts that are compared where the user gives none."""
TOLERANCE = {
    "float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 0.1, "q8_0": 0.1, "q6_k": 0.3, "q5": 0.5, "q4": 1.0,
    "q3": 2.0, "q2": 4.0,
}  # fmt: skip
"""Dtype -> the allowed difference of logits, as a share of the largest logit or at least of 1."""


@dataclass(frozen=True)
class Outputs:
    """What a model gives for each text."""

    ids: list[list[int]]
    logits: list[Tensor]
    """One tensor a text: (classes,), or (tokens, classes)."""

    @property
    def largest(self) -> float:
        return max((float(each.abs().max()) for each in self.logits), default=0.0)


def outputs(model: Any, tokenizer: Any, texts: Sequence[str]) -> Outputs:
    """Run a model on each text alone, so that padding plays no role."""
    import torch

    ids, logits = [], []
    names = {"input_ids", "attention_mask", "token_type_ids"}
    with torch.inference_mode():
        for text in texts:
            batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=_limit(model, tokenizer))
            ids.append(batch["input_ids"][0].tolist())
            inputs = {name: value for name, value in batch.items() if name in names}
            if "token_type_ids" in inputs and getattr(model.config, "type_vocab_size", 0) < 2:
                del inputs["token_type_ids"]
            if model.config.is_encoder_decoder and "SequenceClassification" not in type(model).__name__:
                inputs["decoder_input_ids"] = inputs["input_ids"]
            logits.append(_logits(model(**inputs))[0].float())
    return Outputs(ids, logits)


def _logits(found: Any) -> Tensor:
    """The logits in a model's outputs; the last hidden states of a model without a head."""
    import torch

    if (start := getattr(found, "start_logits", None)) is not None:
        return torch.stack([start, found.end_logits], -1)
    logits = getattr(found, "logits", None)
    return found.last_hidden_state if logits is None else logits


def _limit(model: Any, tokenizer: Any) -> int:
    known = getattr(model.config, "max_position_embeddings", None) or 512
    return min(512, known, tokenizer.model_max_length)


def in_own_process(path: Path, class_name: str, texts: Sequence[str]) -> Outputs:
    """The outputs of the artifact, which a process that has not seen base and adapter loads with transformers.

    Raises:
        UserError: the artifact cannot be loaded or run.
    """
    import torch

    with tempfile.TemporaryDirectory() as scratch:
        order = Path(scratch, "order.json")
        order.write_text(json.dumps([str(path), class_name, list(texts), torch.get_num_threads()]), "utf-8")
        process = subprocesses.started(_run, order)
        process.join()
        answer = Path(scratch, "answer.json")
        if not answer.is_file():
            raise UserError(f"{path}: the process that loads it ended with exit code {process.exitcode}")
        found = json.loads(answer.read_text("utf-8"))
        if "failed" in found:
            raise UserError(f"{path}: transformers cannot load or run it: {found['failed']}")
        tensors = torch.load(Path(scratch, "logits.pt"), weights_only=True)
        return Outputs(found["ids"], tensors)


def _run(order: Path) -> None:
    import torch

    from pefttools.bases.loading import prepare_libraries

    prepare_libraries()
    path, class_name, texts, threads = json.loads(order.read_text("utf-8"))
    torch.set_num_threads(threads)
    try:
        model, tokenizer = load_plain(Path(path), class_name)
        found = outputs(model, tokenizer, texts)
        torch.save(found.logits, order.with_name("logits.pt"))
        answer: dict[str, Any] = {"ids": found.ids}
    except Exception as error:  # a damaged folder raises errors of any class
        answer = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    order.with_name("answer.json").write_text(json.dumps(answer), "utf-8")


def load_plain(path: Path, class_name: str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or a GGUF file, in fp32."""
    import torch
    import transformers

    from pefttools.bases import folders, gguf
    from pefttools.proving import onnx

    if path.suffix == ".gguf":
        named = {"gguf_file": path.name, "trust_remote_code": False}
        return gguf.read(path).eval(), transformers.AutoTokenizer.from_pretrained(path.parent, **named)
    if path.suffix == ".onnx":
        return onnx.Graph(path), transformers.AutoTokenizer.from_pretrained(path.parent, trust_remote_code=False)
    if problem := folders.blocks_beyond(path, str(path)):
        raise UserError(problem)
    cls = getattr(transformers, class_name)
    model = cls.from_pretrained(path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def difference(found: Outputs, right: Outputs) -> float:
    """The largest difference of two models' logits; infinite where their shapes differ or one is no number."""
    pairs = zip(found.logits, right.logits, strict=True)
    gaps = [float((a - b).abs().max()) if a.shape == b.shape else math.inf for a, b in pairs]
    return max((math.inf if math.isnan(gap) else gap for gap in gaps), default=0.0)
