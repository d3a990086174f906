"""The interface of every strategy, and the adapter folder of methods that are not peft's."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pefttools.errors import UserError, damage_of
from pefttools.settings import Choice

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import PretrainedConfig, PreTrainedModel

    from pefttools.bases.loading import Base

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FORMAT = 1
"""Format version of the adapter folder, for methods that are not peft's."""


class Strategy(Choice, ABC):
    """The settings of a strategy, which are frozen; state is in modules."""

    default_lr: ClassVar[float]
    """The default learning rate; the strategy's file gives its source."""
    lr_range: ClassVar[tuple[float, float]]
    """Range for a search of the learning rate."""
    default_warmup: ClassVar[float] = 0.06
    """Share of the steps in which the learning rate rises."""
    head_lr_scale: ClassVar[float] = 1.0
    """Factor on the learning rate of a new head, for strategies whose pretrained weights need a much lower rate."""
    mergeable: ClassVar[bool]
    """Whether it can be merged into plain weights."""
    why_not_merged: ClassVar[str] = ""
    """If it cannot be merged: the reason, and what to do instead."""
    exact_start: ClassVar[bool]
    """Whether the wrapped model's outputs equal the base model's before training."""
    rewrites_base: ClassVar[bool] = False
    """Whether it changes frozen weights of the base, so that the start is exact only up to rounding (PiSSA)."""
    trains: ClassVar[bool] = True
    """Whether there is anything to train."""
    shardable: ClassVar[bool] = False
    """Whether processes can share its weights (`train.shard`): it reads and changes them only in the model's passes and
    by the optimizer, element by element."""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Name -> settings of the published methods that this strategy offers in addition to its default."""

    @abstractmethod
    def wrap(self, base: Base) -> nn.Module:
        """The base model prepared for training: only trained weights require gradients, including the head.

        Raises:
            UserError: the settings do not fit this base model.
        """

    @abstractmethod
    def merge(self, model: nn.Module) -> PreTrainedModel:
        """The trained model as a plain transformers model; `model` may be unusable afterwards."""

    @property
    def title(self) -> str:
        """Its name in messages, with the method's name if the strategy offers many (peft's)."""
        return self.name

    def start_lr(self) -> float:
        """The default learning rate for these settings."""
        return self.default_lr

    def lr_scale(self, name: str) -> float:
        """Factor on the learning rate of a trained parameter (LoRA+)."""
        del name
        return 1.0

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        """Number of trained parameters besides the head in closed form, for BERT-like encoders; None if unknown."""
        del config
        return None

    def start(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Initialize weights that depend on the data with training batches (EVA). Called once, before training."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A term of shape () that the method adds to the loss for any task and objective (AdaLoRA); None for no
        term."""
        del model
        return None

    def optimizer(self, model: nn.Module, groups: list[dict[str, Any]], settings: Any) -> Optimizer | None:
        """The method's own optimizer over parameter groups (GaLore); None to use the recipe's.

        Args:
            settings: the recipe's `train` section.
        """
        del model, groups, settings
        return None

    def updated(self, model: nn.Module, step: int, num_steps: int) -> None:
        """Called after every optimizer step, before the gradients are cleared."""

    def is_done(self, step: int, num_steps: int) -> bool:
        """Whether the weights after this step may become the best checkpoint (AdaLoRA's only after pruning)."""
        del step, num_steps
        return True

    def state(self, model: nn.Module) -> dict[str, Any]:
        """State of `updated` besides the parameters, for checkpoints: only plain values and tensors."""
        del model
        return {}

    def set_state(self, model: nn.Module, state: Mapping[str, Any], num_steps: int) -> None:
        """Restore what `state` returned."""

    def facts(self, model: nn.Module) -> dict[str, Any]:
        """Numbers to report (the reconstruction error of a projection)."""
        del model
        return {}

    @property
    def loads_by_peft(self) -> bool:
        """Whether `PeftModel.from_pretrained` alone can load the folder that `save` writes."""
        return False

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the trained weights to an existing folder."""
        write(self, trained(model), folder)

    def load(self, base: Base, folder: Path) -> nn.Module:
        """The wrapped base with the weights that `save` wrote. Raises UserError if a tensor is missing or
        unexpected."""
        model = self.wrap(base)
        restore(model, read(folder), str(folder))
        return model

    def continued(self, base: Base, folder: Path) -> nn.Module:
        """The wrapped base with the weights that `save` wrote, to be trained further. Raises UserError like `load`."""
        return self.load(base, folder)


def write(strategy: Strategy, parameters: Mapping[str, Tensor], folder: Path) -> None:
    """Write an adapter folder in pefttools' format: tensors by name, and the strategy's settings."""
    from safetensors.torch import save_file

    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, folder / WEIGHTS)
    about = {"pefttools": metadata.version("pefttools"), "format": FORMAT, "strategy": strategy.as_dict()}
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def read(folder: Path) -> dict[str, Tensor]:
    """The tensors that `write` wrote. Raises UserError when the file is damaged or missing."""
    from safetensors.torch import load_file

    with damage_of(folder / WEIGHTS):
        return load_file(folder / WEIGHTS)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> trained parameter; tied parameters appear once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def is_vector(parameter: Tensor) -> bool:
    """Whether a parameter is a vector, possibly stored as a matrix with one row or column (IA3's are (d, 1))."""
    return parameter.numel() == max(parameter.shape, default=1)


def restore(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy tensors into the trained parameters of the same names.

    Raises:
        UserError: names or shapes do not match the trained parameters exactly.
    """
    import torch

    from pefttools.nn.sharding import share_like

    targets = trained(model)
    if targets.keys() != tensors.keys():
        mismatched = sorted(targets.keys() ^ tensors.keys())
        raise UserError(
            f"{where}: the saved tensors do not match the trained parameters of this model; these differ:"
            f" {', '.join(mismatched[:5])}"
        )
    with torch.no_grad():
        for name, target in targets.items():
            if target.shape != tensors[name].shape:
                raise UserError(
                    f"{where}: {name} has the shape {tuple(tensors[name].shape)}, but the model needs"
                    f" {tuple(target.shape)}"
                )
            target.copy_(share_like(tensors[name], target))


def is_quantised(module: nn.Module) -> bool:
    """Whether weights are quantised to packed integers."""
    return any(not p.is_floating_point() for p in module.parameters())


def refuse_quantised(base: Base, modules: Iterable[str] = ("",)) -> None:
    """Raises UserError if a module of these paths contains quantised weights."""
    for path in modules:
        inside = any(f"{packed}.".startswith(f"{path}." if path else "") for packed in base.quantised)
        if inside or is_quantised(base.model.get_submodule(path)):
            raise UserError(
                f"strategy: {base.source} is quantised, and quantised weights cannot be trained or decomposed;"
                " use strategy=lora, which adds trained weights to them"
            )


def train_only(base: Base, modules: Iterable[str]) -> None:
    """Freeze the base except for the modules of these paths and its head. Raises UserError if they are quantised."""
    chosen = [*modules, *base.head]
    refuse_quantised(base, chosen)
    fixed = [p for p in base.model.parameters() if not p.requires_grad]  # such as Marian's sinusoids, which stay frozen
    base.model.requires_grad_(False)
    for path in chosen:
        base.model.get_submodule(path).requires_grad_(True)
    for parameter in fixed:
        parameter.requires_grad_(False)
