"""lora: W + (α/r)·BA in addition to frozen matrices (Hu et al. 2022, eq. 3), through peft.

A is initialised Kaiming-uniform and B to zero, so the start is exact; merging computes the product. By default all
matrices of the blocks are targets: with equal parameters, attention alone is worse ("LoRA Without Regret", 2025).
Learning rate: about ten times the best one of full fine-tuning (same source); 1e-3 was best on validation rows of
question types.

Settings turn it into rsLoRA (Kalajdzievski 2023: α/√r), DoRA (Liu et al. 2024: a trained magnitude per output row),
LoRA+ (Hayou et al. 2024: B has `lr_ratio` times A's learning rate), PiSSA (Meng et al. 2024: initialised from the top
singular vectors), OLoRA (Büyükakyüz 2024: from a QR decomposition), EVA (Paischer et al. 2024: A from the inputs'
singular vectors) and LoftQ (Li et al. 2024: from the error of quantising to NF4; it merges only into the dequantised
base).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pefttools import extras
from pefttools.bases import targets
from pefttools.bases.limits import refuse_rank_beyond
from pefttools.bases.targets import Targets
from pefttools.errors import UserError
from pefttools.nn.shape import Shape
from pefttools.strategies._peft_strategy import PeftStrategy
from pefttools.strategies.base import read

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn
    from transformers import PretrainedConfig

    from pefttools.bases.loading import Base

MIN_PASSES, MAX_ROUNDS = 200, 20
"""Limits of EVA's search: it fails after this many batches, or this many passes over all batches, whichever is more."""


class Lora(PeftStrategy):
    """Settings of lora: rank, scale, initialisation and targets of the low-rank matrices."""

    default_lr: ClassVar[float] = 1e-3
    lr_range: ClassVar[tuple[float, float]] = (1e-4, 5e-3)
    only_with: ClassVar[Any] = {"loftq_steps": ("strategy.init=loftq", lambda lora: lora.init == "loftq")}
    variants: ClassVar[Any] = {
        "dora": {"dora": True},
        "rslora": {"rslora": True, "alpha": 8.0},
        "lora_plus": {"lr_ratio": 16.0},
        "pissa": {"init": "pissa", "alpha": 8.0},
        "olora": {"init": "olora", "alpha": 8.0},
        "eva": {"init": "eva"},
        "loftq": {"init": "loftq", "alpha": 8.0},
    }

    rank: int = Field(default=8, ge=1)
    """r, the inner size of BA."""
    alpha: float = Field(default=16.0, gt=0)
    """α: BA is multiplied by α/r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of A."""
    targets: Targets = Field(default=("all",))
    """Which matrices of the blocks: `all`, roles (`query`, `down` …), or patterns on names and paths."""
    rslora: bool = Field(default=False)
    """rsLoRA: BA is multiplied by α/√r instead."""
    dora: bool = Field(default=False)
    """DoRA: train the magnitude of every output row separately from its direction."""
    lr_ratio: float = Field(default=1.0, gt=0)
    """LoRA+: the learning rate of B divided by that of A. The paper uses 16, and about half the usual rate for A."""
    init: Literal["default", "gaussian", "pissa", "olora", "eva", "loftq"] = Field(default="default")
    """Initialisation of A and B: A random and B zero (default, gaussian), from the weights (pissa, olora, loftq), or
    from the data (eva)."""
    eva_ratio: float = Field(default=1.0, ge=1)
    """EVA's ρ: above 1, ranks move between matrices by explained variance, up to ρ·r each. `plan` counts r each."""
    loftq_steps: int = Field(default=1, ge=1)
    """LoftQ's alternations between quantising and the singular value decomposition."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.init == "loftq" and (self.alpha != self.rank or self.rslora or self.dora):
            raise ValueError(
                f"init=loftq: peft ignores the scale there, so alpha must equal rank (now {self.alpha:g} and"
                f" {self.rank}), without rslora and dora"
            )
        if self.eva_ratio != 1 and self.init != "eva":
            raise ValueError("eva_ratio: needs init=eva")
        return self

    @property
    def exact_start(self) -> bool:  # type: ignore[override]
        return self.init != "loftq"

    @property
    def shardable(self) -> bool:  # type: ignore[override]
        return self.init not in ("eva", "loftq")  # they read weights and inputs layer by layer

    @property
    def rewrites_base(self) -> bool:  # type: ignore[override]
        return self.init in ("pissa", "olora", "loftq")

    @property
    def needed_modules(self) -> Mapping[str, str]:
        return {"bitsandbytes": "init=loftq"} if self.init == "loftq" else {}

    def start_lr(self) -> float:
        if self.lr_ratio > 1:
            return self.default_lr / 4  # B has lr_ratio times A's learning rate
        return self.default_lr

    def lr_scale(self, name: str) -> float:
        return self.lr_ratio if ".lora_B." in name else 1.0

    def config(self, base: Base) -> PeftConfig:
        from peft import EvaConfig, LoraConfig

        paths = targets.resolve(base, self.targets)
        refuse_rank_beyond(base, paths, math.ceil(self.rank * self.eva_ratio))
        transposed = targets.are_transposed(base, paths)
        if self.init == "olora" and transposed:
            raise UserError(
                f"strategy.init: {base.source} stores its matrices transposed, which peft's olora does not"
                " support; use pissa"
            )
        init_values: Any = {"default": True, "loftq": True}
        return LoraConfig(
            task_type=base.task_type,
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft's own annotation says int; it only multiplies
            lora_dropout=self.dropout,
            target_modules=paths,
            modules_to_save=list(base.head),
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights=init_values.get(self.init, self.init),
            eva_config=EvaConfig(rho=self.eva_ratio) if self.init == "eva" else None,
            fan_in_fan_out=transposed,
        )

    def wrap(self, base: Base) -> nn.Module:
        model = super().wrap(base)
        if self.init == "loftq":
            from pefttools.nn.loftq import start

            extras.require("strategy.init=loftq", self.needed_modules)
            start(model, self.rank, self.loftq_steps)
        return model

    @property
    def loads_by_peft(self) -> bool:
        return self.init != "loftq"  # the adapter lacks the quantised base, which `load` recomputes

    def load(self, base: Base, folder: Any) -> nn.Module:
        if self.loads_by_peft:
            return super().load(base, folder)
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        model: Any = self.wrap(base)
        tensors = read(folder)
        if mismatched := sorted(tensors.keys() ^ get_peft_model_state_dict(model).keys()):
            raise UserError(f"{folder}: the adapter is incomplete: {', '.join(mismatched[:5])}")
        set_peft_model_state_dict(model, tensors)
        return model

    def continued(self, base: Base, folder: Any) -> nn.Module:
        return super().continued(base, folder) if self.loads_by_peft else self.load(base, folder)

    def start(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        if self.init != "eva":
            return
        from peft import initialize_lora_eva_weights

        rows = list(batches)
        passes = iter(range(max(MIN_PASSES, MAX_ROUNDS * len(rows))))

        def forward(module: Any, batch: Mapping[str, Tensor]) -> Any:
            if next(passes, None) is None:  # peft has no limit of its own
                raise UserError(
                    f"strategy.init: eva finds no stable directions in {len(rows)} batches of training rows, which have"
                    " too little text for this rank; use more rows, a lower strategy.rank, or init=pissa"
                )
            return module(**batch)

        try:
            initialize_lora_eva_weights(model, rows, forward_fn=forward, show_progress_bar=False)
        except (IndexError, RuntimeError, ValueError) as error:
            # peft selects a batch's tokens from every matrix's input, which may have another shape
            raise UserError(
                "strategy.init: eva does not support this kind of model, whose matrices have inputs besides a batch's"
                " tokens (relative positions, choices, a decoder's own text); use pissa, which needs only the weights"
            ) from error

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        if (shape := Shape.of(config)) is None:
            return None
        sides = targets.sides(shape, self.targets)
        if sides is None:
            return None
        return shape.layers * sum(self.rank * (i + o) + (o if self.dora else 0) for i, o in sides)
