"""A checkpoint's trained classification head: its classes, and its weights for the task's classes.

Outputs are matched by class name. Differences in capitals, hyphens and spaces are ignored where that is unambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pefttools.bases import heads, loading
from pefttools.reporter import SILENT, Reporter
from pefttools.sources import fetch

if TYPE_CHECKING:
    from torch import nn

    from pefttools.bases.loading import Base, BaseSettings


def names(settings: BaseSettings, auto_class: str, reporter: Reporter = SILENT) -> tuple[str, ...]:
    """The classes of the base's trained head, in the order of its outputs; empty without such a head for this class."""
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
        return AutoConfig.from_pretrained(fetch(settings.source, reporter=reporter), trust_remote_code=False)
    except Exception:
        return None  # loading the base reports it


def _is_of(auto_class: str, config: Any) -> bool:
    """Whether a checkpoint with this configuration was saved from the model class that the task loads."""
    import transformers

    if type(config) not in (mapping := getattr(transformers, auto_class)._model_mapping):
        return False
    classes = mapping[type(config)] if isinstance(mapping[type(config)], tuple) else (mapping[type(config)],)
    return not config.architectures or config.architectures[0] in {cls.__name__ for cls in classes}


def matched(labels: Sequence[str], existing: Sequence[str], settings: BaseSettings) -> list[int] | None:
    """Each label's output in a head with the classes `existing`; None where a label has none."""
    if settings.trained_head == "keep" and len(labels) == len(existing):
        return list(range(len(existing)))
    if set(labels) <= set(existing):
        return [existing.index(label) for label in labels]
    known = [folded(name) for name in existing]
    wanted = [folded(label) for label in labels]
    if len({*known}) == len(known) and len({*wanted}) == len(wanted) and {*wanted} <= {*known}:
        return [known.index(name) for name in wanted]
    if is_nameless(existing) and {*labels} == {*map(str, range(len(existing)))}:
        return [int(label) for label in labels]
    return None


def folded(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def is_nameless(existing: Sequence[str]) -> bool:
    return all(re.fullmatch(r"LABEL_\d+", name) for name in existing)


def start(base: Base, settings: BaseSettings, auto_class: str, labels: Sequence[str] = ()) -> bool:
    """Copy a trained head's weights to the outputs of the task's classes, or initialize the last layer.

    Args:
        labels: the task's classes; empty where its head has one output.

    Returns:
        Whether the head's weights come from the checkpoint.
    """
    import torch

    if settings.init == "scratch" or base.model.device.type == "meta":
        return False
    if (found := last_layer(base.model, base.head, len(labels) or 1)) is None:
        return False
    path, layer = found
    stored = heads.stored(base.folder, base.model)
    trained = stored(f"{path}.weight")
    if trained.ndim != 2 or trained.shape[1:] != layer.weight.shape[1:]:
        return False
    existing = names(settings, auto_class)
    order = [0] if existing and len(existing) == len(trained) == 1 else None
    if labels and existing:
        order = matched(labels, existing, settings)
    if order is None or max(order) >= len(trained):
        if trained.shape == layer.weight.shape:  # transformers has loaded it, although its classes are others
            _renew(base.model, layer)
        return False
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(stored(f"{path}.{name}")[order])
    return True


def extend(base: Base, number: int, outputs: int) -> None:
    """Copy the weights of a checkpoint's head with `number` classes to the first of the head's `outputs`."""
    import torch

    if (found := last_layer(base.model, base.head, outputs)) is None:
        return
    path, layer = found
    stored = heads.stored(base.folder, base.model)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter[:number] = stored(f"{path}.{name}")


def last_layer(model: nn.Module, head: Sequence[str], outputs: int) -> tuple[str, nn.Linear] | None:
    """The head's last linear layer with this number of outputs, and its path."""
    import torch

    inside = tuple(f"{path}." for path in head)
    found = [
        (path, module)
        for path, module in model.named_modules()
        if f"{path}.".startswith(inside) and isinstance(module, torch.nn.Linear) and module.out_features == outputs
    ]
    return found[-1] if inside and found else None


def _renew(model: Any, layer: nn.Module) -> None:
    """Initialize the layer's weights as the model class does for a new head."""
    import torch

    for part in (layer, *layer.parameters()):
        vars(part).pop("_is_hf_initialized", None)
    with torch.no_grad():
        model._init_weights(layer)
