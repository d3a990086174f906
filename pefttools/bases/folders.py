"""Messages for a folder or file that is not a model: what it is, and what to name instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pefttools.errors import damage_of

ADAPTER, MODEL = "adapter_config.json", "config.json"
WEIGHTS = ("model*.safetensors",)
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
CONVERT = (
    "python -c \"import torch, safetensors.torch as s; w = torch.load('{file}', weights_only=True);"
    " s.save_file({{k: v.clone() for k, v in w.items()}}, '{target}', {{'format': 'pt'}})\""
)
"""A command that converts a pickled checkpoint; `weights_only` makes torch refuse a pickle that runs code."""
ANY_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")
FOREIGN = {
    "TensorFlow or Flax": ("tf_model*.h5", "flax_model*.msgpack", "*.ckpt.index"),
    "ONNX": ("*.onnx", "onnx/*.onnx"),
}
"""Formats of weights that pefttools cannot train."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.spm", "*.model")
MANY_BLOCKS, MOST_BLOCKS = 1_000, 10_000
COUNTS = (
    "num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers",
)  # fmt: skip
"""Names of the number of blocks in configurations."""
PLAIN = "name the original model, as a folder with config.json and model.safetensors"


def why_no_base(path: Path, source: str, needs_weights: bool = True) -> str | None:
    """The message on why `path` is not a transformers model; None where it seems to be one.

    Args:
        source: the user's name for it.
        needs_weights: whether weights are needed besides the configuration.
    """
    if path.is_file():
        return _file(path, source)
    has_model = (path / MODEL).is_file()
    if problem := _run(path) or _adapter(path, source) or blocks_beyond(path, source):
        return problem
    if has_model and (_found(path, *WEIGHTS) or not needs_weights):
        return _outside(path, source)
    if has_model and (pickled := _found(path, *PICKLED)):
        return _pickle(path, source, pickled)
    if problem := _other_weights(path, source):
        return problem
    if has_model:
        return (
            f"{source} contains config.json but no weights (model.safetensors); name a folder with"
            " both, or set base.init=scratch to train the architecture from random weights"
        )
    if problem := _below(path, source) or _no_model(path, source):
        return problem
    return f"{source} contains no config.json, so it is not a transformers model; name a folder with config.json"


def _outside(path: Path, source: str) -> str | None:
    """The message on an index of weights that names files outside the folder, which no pin would cover."""
    if not (path / INDEX).is_file():
        return None
    placed = _read(path / INDEX).get("weight_map")
    names = placed.values() if isinstance(placed, dict) else [None]
    if odd := next((name for name in names if not isinstance(name, str) or Path(name).name != name), ""):
        return f"{source}: its {INDEX} names {odd!r} for weights, which is not a file of this folder"
    return f"{source}: its {INDEX} is damaged" if odd is None else None


def _pickle(path: Path, source: str, files: list[str]) -> str:
    """The message on a folder whose weights are pickles."""
    what = f"{source} contains its weights as a pickle ({files[0]}), which can run code when it is loaded"
    if len(files) > 1 or not files[0].endswith(".bin"):
        return f"{what}; convert it to safetensors (transformers' `save_pretrained`) on a machine where you trust it"
    command = CONVERT.format(file=path / files[0], target=path / "model.safetensors")
    return f"{what}; convert it to safetensors: {command}"


def _file(path: Path, source: str) -> str:
    if path.suffix.lower() == ".onnx":
        return f"{source} is a model in ONNX, which cannot be trained; {PLAIN}"
    if path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".whl"):
        return f"{source} is an archive; unpack it, and name the folder that contains config.json"
    if (path.parent / MODEL).is_file():
        return f"{source} is one file of a model; name its folder, {path.parent}"
    return f"{source} is not a model file; name a folder with config.json and weights, or a .gguf file"


def _run(path: Path) -> str | None:
    if _is_run(path):
        return f"{path} is a run; {_merged(path)}"
    return None


def _adapter(path: Path, source: str) -> str | None:
    if not (path / ADAPTER).is_file():
        return None
    if _found(path, *WEIGHTS):
        return (
            f"{source} contains a model and an adapter's {ADAPTER}, and transformers would load both; move {ADAPTER}"
            " and the adapter's weights to a folder of their own"
        )
    settings = _read(path / ADAPTER)
    kind, named = settings.get("peft_type"), settings.get("base_model_name_or_path")
    what = f"{source} is a {kind} adapter of peft" if kind else f"{source} is an adapter"
    of = f" for {named}" if named else ""
    if run := next((parent for parent in (path.parent, path.parent.parent) if _is_run(parent)), None):
        return f"{what}{of}, not a model; it belongs to the run {run}: {_merged(run)}"
    advice = "merge it into its base (peft's `merge_and_unload`, then `save_pretrained`) and name the merged folder"
    if (path / "recipe.yaml").is_file():
        advice = "run `pefttools export RUN --to merged` on its run, and name the folder that this writes"
    return f"{what}{of}, not a model; {advice}{', or train its base' if named else ''}"


def _other_weights(path: Path, source: str) -> str | None:
    if files := _found(path, "*.gguf"):
        return (
            f"{source} contains a GGUF model instead of a transformers model; name the file: {_listed(source, files)}"
        )
    for kind, patterns in FOREIGN.items():
        if files := _found(path, *patterns):
            return f"{source} contains {kind} weights only ({files[0]}), which pefttools cannot train; {PLAIN}"
    if (files := _found(path, *ANY_WEIGHTS)) and not (path / MODEL).is_file():
        return f"{source} contains weights ({files[0]}) without config.json; add the model's config.json to the folder"
    return None


def _below(path: Path, source: str) -> str | None:
    snapshots = sorted((path / "snapshots").glob("*/config.json"))
    if path.name.startswith("models--") and snapshots:
        return f"{source} is a cache folder of the hub; name hf:{path.name.removeprefix('models--').replace('--', '/')}"
    folders = [file.parent for depth in ("*", "*/*") for file in sorted(path.glob(f"{depth}/{MODEL}"))]
    models = [str(folder.relative_to(path)) for folder in folders if _found(folder, *WEIGHTS, *PICKLED)]
    if not models:
        return None
    if (path / "modules.json").is_file():
        return f"{source} is a sentence-transformers folder; name the model in it: {_listed(source, models[:1])}"
    return f"{source} contains no config.json, but its subfolders contain models; name one: {_listed(source, models)}"


def _no_model(path: Path, source: str) -> str | None:
    if not any(path.iterdir()):
        return f"{source} is an empty folder; name a folder with config.json and weights"
    if (path / "model_index.json").is_file():
        return f"{source} is a diffusers pipeline, not a language model; name a folder of transformers"
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return f"{source} is a data set saved by `datasets`, not a model; to train on it, set data.train={source}"
    if _found(path, *TOKENIZER):
        return f"{source} contains a tokenizer but no model (no config.json, no weights); name the model's folder"
    return None


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() and (path / "result.json").is_file()


def _merged(run: Path) -> str:
    return f"write it as a plain model with `pefttools export {run} --to merged`, and name {run / 'export' / 'merged'}"


def _found(path: Path, *patterns: str) -> list[str]:
    return [str(file.relative_to(path)) for pattern in patterns for file in sorted(path.glob(pattern))]


def _listed(source: str, names: list[str]) -> str:
    shown = ", ".join(f"{source.rstrip('/')}/{name}" for name in names[:3])
    return f"{shown} (and {len(names) - 3} more)" if len(names) > 3 else shown


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def blocks_beyond(path: Path, source: str) -> str | None:
    """The message on a configuration with more blocks than the checkpoint has weights; None if it has not.

    A damaged number can be so large that the model would never be complete. Architectures that use one block several
    times have fewer weights than blocks, so `MANY_BLOCKS` are always allowed; without a checkpoint, `MOST_BLOCKS` are.
    """
    blocks = max(_counts(_read(path / MODEL)), default=0)
    if blocks <= MANY_BLOCKS:
        return None
    from safetensors import safe_open

    weights = 0
    for file in _found(path, *WEIGHTS):
        with damage_of(path / file), safe_open(path / file, "pt") as tensors:
            weights += len(tensors.keys())
    if blocks <= (weights or MOST_BLOCKS):
        return None
    have = f"the checkpoint has {weights:,} weights" if weights else f"no model has more than {MOST_BLOCKS:,}"
    return f"config.json of {source} has {blocks:,} blocks, but {have}; restore config.json from a copy"


def _counts(values: dict[str, Any]) -> Iterator[int]:
    """The numbers of blocks in a configuration and in the configurations inside it (`text_config`)."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _counts(value)
        elif name in COUNTS and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield int(min(value, 1 << 63))
