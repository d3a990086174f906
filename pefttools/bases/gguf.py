"""GGUF bases: dequantised once and cached as a plain transformers folder.

transformers marks a model that it has read from GGUF as quantised, although its weights are floating point, and would
refuse to train or save it; `read` removes the marks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pefttools import atomic
from pefttools.errors import UserError
from pefttools.reporter import Reporter
from pefttools.sources.cache import cache_dir, stored

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def dequantised(path: Path, sha256: str, reporter: Reporter) -> Path:
    """A cached folder with the file's model in fp32 and its tokenizer; the first conversion takes half a minute.

    Raises:
        UserError: transformers cannot read the file.
    """
    folder = cache_dir("dequantised", sha256)

    def create() -> None:
        reporter.note(f"dequantising {path.name}; later runs use the result")
        with atomic.new_folder(folder) as part:
            _convert(path, part)

    return stored(folder, create, "dequantised base", reporter)


def _convert(path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        model = read(path)
    except Exception as error:  # a damaged file raises errors of any class
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"base: {path.name} cannot be read as GGUF: {reason}") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def without_bar() -> Iterator[None]:
    """Inside, transformers reads GGUF files without a progress bar of its own."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    reader.tqdm = lambda tensors, **_: tensors  # type: ignore[assignment]
    try:
        yield
    finally:
        reader.tqdm = bar


def read(path: Path) -> PreTrainedModel:
    """The file's model in fp32. Raises what transformers raises when it cannot be read, or ValueError if the file has
    more blocks than tensors: a damaged number of them can be so large that the model would never be complete."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    reader = GGUFReader(path)
    counts = [int(field.contents()) for name, field in reader.fields.items() if name.endswith(".block_count")]
    if max(counts, default=0) > len(reader.tensors):
        raise ValueError(f"it has {max(counts):,} blocks, but {len(reader.tensors):,} tensors")
    del reader  # it maps the file
    with without_bar():
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
        )
    vars(model)["hf_quantizer"] = None
    for mark in ("is_quantized", "quantization_method"):
        if mark in vars(model):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")
    return model
