"""Shared code of peft's methods, which peft wraps, saves, loads and merges."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pefttools import imports
from pefttools.errors import UserError, damage_of
from pefttools.strategies.base import CONFIG, WEIGHTS, Strategy, read, refuse_quantised

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel

    from pefttools.bases.loading import Base


class PeftStrategy(Strategy, ABC):
    """A method of peft; peft wraps, saves, loads and merges it."""

    mergeable: ClassVar[bool] = True
    exact_start: ClassVar[bool] = True

    @abstractmethod
    def config(self, base: Base) -> PeftConfig:
        """peft's configuration, with `task_type` and the head as `modules_to_save`."""

    @property
    def loads_by_peft(self) -> bool:
        return True

    def make_room(self, base: Base) -> None:
        """Reserve the positions that the method needs; called before the base is wrapped or loaded."""

    def wrap(self, base: Base) -> nn.Module:
        imports.import_peft()
        from peft import get_peft_model

        self.make_room(base)
        if self.rewrites_base:
            refuse_quantised(base)
        with _without_spurious_warnings(), imports.without_bitsandbytes():
            return with_portable_name(get_peft_model(base.model, self.config(base)), base)

    def merge(self, model: Any) -> PreTrainedModel:
        return merge_peft(model)

    def save(self, model: Any, folder: Path) -> None:
        save_peft(model, folder)

    def load(self, base: Base, folder: Path) -> nn.Module:
        self.make_room(base)
        return with_portable_name(load_peft(base.model, folder), base)

    def continued(self, base: Base, folder: Path) -> nn.Module:
        self.make_room(base)
        with damage_of(folder / CONFIG):
            is_prompt = "num_virtual_tokens" in json.loads((folder / CONFIG).read_text("utf-8"))
        model = with_portable_name(load_peft(base.model, folder, trainable=not is_prompt), base)
        if is_prompt:  # peft loads virtual tokens for inference only, as plain embeddings
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("prompt_encoder." in name or ".modules_to_save." in name)
        refuse_unused(model, folder)
        return model


def refuse_unused(model: Any, folder: Path) -> None:
    """Raises UserError when the folder has tensors for which the model has no place; peft ignores them."""
    from peft import get_peft_model_state_dict

    if lost := sorted(read(folder).keys() - get_peft_model_state_dict(model).keys()):
        raise UserError(
            f"start.source: the adapter has {len(lost)} tensors for which this base has no place ({lost[0]} …); name"
            " the base that it was trained on in base.source"
        )


def load_peft(model: Any, folder: Path, trainable: bool = False) -> Any:
    """The model with the adapter in a folder of peft's format.

    Args:
        trainable: whether its weights will be trained further.

    Raises:
        UserError: the folder lacks a file, is damaged, or is incomplete.
    """
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise UserError(f"{folder}: is not an adapter, because it lacks {' and '.join(missing)}; export it again")
    imports.import_peft()
    from peft import PeftModel

    with _without_spurious_warnings(), imports.without_bitsandbytes(), damage_of(folder):
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        try:
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
        except (UserWarning, KeyError) as error:
            raise UserError(f"{folder}: the adapter is incomplete: {str(error)[:400]}") from error


def with_portable_name(model: Any, base: Base) -> Any:
    """Set the base's name in the model's peft configuration to its name on the hub, or to None."""
    kind, _, name = base.source.partition(":")
    name, _, revision = name.partition("@")
    for config in model.peft_config.values():
        config.base_model_name_or_path = name if kind == "hf" else None
        config.revision = revision or None if kind == "hf" else None
    return model


def save_peft(model: Any, folder: Path) -> None:
    """Write peft's folder, without its template of a model card and local paths; equal models give equal files."""
    (config,) = model.peft_config.values()
    is_local = config.base_model_name_or_path is None
    sets = {name: sorted(value) for name, value in vars(config).items() if isinstance(value, set)}
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    values = json.loads((folder / CONFIG).read_text("utf-8")) | sets  # peft writes sets in any order
    if is_local:  # peft writes the path that the base was loaded from
        values["base_model_name_or_path"] = None
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def merge_peft(model: Any) -> PreTrainedModel:
    """Merge a peft model into a plain one; `model` cannot be used afterwards.

    Raises:
        UserError: peft cannot merge this adapter; a damaged configuration may name a method that cannot be merged.
    """
    from peft.utils import ModulesToSaveWrapper

    # peft merges heads of some methods incorrectly: it loses LN tuning's, and IA3's must be a single matrix
    for path in [p for p, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)]:
        model.set_submodule(path, model.get_submodule(path).modules_to_save["default"])
    try:
        return model.merge_and_unload()
    except NotImplementedError as error:
        raise UserError(f"the adapter cannot be merged: {error}; restore its {CONFIG} from a copy") from error


@contextmanager
def _without_spurious_warnings() -> Iterator[None]:
    """Ignore peft's warnings about layers that its LN tuning is meant for, about EVA's memory on a GPU, and about tied
    tables, which its trainable tokens support."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type.*Norm")
        warnings.filterwarnings("ignore", message="lora with eva initialization")
        warnings.filterwarnings("ignore", message=".*no implementation exists to tie the adapters")
        warnings.filterwarnings("ignore", message=".*a tied layer is part of the adapter")  # before 0.21
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
