"""What every strategy answers, and how the methods of peft answer it."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pefttools.errors import UserError
from pefttools.registry import Choice

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from pefttools.models import Base

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FORMAT = 1
"""Version of the adapter folder of the methods that are not peft's."""


class Strategy(Choice, ABC):
    """Frozen settings; state lives in modules."""

    default_lr: ClassVar[float]
    """The learning rate to start from, with its source in the strategy's file."""
    lr_range: ClassVar[tuple[float, float]]
    """Where a search for the learning rate looks."""
    default_warmup: ClassVar[float] = 0.06
    """Share of the steps over which the learning rate rises."""
    mergeable: ClassVar[bool]
    """Whether it folds into plain weights."""
    exact_start: ClassVar[bool]
    """Whether the wrapped model first answers like the base."""

    @abstractmethod
    def wrap(self, base: Base) -> nn.Module:
        """The base made ready to train: what is trained requires gradients, the head among it, and nothing else.

        Raises:
            UserError: the settings do not fit this base.
        """

    @abstractmethod
    def merge(self, model: nn.Module) -> PreTrainedModel:
        """The trained model as a plain transformers model; may use up `model`."""

    def start_lr(self) -> float:
        """The learning rate for these settings, where it depends on them."""
        return self.default_lr

    def updated(self, model: nn.Module, step: int, num_steps: int) -> None:
        """Called after every optimizer step, before the gradients are cleared."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what was trained to an existing folder."""
        from safetensors.torch import save_file

        save_file({name: p.detach().contiguous() for name, p in trained(model).items()}, folder / WEIGHTS)
        about = {"pefttools": metadata.version("pefttools"), "format": FORMAT, "strategy": self.as_dict()}
        (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", "utf-8")

    def load(self, base: Base, folder: Path) -> nn.Module:
        """The wrapped base with what `save` wrote. Raises UserError when a tensor is missing or foreign."""
        from safetensors.torch import load_file

        model = self.wrap(base)
        restore(model, load_file(folder / WEIGHTS), str(folder))
        return model


class PeftStrategy(Strategy, ABC):
    """A method of peft: wrapped, saved, loaded and merged by peft itself."""

    mergeable: ClassVar[bool] = True
    exact_start: ClassVar[bool] = True

    @abstractmethod
    def config(self, base: Base) -> PeftConfig:
        """peft's configuration, with `task_type` and the head as `modules_to_save`."""

    def wrap(self, base: Base) -> nn.Module:
        from peft import get_peft_model

        return get_peft_model(base.model, self.config(base))

    def merge(self, model: Any) -> PreTrainedModel:
        return model.merge_and_unload()

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)

    def load(self, base: Base, folder: Path) -> nn.Module:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            try:
                return PeftModel.from_pretrained(base.model, str(folder))
            except (UserWarning, KeyError) as error:
                raise UserError(f"{folder}: the adapter is not whole: {error}") from error


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, for what is trained; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def restore(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy tensors into the trained parameters of those names.

    Raises:
        UserError: the names or shapes are not exactly those of what is trained.
    """
    import torch

    targets = trained(model)
    if targets.keys() != tensors.keys():
        strange = sorted(targets.keys() ^ tensors.keys())
        raise UserError(f"{where}: its tensors are not those this model trains: {', '.join(strange[:5])}")
    with torch.no_grad():
        for name, target in targets.items():
            if target.shape != tensors[name].shape:
                raise UserError(
                    f"{where}: {name} is {tuple(tensors[name].shape)}, the model's is {tuple(target.shape)}"
                )
            target.copy_(tensors[name])


def train_only(base: Base, modules: Iterable[str]) -> None:
    """Freeze the base but for the modules of these paths and its head."""
    base.model.requires_grad_(False)
    for path in (*modules, *base.head):
        base.model.get_submodule(path).requires_grad_(True)
