"""Load a base, the base with an adapter, and an artifact, with plain transformers and peft, in fp32."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import imports
from pefttools.bases import folders, gguf
from pefttools.errors import UserError
from pefttools.sources import fetch
from pefttools.strategies.base import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

MODEL = "config.json"
PLAIN = {"trust_remote_code": False, "use_safetensors": True}
TASK_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""peft's task type -> the class with its head, for artifacts whose configuration does not name their class."""


@dataclass(frozen=True)
class Right:
    """The base with the adapter: what the artifact should be."""

    model: Any
    """The merged model, in fp32."""
    base: Mapping[str, Tensor]
    """The base's own tensors."""
    without_source: list[str]
    """Tensors that neither the base nor the adapter has."""
    heads: list[str]
    """Paths of the modules that the adapter saves whole."""
    ranks: list[int]
    scaling: float | None
    """The adapter's factor, if all its matrices have the same."""
    rslora: bool


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The adapter's configuration.

    Raises:
        UserError: the folder has no adapter of peft.
    """
    file = folder / CONFIG
    if not file.is_file():
        inside = [one for one in (folder / "adapter", folder / "export" / "adapter") if (one / CONFIG).is_file()]
        hint = f"name {inside[0]}" if inside else "name a folder that peft's save_pretrained has written"
        raise UserError(f"ADAPTER: {folder} has no {CONFIG}; {hint}")
    try:
        settings = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"ADAPTER: {file} is damaged ({error})") from error
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"ADAPTER: {folder} has no {WEIGHTS}; if its weights are a pickle (adapter_model.bin), load it with peft"
            " where you trust it and save it again"
        )
    return settings


def model_class(artifact: Path | None, settings: Mapping[str, Any]) -> Any:
    """The transformers class of the artifact: that of its configuration, else that of the adapter's task type.

    Raises:
        UserError: neither names a class that transformers has.
    """
    import transformers

    names = []
    if artifact is not None and (artifact / MODEL).is_file():
        try:
            names += json.loads((artifact / MODEL).read_text("utf-8")).get("architectures") or []
        except ValueError as error:
            raise UserError(f"MERGED: {artifact / MODEL} is damaged ({error})") from error
    names += [TASK_CLASSES[settings["task_type"]]] if settings.get("task_type") in TASK_CLASSES else []
    for name in names:
        if found := getattr(transformers, name, None):
            return found
    raise UserError(
        f"the kind of model is unknown: {MODEL} names no architecture that transformers has, and the adapter's"
        f" task_type is {settings.get('task_type')!r}; set task_type in {CONFIG} to one of {', '.join(TASK_CLASSES)}"
    )


def load_artifact(path: Path, cls: Any) -> tuple[Any, str]:
    """The artifact in fp32, and the dtype that it is stored in, a key of `tensors.ROUNDING`."""
    if path.suffix == ".gguf":
        return gguf.read(path), _gguf_dtype(path)
    model = _loaded(cls, path, "MERGED")[0]
    return model, _stored_dtype(path) or "float32"


def _stored_dtype(folder: Path) -> str | None:
    """The dtype of most weights in a folder's safetensors files; None if there are none."""
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                part = tensors.get_slice(name)
                sizes[part.get_dtype()] = sizes.get(part.get_dtype(), 0) + math.prod(part.get_shape())
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return names.get(max(sizes, key=lambda dtype: sizes[dtype])) if sizes else None


def _gguf_dtype(file: Path) -> str:
    """The data type of most weights of a GGUF file."""
    from gguf import GGUFReader

    sizes: dict[str, int] = {}
    for tensor in GGUFReader(file).tensors:
        name = tensor.tensor_type.name.lower()
        sizes[name] = sizes.get(name, 0) + int(tensor.n_elements)
    most = max(sizes, key=lambda name: sizes[name])
    plain = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "q8_0": "q8_0", "q6_k": "q6_k"}
    return plain.get(most) or next((key for key in ("q5", "q4", "q3", "q2") if key in most), "q2")


def load_right(base: str, adapter: Path, cls: Any, artifact: Path | None) -> Right:
    """Load the base, put the adapter on it with peft and merge it there, in fp32.

    Raises:
        UserError: the base or the adapter cannot be loaded, or this kind of adapter cannot be merged.
    """
    imports.import_peft()
    from peft import PeftModel

    values = _label_settings(adapter, artifact)
    model, missing = _loaded(cls, fetch(base), "BASE", **values)
    if rows := _embedding_rows(adapter, model):
        model.resize_token_embeddings(rows, mean_resizing=False)
    own = {name: t.detach().clone() for name, t in named_tensors(model).items() if name not in missing}
    try:
        wrapped: Any = PeftModel.from_pretrained(model, str(adapter), low_cpu_mem_usage=False)
    except Exception as error:  # a foreign adapter raises errors of any class
        more = (
            "; is BASE the model that the adapter was trained on?"
            if "not found in the base model" in str(error)
            else ""
        )
        raise UserError(f"ADAPTER: peft cannot put {adapter} on this base: {_line(error)}{more}") from error
    config = wrapped.active_peft_config
    scalings, ranks, heads = _values(wrapped, "scaling"), _values(wrapped, "r"), _saved_modules(wrapped)
    try:
        merged = wrapped.merge_and_unload()
    except Exception as error:  # peft raises AttributeError, NotImplementedError and others
        kind = getattr(config.peft_type, "value", config.peft_type)
        reason = "" if isinstance(error, AttributeError) else f" ({_line(error)})"
        raise UserError(
            f"ADAPTER: {kind} adapters cannot be merged into weights{reason}, so no merged model can be one"
        ) from error
    saved = tuple(f"{path}." for path in heads)
    lost = sorted(name for name in named_tensors(merged) if name in missing and not name.startswith(saved))
    scaling = float(next(iter(scalings))) if len(scalings) == 1 else None
    rslora = bool(getattr(config, "use_rslora", False))
    return Right(merged.eval(), own, lost, heads, sorted({int(rank) for rank in ranks}), scaling, rslora)


def named_tensors(model: Any) -> dict[str, Tensor]:
    """Name -> tensor of every parameter of a plain model; tied ones once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _loaded(cls: Any, source: Path, what: str, **values: Any) -> tuple[PreTrainedModel, set[str]]:
    """A model in fp32 on the CPU, and the names of the tensors that its checkpoint lacks.

    Raises:
        UserError: there is no model, or it cannot be loaded as this class.
    """
    import torch

    # without a config.json, a class of transformers makes a model of its default size, of seven billion parameters
    if source.suffix != ".gguf" and (reason := folders.why_no_base(source, str(source))):
        raise UserError(f"{what}: {reason}")
    try:
        if source.suffix == ".gguf":
            return gguf.read(source), set()
        model, report = cls.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **PLAIN, **values)
    except Exception as error:  # a damaged folder raises errors of any class
        raise UserError(f"{what}: {source} cannot be loaded as {cls.__name__}: {_line(error)}") from error
    return model.eval(), {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}


def _label_settings(adapter: Path, artifact: Path | None) -> dict[str, Any]:
    """`num_labels` as the adapter's head has it, else as the artifact's configuration has it."""
    from safetensors import safe_open

    with safe_open(adapter / WEIGHTS, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # it is no mapping
            if name.endswith((".classifier.weight", ".score.weight", ".out_proj.weight")):
                return {"num_labels": tensors.get_slice(name).get_shape()[0]}
    if artifact is not None and (artifact / MODEL).is_file():
        labels = json.loads((artifact / MODEL).read_text("utf-8")).get("id2label")
        return {"num_labels": len(labels)} if labels else {}
    return {}


def _embedding_rows(adapter: Path, model: Any) -> int | None:
    """The rows of the embeddings in the adapter's weights, if they are others than the base's."""
    from safetensors import safe_open

    own = model.get_input_embeddings().weight.shape
    with safe_open(adapter / WEIGHTS, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # it is no mapping
            shape = tensors.get_slice(name).get_shape()
            if any(word in name for word in ("embed_tokens", "wte", "word_embeddings", "lm_head", "shared")) and (
                "lora" not in name and len(shape) == 2 and shape[1] == own[1] and shape[0] != own[0]
            ):
                return shape[0]
    return None


def _saved_modules(wrapped: Any) -> list[str]:
    """Paths of the modules that the adapter replaces, as the plain model names them."""
    inner = wrapped.get_base_model()
    return [path for path, module in inner.named_modules() if hasattr(module, "modules_to_save")]


def _values(wrapped: Any, name: str) -> set[Any]:
    """The different values of this mapping (`scaling`, `r`) in all of the adapter's layers."""
    found = (getattr(module, name, None) for module in wrapped.modules())
    return {value for each in found if isinstance(each, dict) for value in each.values()}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
