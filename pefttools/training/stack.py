"""Adapters below a run's own: trained earlier, frozen, and merged into the base in memory.

    previous/layers.json   the strategies, from the base upwards
    previous/0/ …          their adapter folders, copied from where they were trained

A run keeps copies of them, so that it does not need the folders that it started from. `Base.sha256` of a base with such
adapters covers them, too. A head with fewer outputs than the model's is the beginning of the model's: classes that
appear later come after the old ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import atomic
from pefttools.bases import class_heads
from pefttools.errors import UserError, damage_of
from pefttools.sources import content_sha256
from pefttools.strategies import strategies
from pefttools.strategies.base import CONFIG, WEIGHTS, Strategy, read

if TYPE_CHECKING:
    from torch import Tensor

    from pefttools.bases.loading import Base
    from pefttools.recipe.recipe import Recipe
    from pefttools.reporter import Reporter

FOLDER, LIST = "previous", "layers.json"


@dataclass(frozen=True)
class Layer:
    """An adapter that was trained earlier."""

    strategy: Strategy
    folder: Path
    """Its folder, in the format that the strategy saves."""

    @cached_property
    def sha256(self) -> str:
        """The sha256 of its two files when they were first read."""
        return content_sha256(self.folder, (CONFIG, WEIGHTS))


def of_run(run: Path) -> tuple[Layer, ...]:
    """The adapters below a run's own, from the base upwards; none for most runs. Raises UserError when damaged."""
    file = run / FOLDER / LIST
    if not file.is_file():
        return ()
    with damage_of(file, "restore it from a copy of the run, or train the run again"):
        values = json.loads(file.read_text("utf-8"))
        found = [strategies.parse(value, str(file)) for value in values]
    if problems := [problem for _, problems in found for problem in problems]:
        raise UserError(*problems)
    return tuple(Layer(one, file.parent / str(i)) for i, (one, _) in enumerate(found) if one is not None)


def save(layers: Sequence[Layer], run: Path) -> None:
    """Copy the adapters into a run's folder. Raises UserError when one has changed since it was merged."""
    if not layers:
        return
    with atomic.new_folder(run / FOLDER) as part:
        for i, layer in enumerate(layers):
            (part / str(i)).mkdir()
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(layer.folder / name, part / str(i) / name)
            if content_sha256(part / str(i), (CONFIG, WEIGHTS)) != layer.sha256:
                raise UserError(
                    f"start.source: {layer.folder} has changed while this run was training on top of it; restore it"
                    " from a copy, and continue with --resume"
                )
        atomic.write_json(part / LIST, [layer.strategy.as_dict() for layer in layers])


def load_base(recipe: Recipe, run: Path, reporter: Reporter) -> Base:
    """The base of a run, with the task's head and the adapters below the run's own merged into it."""
    return merged_into(recipe.task.load(recipe.base, reporter), of_run(run))


def merged_into(base: Base, layers: Sequence[Layer], new_head: bool = True) -> Base:
    """The base with the adapters merged into its weights; it is changed in place.

    Args:
        new_head: keep the base's own head, because a run's adapter has one of its own.

    Raises:
        UserError: an adapter cannot be merged, or does not fit the base.
    """
    for layer in layers:
        if base.quantised:
            raise UserError(
                "start.adapter: stack: the weights of a quantised base would be rounded again by merging; remove"
                " base.quantize, or use start.adapter=continue"
            )
        if not layer.strategy.mergeable:
            raise UserError(
                f"start.adapter: stack: {layer.strategy.title} cannot be merged into the base; use"
                " start.adapter=continue"
            )
        fixed = {name for name, p in base.model.named_parameters() if not p.requires_grad}
        with grown(layer.folder, base, new_head) as folder, fitting(layer.folder, base):
            model: Any = layer.strategy.merge(layer.strategy.load(base, folder))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in fixed)
        base.model = model.eval()
        base.source_sha256 = base.source_sha256 or base.sha256
        base.sha256 = hashlib.sha256(f"{base.sha256} {layer.sha256}".encode()).hexdigest()
    return base


@contextmanager
def fitting(folder: Path, base: Base) -> Iterator[None]:
    """Turn errors about shapes and names inside into a UserError that says that the adapter does not fit the base."""
    try:
        yield
    except UserError as error:
        cause = error.__cause__
        if not isinstance(cause, (RuntimeError, ValueError)):
            raise
        reason = " ".join(str(cause).split())[:200]
        raise UserError(
            f"start.source: the adapter in {folder} does not fit {base.source} ({reason}); name the base that it was"
            " trained on in base.source"
        ) from error


def head_layer(base: Base, outputs: int) -> str | None:
    """The path of the head's last layer, whose rows are the classes; None without one."""
    found = class_heads.last_layer(base.model, base.head, outputs)
    return without_wrappers(found[0]) if found else None


def without_wrappers(name: str) -> str:
    """A name without the parts that peft adds for a trained copy of a module."""
    for part in (".modules_to_save.default", ".original_module"):
        name = name.replace(part, "")
    return name


@contextmanager
def grown(folder: Path, base: Base, new_head: bool = False) -> Iterator[Path]:
    """The adapter folder, or a copy of it with a head that fits the base: rows of new classes, and modules that the
    adapter lacks, have the base's initial values.

    Args:
        new_head: give all of the head the base's initial values.
    """
    tensors = read(folder)
    added = _initial(tensors, base) if new_head else _head_tensors(tensors, base)
    lacking = [path for path in base.head if not _has(tensors, base, path)]
    if not added and not lacking:
        yield folder
        return
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as scratch:
        for file in folder.iterdir():
            if file.is_file() and file.name != WEIGHTS:
                shutil.copyfile(file, Path(scratch, file.name))
        if lacking:
            added |= _with_modules(Path(scratch, CONFIG), tensors, base, lacking)
        save_file({**tensors, **added}, Path(scratch, WEIGHTS), {"format": "pt"})
        yield Path(scratch)


def _head_tensors(tensors: dict[str, Tensor], base: Base) -> dict[str, Tensor]:
    """The head's tensors that have fewer rows than the base's, extended by the base's own."""
    import torch

    number = getattr(base.model.config, "num_labels", 0)
    path = head_layer(base, number)
    extended = {}
    for name, parameter in base.model.get_submodule(path).named_parameters() if path else ():
        found = key(tensors, f"{path}.{name}")
        if found and 0 < len(tensors[found]) < len(parameter) and tensors[found].shape[1:] == parameter.shape[1:]:
            more = parameter.detach()[len(tensors[found]) :].to(tensors[found])
            extended[found] = torch.cat([tensors[found], more])
    return extended


def _initial(tensors: dict[str, Tensor], base: Base) -> dict[str, Tensor]:
    """The base's own values for the head's tensors in the adapter."""
    names = [f"{path}.{n}" for path in base.head for n, _ in base.model.get_submodule(path).named_parameters()]
    known = {found: name for name in names if (found := key(tensors, name))}
    return {found: base.model.get_parameter(name).detach().clone() for found, name in known.items()}


def key(tensors: dict[str, Tensor], name: str) -> str | None:
    """The name that an adapter's file has for a parameter of the base (peft prefixes it); None if it is not there."""
    return next((found for found in tensors if found == name or found.endswith(f".{name}")), None)


def _has(tensors: dict[str, Tensor], base: Base, path: str) -> bool:
    names = [name for name, _ in base.model.get_submodule(path).named_parameters()]
    return any(key(tensors, f"{path}.{name}") for name in names)


def _with_modules(config: Path, tensors: dict[str, Tensor], base: Base, paths: Sequence[str]) -> dict[str, Tensor]:
    """Tensors for modules of the head that an adapter of peft's format lacks; its configuration names them, too."""
    values = json.loads(config.read_text("utf-8"))
    if "peft_type" not in values:
        return {}
    values["modules_to_save"] = [*(values.get("modules_to_save") or []), *paths]
    values["task_type"] = values.get("task_type") or base.task_type
    config.write_text(json.dumps(values), "utf-8")
    is_prompt = "prompt_embeddings" in tensors
    prefix = "base_model." if is_prompt else "base_model.model."
    return {
        f"{prefix}{path}.{name}": parameter.detach().clone().contiguous()
        for path in paths
        for name, parameter in base.model.get_submodule(path).named_parameters()
    }
