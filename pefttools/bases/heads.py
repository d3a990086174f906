"""The modules that make up a loaded model's head: new, never trained, or named by the user."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pefttools.errors import UserError, damage_of, unknown
from pefttools.nn import module_paths

if TYPE_CHECKING:
    from torch import Tensor, nn


def head(
    model: nn.Module, missing: Iterable[str], named: Iterable[str], bias: Callable[[str], Tensor], own: bool = True
) -> tuple[str, ...]:
    """Full paths of the task's own modules, those missing in the checkpoint, those never trained, and `named` ones.

    Args:
        missing: names of the weights that the checkpoint lacks.
        bias: returns the values of a bias by name; for a model without weights, the checkpoint's values.
        own: whether the modules outside the backbone are the task's own; those of a language model are not.

    Raises:
        UserError: one of `named` is not a module of the model.
    """
    new = _owners(model, missing) if own else _apart(model, _owners(model, missing))
    untrained = never_trained(model, bias) if own else []
    return _outermost([*(tops(model) if own else ()), *new, *untrained, *_known(model, named)])


def tops(model: nn.Module) -> list[str]:
    """The task's own modules: those outside the backbone that have parameters."""
    prefix = getattr(model, "base_model_prefix", "")
    within = tuple(f"{path}." for path in module_paths.blocks(model))
    tables = {id(p) for p in model.get_input_embeddings().parameters()}  # type: ignore[operator]
    return [
        name
        for name, child in model.named_children()
        if name != prefix
        and any(True for _ in child.parameters())
        and not any(path.startswith(f"{name}.") for path in within)  # T5's question answering has no backbone
        and not tables & {id(p) for p in child.parameters()}
    ]


def _apart(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """The paths; modules that share weights with others (a tied decoder) are replaced by submodules that do not."""
    unshared = []
    for path in paths:
        module = model.get_submodule(path)
        inside = {id(p) for p in module.parameters()}
        outside = {
            id(p) for name, p in model.named_parameters(remove_duplicate=False) if not name.startswith(f"{path}.")
        }
        if not inside & outside:
            unshared.append(path)
        else:
            unshared += _apart(model, [f"{path}.{n}" for n, m in module.named_children() if [*m.parameters()]])
    return unshared


def never_trained(model: nn.Module, bias: Callable[[str], Tensor]) -> list[str]:
    """Paths of linear layers above the blocks whose bias is exactly zero, which shows that they were never trained."""
    import torch

    above = module_paths.above_blocks(model)
    untrained = [
        path
        for path, module in model.named_modules()
        if path in above
        and isinstance(module, torch.nn.Linear)
        and module.bias is not None
        and not bias(f"{path}.bias").any()
    ]
    return _owners(model, [f"{path}.{name}" for path in untrained for name in ("weight", "bias")])


def stored(folder: Path, model: nn.Module) -> Callable[[str], Tensor]:
    """A function that reads one weight from the folder's checkpoint by name; it returns zero for a missing weight.

    A checkpoint without a head has the backbone's weights without their prefix.
    """
    import torch
    from safetensors import safe_open

    prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def read(name: str) -> Tensor:
        bare = name.removeprefix(prefix)
        for file in _files(folder, (name, bare)):
            with damage_of(file), safe_open(file, "pt") as tensors:
                names = set(tensors.keys())
                if found := [n for n in (name, bare) if n in names]:
                    return tensors.get_tensor(found[0])
        return torch.zeros(1)

    return read


def _files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The checkpoint's files that may contain a weight with one of these names."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        with damage_of(index):
            placed = json.loads(index.read_text("utf-8"))["weight_map"]
            return [folder / placed[name] for name in names if name in placed]
    return []


def _owners(model: nn.Module, new: Iterable[str]) -> list[str]:
    """The largest modules inside the backbone all of whose parameters are among `new`, like `bert.pooler`."""
    names = set(new)
    found = []
    for name in sorted(names):
        path = name.rpartition(".")[0]
        while "." in path:
            parent = path.rpartition(".")[0]
            inside = {f"{parent}.{n}" for n, _ in model.get_submodule(parent).named_parameters()}
            if parent == getattr(model, "base_model_prefix", "") or not inside <= names:
                break
            path = parent
        found.append(path)
    return found


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """The paths without repetitions and without those inside another one."""
    unique = list(dict.fromkeys(paths))
    return tuple(p for p in unique if not any(p.startswith(f"{other}.") for other in unique))


def _known(model: nn.Module, names: Iterable[str]) -> list[str]:
    paths = [path for path, _ in model.named_modules() if path]
    inside = tuple(f"{path}." for path in module_paths.blocks(model))
    shown = [path for path in paths if not path.startswith(inside)]
    problems = [f"base.head: {unknown('module', name, shown)}" for name in names if name not in paths]
    if problems:
        raise UserError(*problems)
    return list(names)
