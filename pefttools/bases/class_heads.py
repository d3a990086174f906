"""A head that the checkpoint has already trained: which classes it tells apart, and its rows for ours.

Outputs are matched by name. Names that differ in capitals, hyphens and spaces are the same, as long as that leaves no
doubt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pefttools.bases import heads, loading
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.sources import fetch

if TYPE_CHECKING:
    from torch import nn

    from pefttools.bases.loading import Base, BaseSettings


def names(settings: BaseSettings, auto_class: str, reporter: Reporter = SILENT) -> tuple[str, ...]:
    """The classes that the base's trained head tells apart, by output; none where it has no such head for
    this class of models."""
    if settings.init == "scratch" or settings.trained_head == "new" or settings.source.lower().endswith(".gguf"):
        return ()
    config = _configuration(settings, reporter)
    if config is None or not _is_of(auto_class, config):
        return ()
    found = tuple(str(config.id2label[i]) for i in sorted(config.id2label))
    return found if config.architectures or not is_nameless(found) else ()


def _configuration(settings: BaseSettings, reporter: Reporter) -> Any:
    from transformers import AutoConfig

    loading.prepare_libraries()
    try:
        return AutoConfig.from_pretrained(fetch(settings.source, reporter=reporter))
    except (UserError, OSError, ValueError, KeyError):
        return None  # loading the base reports it


def _is_of(auto_class: str, config: Any) -> bool:
    """Whether a checkpoint with this configuration was saved from the class that the task takes."""
    import transformers

    if type(config) not in (mapping := getattr(transformers, auto_class)._model_mapping):
        return False
    classes = mapping[type(config)] if isinstance(mapping[type(config)], tuple) else (mapping[type(config)],)
    return not config.architectures or config.architectures[0] in {cls.__name__ for cls in classes}


def matched(labels: Sequence[str], held: Sequence[str], settings: BaseSettings) -> list[int] | None:
    """Of every label its output of a head with classes `held`; None where one has none."""
    if settings.trained_head == "keep" and len(labels) == len(held):
        return list(range(len(held)))
    if set(labels) <= set(held):
        return [held.index(label) for label in labels]
    known = [folded(name) for name in held]
    wanted = [folded(label) for label in labels]
    if len({*known}) == len(known) and len({*wanted}) == len(wanted) and {*wanted} <= {*known}:
        return [known.index(name) for name in wanted]
    if is_nameless(held) and {*labels} == {*map(str, range(len(held)))}:
        return [int(label) for label in labels]
    return None


def folded(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def is_nameless(held: Sequence[str]) -> bool:
    return all(re.fullmatch(r"LABEL_\d+", name) for name in held)


def start(base: Base, settings: BaseSettings, auto_class: str, labels: Sequence[str] = ()) -> bool:
    """Put the rows of a trained head where the task has its classes, or start the last layer anew.

    Args:
        labels: the task's classes; none where its head has one output.

    Returns whether the head's outputs are the checkpoint's.
    """
    import torch

    if settings.init == "scratch" or base.model.device.type == "meta":
        return False
    if (found := _last_layer(base.model, base.head, len(labels) or 1)) is None:
        return False
    path, layer = found
    stored = heads.stored(base.folder, base.model)
    kept = stored(f"{path}.weight")
    if kept.ndim != 2 or kept.shape[1:] != layer.weight.shape[1:]:
        return False
    held = names(settings, auto_class)
    order = (
        matched(labels, held, settings) if labels and held else [0] if held and len(held) == len(kept) == 1 else None
    )
    if order is None or max(order) >= len(kept):
        if kept.shape == layer.weight.shape:  # it was loaded under other names
            _renew(base.model, layer)
        return False
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(stored(f"{path}.{name}")[order])
    return True


def _last_layer(model: nn.Module, head: Sequence[str], outputs: int) -> tuple[str, nn.Linear] | None:
    """The last linear layer of the head with so many outputs, and its path."""
    import torch

    inside = tuple(f"{path}." for path in head)
    found = [
        (path, module)
        for path, module in model.named_modules()
        if f"{path}.".startswith(inside) and isinstance(module, torch.nn.Linear) and module.out_features == outputs
    ]
    return found[-1] if inside and found else None


def _renew(model: Any, layer: nn.Module) -> None:
    """Draw the layer's weights as the model's class draws those of a new head."""
    import torch

    for part in (layer, *layer.parameters()):
        vars(part).pop("_is_hf_initialized", None)
    with torch.no_grad():
        model._init_weights(layer)
