"""A head that the checkpoint has already trained: which classes it tells apart, and its rows for ours.

Outputs are matched by name. Where a base already tells our classes apart, its order of them is taken, and all of its
classes are kept. Where its classes are others, or have no names (LABEL_0), the last layer starts anew, with a warning.
Names that differ in capitals, hyphens and spaces are the same, as long as that leaves no doubt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pefttools.bases import heads, loading
from pefttools.data.fields import listed
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.sources import fetch

if TYPE_CHECKING:
    from torch import nn

    from pefttools.bases.loading import Base, BaseSettings
    from pefttools.data.splitting import Splits
    from pefttools.tasks.base import Task


def fitted(task: Task, settings: BaseSettings, splits: Splits, reporter: Reporter = SILENT) -> Task:
    """The task fitted to its rows, with its classes in the order of the base's head where that tells them apart.

    Raises:
        UserError: the rows cannot serve the task, or `base.trained_head=keep` lacks what it needs.
    """
    held = names(settings, task, reporter)
    if not task.has_class_head:
        if len(held) > 1 and task.config_values().get("num_labels") == 1:
            reporter.warn(
                f"the head of {settings.source} has {len(held)} outputs ({listed(held)}), and {task.name} takes one:"
                " a new head is trained"
            )
        return task.fit(splits)
    given: tuple[str, ...] = task.labels  # type: ignore[attr-defined]
    if settings.trained_head == "keep":
        _refuse_unless_named(settings, given, held)
    found = task.fit(splits) if not given or not held else _with_given(task, given, held, splits)
    labels: tuple[str, ...] = found.labels  # type: ignore[attr-defined]
    if not held or given:
        if held and matched(given, held, settings) is None:
            _report_new(settings, given, held, reporter)
        return found
    known = matched(labels, held, settings)
    if known is None:
        _report_new(settings, labels, held, reporter)
        return found
    spelled = dict(zip(known, labels, strict=True))
    everything = [spelled.get(place, name) for place, name in enumerate(held)]
    chosen = found.with_classes(everything)
    _report_kept(settings, labels, chosen.labels, reporter)  # type: ignore[attr-defined]
    return chosen


def _with_given(task: Task, given: Sequence[str], held: Sequence[str], splits: Splits) -> Task:
    """The task fitted with the labels its recipe names, of which some may be known to the base alone."""
    free: Any = task.with_values(labels=()).fit(splits)
    if set(free.labels) <= set(given) and {*map(_folded, set(given) - set(free.labels))} <= {*map(_folded, held)}:
        return free.with_values(labels=tuple(given))
    return task.fit(splits)


def names(settings: BaseSettings, task: Task, reporter: Reporter = SILENT) -> tuple[str, ...]:
    """The classes that the base's trained head tells apart, by output; none where it has no such head for this task."""
    if settings.init == "scratch" or settings.trained_head == "new" or settings.source.lower().endswith(".gguf"):
        return ()
    config = _configuration(settings, reporter)
    if config is None or not _is_of(task.auto_class, config):
        return ()
    found = tuple(str(config.id2label[i]) for i in sorted(config.id2label))
    return found if config.architectures or not _is_nameless(found) else ()


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
    folded = [_folded(name) for name in held]
    asked = [_folded(label) for label in labels]
    if len({*folded}) == len(folded) and len({*asked}) == len(asked) and {*asked} <= {*folded}:
        return [folded.index(name) for name in asked]
    if _is_nameless(held) and {*labels} == {*map(str, range(len(held)))}:
        return [int(label) for label in labels]
    return None


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _is_nameless(held: Sequence[str]) -> bool:
    return all(re.fullmatch(r"LABEL_\d+", name) for name in held)


def start(base: Base, settings: BaseSettings, task: Task) -> bool:
    """Put the rows of a trained head where the task has its classes, or start the last layer anew.

    Returns whether its outputs are the checkpoint's.
    """
    import torch

    labels: Sequence[str] = getattr(task, "labels", ()) if task.has_class_head else ()
    if settings.init == "scratch" or base.model.device.type == "meta":
        return False
    if (found := _last_layer(base.model, base.head, len(labels) or 1)) is None:
        return False
    path, layer = found
    stored = heads.stored(base.folder, base.model)
    kept = stored(f"{path}.weight")
    if kept.ndim != 2 or kept.shape[1:] != layer.weight.shape[1:]:
        return False
    held = names(settings, task)
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


def _refuse_unless_named(settings: BaseSettings, given: Sequence[str], held: Sequence[str]) -> None:
    if not held:
        raise UserError(f"base.trained_head: keep: {settings.source} has no trained head for this task; take it away")
    if given and len(given) != len(held):
        raise UserError(
            f"base.trained_head: keep: task.labels names {len(given)} classes, and the head of {settings.source} tells"
            f" {len(held)} apart: {listed(held)}"
        )
    if not given and _is_nameless(held):
        raise UserError(
            f"base.trained_head: keep: the head of {settings.source} calls its classes {listed(held)};"
            " name the classes in this order in task.labels"
        )


def _report_new(settings: BaseSettings, labels: Sequence[str], held: Sequence[str], reporter: Reporter) -> None:
    start = f"the head of {settings.source} tells other classes apart ({listed(held)}) than the rows"
    if _is_nameless(held):
        start = f"the head of {settings.source} has no names for its classes ({listed(held)})"
    cure = f"; if its outputs are {listed(labels)} in some order, name them in that order in task.labels and set"
    cure += " base.trained_head=keep"
    reporter.warn(f"{start}: a new head is trained{cure if len(labels) == len(held) else ''}")


def _report_kept(settings: BaseSettings, labels: Sequence[str], chosen: Sequence[str], reporter: Reporter) -> None:
    more = [name for name in chosen if name not in labels]
    if more:
        reporter.warn(
            f"the head of {settings.source} also tells apart {listed(more)}, of which there are no rows to train on:"
            f" all {len(chosen)} classes are kept; base.trained_head=new trains a head for the rows' classes alone"
        )
    elif list(chosen) != list(labels):
        reporter.note(f"the classes are in the order of the head of {settings.source}: {listed(chosen)}")
