"""peft: any other method of the installed peft, chosen by its `peft_type`, with its own settings.

Example: `strategy.type=LOKR strategy.settings.r=4`. The head is trained and saved if the method supports it
(`modules_to_save`); methods that need targets get `targets`. If peft raises an error, its message is reported. Learning
rate: three times LoRA's, only as the start of a search, since no single value suits forty methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
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

MANAGED = {
    "task_type": "the task decides it",
    "peft_type": "it is strategy.type",
    "modules_to_save": "the head is trained and saved anyway; list more modules to train fully in base.head",
    "target_modules": "it is strategy.targets",
    "inference_mode": "the command decides it",
}
"""Settings of peft that this strategy sets itself -> what to use instead."""
OF_A_FOLDER = ("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "exclude_modules")
"""Entries of an adapter's configuration that describe its folder, or that peft has already applied to the targets."""
UNSUPPORTED = {
    "POLY": "needs the id of a task with every row (task_ids)",
    "MULTITASK_PROMPT_TUNING": "needs the id of a task with every row (task_ids)",
    "ADALORA": "prunes after every step, which strategy=adalora does",
    "SHADOW": "changes whole blocks, not matrices",
}
"""Methods that do not work with our training loop, and the reason."""


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
        names = sorted({f.name for f in dataclasses.fields(_config_class(info.data["type"]))} - set(MANAGED))
        problems = [f"{name} cannot be set here: {MANAGED[name]}" for name in value if name in MANAGED]
        if problems := problems + [unknown("setting", n, names) for n in value if n not in names and n not in MANAGED]:
            raise ValueError("; ".join(problems))
        return value

    @property
    def title(self) -> str:
        return f"{self.name} ({self.type})"

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        return _can_merge(self.type)

    @property
    def why_not_merged(self) -> str:  # type: ignore[override]
        return f"peft cannot merge {self.type}; use --to adapter, or train strategy=lora, which merges"

    @property
    def exact_start(self) -> bool:  # type: ignore[override]
        return False  # depends on the method

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
            if "feedforward_modules" in names:
                values["feedforward_modules"] = _feedforward(base, paths, self.settings.get("feedforward_modules"))
            if "fan_in_fan_out" in names:
                values.setdefault("fan_in_fan_out", targets.are_transposed(base, paths))
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise UserError(f"strategy.settings: peft's {cls.__name__} reports: {error}") from error

    def continued(self, base: Base, folder: Path) -> nn.Module:
        self._refuse_unsupported("; use start.adapter=stack" if self.mergeable else "")
        return super().continued(base, folder)

    def _refuse_unsupported(self, advice: str) -> None:
        if self.type in UNSUPPORTED:
            raise UserError(f"strategy.type: peft's {self.type} {UNSUPPORTED[self.type]}{advice}")

    def wrap(self, base: Base) -> nn.Module:
        self._refuse_unsupported("; use another strategy.type")
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
            raise UserError(f"strategy: peft cannot apply {self.type} to {base.source}: {error}") from error
        lost = [path for path in base.head if not any(p.requires_grad for p in _of_head(model, path))]
        if lost:
            raise UserError(
                f"strategy: peft's {self.type} would leave the head untrained and unsaved: {', '.join(lost)}"
            )
        if self.type == "TRAINABLE_TOKENS" and not self.settings.get("token_indices"):
            raise UserError("strategy.settings.token_indices: TRAINABLE_TOKENS needs the ids of the tokens to train")
        adapted = [
            path.removeprefix("base_model.model.")
            for path, module in model.named_modules()
            if isinstance(module, BaseTunerLayer) and not type(module).__module__.endswith(".bnb")
        ]
        refuse_quantised(base, adapted)
        return model

    def make_room(self, base: Base) -> None:
        if all(field.name != "num_virtual_tokens" for field in dataclasses.fields(_config_class(self.type))):
            return
        config: Any = self.config(base)
        if (tokens := config.num_virtual_tokens) is None:
            raise UserError(f"strategy.settings.num_virtual_tokens: peft's {self.type} needs a number")
        (refuse_without_past if self.type in ("PREFIX_TUNING", "CARTRIDGE") else refuse_last_token)(base)
        take_positions(base, tokens, "strategy.settings.num_virtual_tokens")


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The strategy of a peft adapter, as in a recipe, from the content of its adapter_config.json."""
    prepare_libraries()
    imports.import_peft()
    fields = dataclasses.fields(_config_class(config["peft_type"]))
    usual = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields}
    own = [f.name for f in fields if f.name not in MANAGED and f.name not in OF_A_FOLDER]
    settings = {name: config[name] for name in own if config.get(name) not in (None, usual[name])}
    found: dict[str, Any] = {"name": "peft", "type": config["peft_type"], "settings": settings}
    if targets_of := config.get("target_modules"):
        whole = isinstance(targets_of, str)
        found["targets"] = [f"re:{targets_of}"] if whole else [f"*{t}" if "." in t else t for t in sorted(targets_of)]
    return found


def _feedforward(base: Base, paths: Sequence[str], given: Any) -> Any:
    """The targets whose inputs IA3 scales: those that the setting names, as paths, or those that reduce the width.

    peft compares them with the targets as texts, so an end of a path would be refused when the adapter is loaded.
    """
    key = "strategy.settings.feedforward_modules"
    if given is None:
        return [path for path in targets.resolve(base, ("down",), key) if path in {*paths}]
    if not isinstance(given, (list, tuple)):
        return given
    found = {name: [path for path in paths if path == name or path.endswith(f".{name}")] for name in given}
    if missing := [name for name, matching in found.items() if not matching]:
        raise UserError(f"{key}: {', '.join(map(str, missing))} is not among the targets: {', '.join(paths)}")
    return [path for path in paths if any(path in matching for matching in found.values())]


def _table(base: Base) -> list[str]:
    """The path of the input embedding, as a list."""
    table = base.model.get_input_embeddings()
    return [path for path, module in base.model.named_modules() if module is table]


def _config_class(kind: str) -> Any:
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]


def _can_merge(kind: str) -> bool:
    """Whether peft can merge the method: its layers override `merge`, and not only to raise NotImplementedError."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(kind))
    layer = getattr(tuner, "tuner_layer_cls", None)
    if layer is None:
        return False
    overrides = [c.merge for c in _derived(layer) if c.merge is not BaseTunerLayer.merge]
    return any("NotImplementedError" not in merge.__code__.co_names for merge in overrides)


def _derived(cls: type) -> list[Any]:
    return [cls, *(d for c in cls.__subclasses__() for d in _derived(c))]


def _of_head(model: nn.Module, path: str) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if f".{path}." in f".{name}"]
