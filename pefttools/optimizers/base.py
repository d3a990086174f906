"""What every optimizer does: build a `torch.optim.Optimizer` over groups of parameters.

The loop sets the learning rate of every group before each step, and weight decay is a value of the group: neither is a
setting of an optimizer here. Libraries are imported in `build`, so that only the chosen one is loaded.
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
"""How much of a running average is its own past."""
Group: TypeAlias = "dict[str, Any]"
"""`params`, `weight_decay`, `lr_scale` and `lr`, which is the learning rate multiplied with `lr_scale`."""


class Optimizer(Choice, ABC):
    """Frozen settings; the running averages live in what it builds."""

    separates_hidden_matrices: ClassVar[bool] = False
    """Whether groups also have `hidden`: True for matrices inside the blocks, False for everything else."""
    adamw_lr_ratio: ClassVar[float] = 1.0
    """Its usual learning rate divided by that of adamw, for which the strategies' defaults are made."""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings that take another path through the code, by what they are: the contract tests try them too."""

    @abstractmethod
    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        """The optimizer of these groups, which it keeps in `param_groups` with all they hold.

        Its state must be whole in `state_dict`: a resumed run goes on bit for bit.

        Raises:
            UserError: it cannot train any of them.
        """


class AdamOptimizer(Optimizer, ABC):
    """The settings of Adam, which several implementations share."""

    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """β₁, β₂: of the running averages of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """ε: what keeps the division by √v̂ finite."""
