"""The interface of every optimizer, which builds a `torch.optim.Optimizer` over groups of parameters.

The training loop sets the learning rate of every group before each step, and weight decay is a value of the group; so
neither is a setting of an optimizer. Libraries are imported in `build`, so that only the chosen one is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from pydantic import Field

from pefttools.settings import Choice

if TYPE_CHECKING:
    import torch

Rate: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
"""Decay rate of a running average."""
Group: TypeAlias = "dict[str, Any]"
"""`params`, `weight_decay`, `lr_scale` and `lr`, which is the learning rate multiplied by `lr_scale`."""


class Optimizer(Choice, ABC):
    """The settings of an optimizer, which are frozen; the running averages are in the built optimizer."""

    separates_hidden_matrices: ClassVar[bool] = False
    """Whether groups also have `hidden`: True for matrices inside the blocks, False for everything else."""
    shardable: ClassVar[bool] = False
    """Whether it can update weights that processes share (`train.shard`): every weight by itself, with torch's own
    operations."""
    adamw_lr_ratio: ClassVar[float] = 1.0
    """Its usual learning rate divided by that of adamw; the strategies' default learning rates are for adamw."""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Name -> settings that use another code path; the contract tests run them, too."""

    @abstractmethod
    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        """The optimizer of the groups, with the groups and all their values in `param_groups`.

        `state_dict` must contain its whole state, so that a resumed run continues bit for bit.

        Raises:
            UserError: it cannot train any of the groups.
        """


class AdamOptimizer(Optimizer, ABC):
    """The settings of Adam, which several implementations share."""

    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """β₁ and β₂ of the running averages of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """ε, which keeps the division by √v̂ finite."""
