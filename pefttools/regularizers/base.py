"""The interface of every regularizer, and shared helpers: finding pretrained weights, and norms of products.

A trained parameter is pretrained if it is in the base model outside of the head: `penalties.mark_pretrained` sets the
attribute `pretrained = True` on these parameters before a strategy wraps the model. A strategy that stores pretrained
weights in another form (U and V of low_rank) marks those. All other trained parameters are new: the head, and
parameters that a strategy adds (LoRA's factors, adapters, prompts).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from pefttools.errors import UserError
from pefttools.settings import Choice
from pefttools.strategies.base import trained

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.data.settings import FileSettings
    from pefttools.nn.low_rank import LowRankLinear

RowLosses: TypeAlias = "Callable[[FileSettings | None, int], Iterator[Tensor]]"
"""(data file, maximum number of rows) -> each row's loss, shape (), with its graph, from the model in eval mode.
Without a file, the rows are those of the run that training goes on from."""

Affected: TypeAlias = Literal[
    "parameters", "matrices", "pretrained", "pretrained matrices", "changed matrices", "factors"
]
"""Kinds of trained parameters: `parameters` are all, `pretrained` those of the base model. `changed matrices` are
pretrained matrices, or frozen ones with an added product of factors; `factors` are LoRA's A and B."""

ORIGINALS = {"modules_to_save": "original_module", "ln_tuning_layers": "base_layer"}
"""peft's name of trained copies -> its name of the original module, whose parameters still have their mark."""


class Regularizer(Choice, ABC):
    """The settings of a regularizer, which are frozen; copies of initial weights are in the penalty."""

    needs_start: ClassVar[bool] = False
    """Whether it needs the pretrained matrices that a strategy replaces (low_rank)."""
    shardable: ClassVar[bool] = False
    """Whether it works on weights that processes share (`train.shard`): it is a sum over single weights."""
    affects: ClassVar[Affected] = "parameters"
    """The parameters that it affects by default. A model without trained parameters of this kind raises an error."""

    @abstractmethod
    def bind(self, model: nn.Module, head: Sequence[str], row_losses: RowLosses) -> Penalty:
        """The penalty of a wrapped model that is on its device and not yet trained: its weights are the start.

        Args:
            head: full paths of the new modules, as the base names them.

        Raises:
            UserError: it would not affect any trained parameter.
        """

    def refusal(self, kind: str, model: nn.Module) -> UserError:
        """The error for a penalty that would have no effect."""
        names = list(trained(model))
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        return UserError(
            f"regularizers.{self.name}: has no effect: there is no {kind} among the {len(names)} trained"
            f" tensors ({shown or 'none'}); remove it, or choose another strategy"
        )


class Penalty(ABC):
    """A regularizer bound to a model."""

    @abstractmethod
    def value(self) -> Tensor | None:
        """The term to add to a step's mean loss, shape (), with its graph; None if the regularizer only changes
        weights."""

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """A context for all forward and backward passes of a step, inside of which the weights may differ.

        Gradients are cleared before it and clipped after it. At its end it corrects all gradients, so the backward pass
        of `value` must follow it.
        """
        yield


@dataclass(frozen=True)
class Weighted(Penalty):
    """weight · Σ terms."""

    weight: float
    terms: Sequence[Callable[[], Tensor]]

    def value(self) -> Tensor:
        import torch

        return self.weight * torch.stack([term() for term in self.terms]).sum()


def is_pretrained(model: nn.Module, name: str) -> bool:
    """Whether the named parameter is pretrained, by its own mark or by that of the original that peft copied."""
    if getattr(model.get_parameter(name), "pretrained", False):
        return True
    for copies, original in ORIGINALS.items():
        before, found, after = name.partition(f".{copies}.")
        if found:
            twin = f"{before}.{original}.{after.partition('.')[2]}"  # `after` begins with the adapter's name
            return getattr(model.get_parameter(twin), "pretrained", False)
    return False


def pretrained_and_new(
    model: nn.Module, head: Sequence[str], continued: bool = False
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The trained parameters by name: the pretrained ones, and the new ones of the head and the strategy.

    Args:
        continued: whether parameters of a trained model that training goes on from are pretrained, too, also its head.
    """
    pretrained, new = {}, {}
    for name, parameter in trained(model).items():
        in_head = any(f".{path}." in f".{name}" for path in head)
        before = continued and getattr(parameter, "trained_before", False)
        (pretrained if before or (not in_head and is_pretrained(model, name)) else new)[name] = parameter
    return pretrained, new


def known_rows(parameter: Tensor) -> int:
    """The number of first rows that were trained before; the others are those of classes that appeared later."""
    return getattr(parameter, "known_rows", len(parameter) if parameter.ndim else 1)


def low_rank_modules(model: nn.Module) -> dict[str, LowRankLinear]:
    """Path -> module of every trained low-rank projection U Vᵀ."""
    from pefttools.nn.low_rank import LowRankLinear

    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, LowRankLinear) and (module.U.requires_grad or module.V.requires_grad)
    }


def square(x: Tensor) -> Tensor:
    """‖x‖², shape ()."""
    return x.square().sum()


def square_from(x: Tensor, start: Tensor) -> Tensor:
    """‖x − start‖², shape ()."""
    return (x - start).square().sum()


def product_square(left: Tensor, right: Tensor) -> Tensor:
    """‖LRᵀ‖²_F = tr(LᵀL·RᵀR) for L (m, r) and R (n, r), in O((m+n)r²): the product (m, n) is never built."""
    return ((left.T @ left) * (right.T @ right)).sum()


def start_of(parameter: Tensor) -> Tensor:
    """A copy of the current weights."""
    return parameter.detach().clone()
