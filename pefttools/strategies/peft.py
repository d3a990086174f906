"""peft: any other method of the installed peft, by its `peft_type` and with its own settings.

`strategy.type=LOKR strategy.settings.r=4`. The head is trained and saved where the method can
(`modules_to_save`); methods that need targets get `targets`. If peft refuses something, its own message is reported.
Learning rate: three times LoRA's, only a start for a search; no single value suits forty methods.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from pefttools import imports
from pefttools.bases import targets
from pefttools.bases.limits import refuse_last_token, refuse_without_past, take_positions
from pefttools.bases.loading import prepare_libraries
from pefttools.bases.targets import Targets
from pefttools.errors import UserError, unknown
from pefttools.strategies._peft_strategy import PeftStrategy
from pefttools.strategies.base import refuse_quantised

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

    from pefttools.bases.loading import Base

OURS = {
    "task_type": "the task decides it",
    "peft_type": "it is strategy.type",
    "modules_to_save": "the head is trained and saved as it is; base.head names more modules to train whole",
    "target_modules": "it is strategy.targets",
    "inference_mode": "the command decides it",
}
"""Settings of peft's that we set, and what to use instead."""
NOT_HERE = {
    "POLY": "wants a task's number with every row (task_ids)",
    "MULTITASK_PROMPT_TUNING": "wants a task's number with every row (task_ids)",
    "ADALORA": "prunes after every step, which strategy=adalora does",
    "SHADOW": "changes whole blocks, not matrices",
}
"""Methods whose models cannot be called as ours are, and why."""


class Peft(PeftStrategy):
    """Settings of peft: which method, the method's own settings, and which matrices it changes."""

    default_lr: ClassVar[float] = 3e-3
    lr_range: ClassVar[tuple[float, float]] = (1e-4, 3e-2)

    type: str = Field(default="LOHA")
    """peft's name of the method: BOFT, C3A, FOURIERFT, HRA, LOHA, LOKR, OFT, VBLORA, …"""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The method's own settings, by the names of its peft configuration."""
    targets: Targets = Field(default=("all",))
    """Which matrices of the blocks: `all`, roles (`query`, `down` …), or patterns on names and paths."""

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        prepare_libraries()
        imports.import_peft()
        from peft import PeftType

        names = [kind.value for kind in PeftType]
        if value.upper() not in names:
            raise ValueError(unknown("peft_type", value, names))
        return value.upper()

    @field_validator("settings")
    @classmethod
    def _known_settings(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        if "type" not in info.data:
            return value
        names = sorted({f.name for f in dataclasses.fields(_config_class(info.data["type"]))} - set(OURS))
        problems = [f"{name} cannot be set here: {OURS[name]}" for name in value if name in OURS]
        if problems := problems + [unknown("setting", n, names) for n in value if n not in names and n not in OURS]:
            raise ValueError("; ".join(problems))
        return value

    @property
    def title(self) -> str:
        return f"{self.name} ({self.type})"

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        return _folds(self.type)

    @property
    def why_not_merged(self) -> str:  # type: ignore[override]
        return f"peft cannot merge {self.type}; use --to adapter, or train strategy=lora, which merges"

    @property
    def exact_start(self) -> bool:  # type: ignore[override]
        return False  # it is the method's to say

    @model_validator(mode="after")
    def _has_tokens(self) -> Self:
        if self.type == "TRAINABLE_TOKENS" and self.targets != ("all",):
            raise ValueError("targets: TRAINABLE_TOKENS trains rows of the embedding table, not matrices of blocks")
        return self

    def config(self, base: Base) -> PeftConfig:
        cls = _config_class(self.type)
        names = {f.name for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {"task_type": base.task_type, **self.settings}
        if "modules_to_save" in names:
            values["modules_to_save"] = list(base.head)
        if "target_modules" in names:
            paths = _table(base) if self.type == "TRAINABLE_TOKENS" else targets.resolve(base, self.targets)
            values["target_modules"] = paths
            if "fan_in_fan_out" in names:
                values.setdefault("fan_in_fan_out", targets.are_transposed(base, paths))
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise UserError(f"strategy.settings: peft's {cls.__name__} refuses: {error}") from error

    def wrap(self, base: Base) -> nn.Module:
        if self.type in NOT_HERE:
            raise UserError(f"strategy.type: peft's {self.type} {NOT_HERE[self.type]}; it cannot be used here")
        if (start := self.settings.get("init_lora_weights")) in ("eva", "loftq"):
            raise UserError(
                f"strategy.settings.init_lora_weights: {start} is not available here;"
                f" use strategy=lora strategy.init={start}"
            )
        from peft.tuners.tuners_utils import BaseTunerLayer

        try:
            model = super().wrap(base)
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, NotImplementedError, AttributeError, AssertionError) as error:
            raise UserError(f"strategy: peft refuses {self.type} on {base.source}: {error}") from error
        lost = [path for path in base.head if not any(p.requires_grad for p in _of_head(model, path))]
        if lost:
            raise UserError(
                f"strategy: peft's {self.type} would leave the head untrained and unsaved: {', '.join(lost)}"
            )
        if self.type == "TRAINABLE_TOKENS" and not self.settings.get("token_indices"):
            raise UserError(
                "strategy.settings.token_indices: TRAINABLE_TOKENS takes the numbers of the tokens to train"
            )
        strange = [
            path.removeprefix("base_model.model.")
            for path, module in model.named_modules()
            if isinstance(module, BaseTunerLayer) and not type(module).__module__.endswith(".bnb")
        ]
        refuse_quantised(base, strange)
        return model

    def make_room(self, base: Base) -> None:
        config: Any = self.config(base)
        if not hasattr(config, "num_virtual_tokens"):
            return
        if (tokens := config.num_virtual_tokens) is None:
            raise UserError(f"strategy.settings.num_virtual_tokens: peft's {self.type} needs a number")
        (refuse_without_past if self.type in ("PREFIX_TUNING", "CARTRIDGE") else refuse_last_token)(base)
        take_positions(base, tokens, "strategy.settings.num_virtual_tokens")


def _table(base: Base) -> list[str]:
    """The path of the table that tokens are looked up in."""
    table = base.model.get_input_embeddings()
    return [path for path, module in base.model.named_modules() if module is table]


def _config_class(kind: str) -> Any:
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]


def _folds(kind: str) -> bool:
    """Whether peft merges the method: its tuner's layers have a `merge` of their own that does not just refuse."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(kind))
    layer = getattr(tuner, "tuner_layer_cls", None)
    if layer is None:
        return False
    own = [c.merge for c in _derived(layer) if c.merge is not BaseTunerLayer.merge]
    return any("NotImplementedError" not in merge.__code__.co_names for merge in own)


def _derived(cls: type) -> list[Any]:
    return [cls, *(d for c in cls.__subclasses__() for d in _derived(c))]


def _of_head(model: nn.Module, path: str) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if f".{path}." in f".{name}"]
