"""States in files without pickles: tensors in NAME.safetensors, everything else in NAME.json.

A state consists of dictionaries, lists, tuples, tensors, texts, numbers, true, false and None. It is read back equal,
bit for bit, with integer keys and tuples. Tensors are read onto the CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TENSOR, TUPLE, ITEMS = "!tensor", "!tuple", "!items"
"""Keys of what json has no notation for: a tensor by its name, a tuple, and a dictionary with keys other than texts."""


def save(folder: Path, name: str, state: Any) -> None:
    """Write a state. Raises TypeError when it contains anything else than what is listed above."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    tree = _plain(state, tensors, name)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")


def load(folder: Path, name: str) -> Any:
    """Read a state that `save` wrote."""
    from safetensors.torch import load_file

    tensors = load_file(folder / f"{name}.safetensors")
    return _restored(json.loads((folder / f"{name}.json").read_text("utf-8")), tensors)


def _plain(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous().clone()  # a file must not share storage
        return {TENSOR: key}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = [_plain(item, tensors, f"{place}[{i}]") for i, item in enumerate(value)]
        return {TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        items = [[key, _plain(item, tensors, f"{place}[{key!r}]")] for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("!") for key in value):
            return dict(items)
        return {ITEMS: [[_plain(key, tensors, f"a key of {place}"), item] for key, item in items]}
    raise TypeError(f"{place} is a {type(value).__name__}, which a checkpoint cannot store")


def _restored(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_restored(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return tensors[value[TENSOR]]
    if TUPLE in value:
        return tuple(_restored(item, tensors) for item in value[TUPLE])
    if ITEMS in value:
        return {_restored(key, tensors): _restored(item, tensors) for key, item in value[ITEMS]}
    return {key: _restored(item, tensors) for key, item in value.items()}
