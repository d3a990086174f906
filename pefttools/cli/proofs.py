"""The command that proves artifacts which other tools made: prove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pefttools.cli import display
from pefttools.cli.base import Json, app
from pefttools.cli.runs import GROUP
from pefttools.errors import UserError
from pefttools.progress import RichReporter


@app.command(group=GROUP)
def prove(
    base: str,
    adapter: Path,
    merged: Path | None = None,
    /,
    *,
    gguf: Path | None = None,
    onnx: Path | None = None,
    text: Annotated[list[str] | None, Parameter(negative="")] = None,
    json: Json = False,
) -> None:
    """Prove that a merged model is its base with its adapter, whichever tool made them, or say what differs and why.

    Every tensor is compared, and the outputs of a process that loads the artifact alone. The exit code is 0 if it is
    equal up to the rounding of its dtype, else 2.

    Args:
        base: the adapter's base: a folder, hf:NAME, pypi:NAME==VERSION/PATH, or a GGUF file.
        adapter: a folder that peft's save_pretrained has written.
        merged: a folder of transformers with the merged model.
        gguf: a GGUF file with the merged model, instead of MERGED.
        onnx: an ONNX graph of the merged model, instead of MERGED; only its outputs are compared. Its folder must have
            the tokenizer.
        text: a text to compare the outputs on, instead of the built-in ones; can be repeated.
        json: print one JSON object.
    """
    artifacts = [path for path in (merged, gguf, onnx) if path]
    if len(artifacts) != 1:
        raise UserError("prove: name one artifact: BASE ADAPTER MERGED, or BASE ADAPTER --gguf FILE, or --onnx FILE")
    for path, suffix, option in ((gguf, ".gguf", "--gguf"), (onnx, ".onnx", "--onnx")):
        if path and path.suffix != suffix:
            raise UserError(f"{option}: {path} is no {suffix} file")
    from pefttools.bases.loading import prepare_libraries
    from pefttools.proving.verdict import prove as proven

    prepare_libraries()
    verdict = proven(base, adapter, artifacts[0], text or (), RichReporter())
    display.as_json(verdict.as_dict()) if json else display.parts(verdict.lines())
    display.warnings(verdict.warnings)
    if not verdict.is_equal:
        raise UserError(f"{artifacts[0]} is not {base} with the adapter {adapter}")
