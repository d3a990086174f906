"""The interface of every regularizer, and shared helpers: which weights are pretrained, norms of unbuilt products.

A trained parameter is pretrained when the base had it and its head does not hold it: `penalties.mark_pretrained`
sets the attribute `pretrained = True` on each such parameter before a strategy wraps the model, and a strategy that
holds pretrained weights in another form (the U and V of low_rank) marks those. Everything else that is trained is new:
the head, and what a strategy added (LoRA's factors, adapters, prompts).
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

RowLosses: TypeAlias = "Callable[[FileSettings, int], Iterator[Tensor]]"
"""(data file, at most so many rows) -> each row's loss, shape (), with its graph, from the model in eval mode."""

Touched: TypeAlias = Literal[
    "parameters", "matrices", "pretrained", "pretrained matrices", "changed matrices", "factors"
]
"""Kinds of what is trained: `parameters` are all, `pretrained` those that the base had. `changed matrices` are
pretrained ones, or frozen ones to which a product of factors is added; `factors` are LoRA's A and B."""

ORIGINALS = {"modules_to_save": "original_module", "ln_tuning_layers": "base_layer"}
"""Where peft keeps the original of a module it copied to train: copying a parameter loses its mark."""


class Regularizer(Choice, ABC):
    """Frozen settings; what it remembers of the start lives in the penalty."""

    needs_start: ClassVar[bool] = False
    """Whether it needs the pretrained matrices that a strategy replaces (low_rank)."""
    touches: ClassVar[Touched] = "parameters"
    """What it acts on by default. A model that trains nothing of that kind is refused."""

    @abstractmethod
    def bind(self, model: nn.Module, head: Sequence[str], row_losses: RowLosses) -> Penalty:
        """The penalty of a wrapped model that is on its device and not yet trained: its weights are the start.

        Args:
            head: full paths of the new modules, as the base names them.

        Raises:
            UserError: nothing that is trained would be touched.
        """

    def refusal(self, looked_for: str, model: nn.Module) -> UserError:
        """What to raise where a penalty would touch nothing."""
        names = list(trained(model))
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        return UserError(
            f"regularizers.{self.name}: has no effect: there is no {looked_for} among the {len(names)} trained"
            f" tensors ({shown or 'none'}); remove it, or choose another strategy"
        )


class Penalty(ABC):
    """A regularizer bound to a model."""

    @abstractmethod
    def value(self) -> Tensor | None:
        """What to add to a step's mean loss: shape (), with its graph; None where it only perturbs."""

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Around all forward and backward passes of a step: the weights may differ inside.

        The gradients are cleared before it and clipped after it; it corrects all that they hold at its end, so the
        backward pass of `value` comes after it.
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
    """Whether the base had the parameter of that name, by its own mark or that of the original peft copied."""
    if getattr(model.get_parameter(name), "pretrained", False):
        return True
    for copies, original in ORIGINALS.items():
        before, found, after = name.partition(f".{copies}.")
        if found:
            twin = f"{before}.{original}.{after.partition('.')[2]}"  # `after` begins with the adapter's name
            return getattr(model.get_parameter(twin), "pretrained", False)
    return False


def pretrained_and_new(
    model: nn.Module, head: Sequence[str]
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The trained parameters by name: those the base had, and the head with what the strategy added."""
    pretrained, new = {}, {}
    for name, parameter in trained(model).items():
        in_head = any(f".{path}." in f".{name}" for path in head)
        (pretrained if not in_head and is_pretrained(model, name) else new)[name] = parameter
    return pretrained, new


def low_rank_modules(model: nn.Module) -> dict[str, LowRankLinear]:
    """Path -> each low-rank projection U Vᵀ that is trained."""
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
    """A copy of the weights as they are now."""
    return parameter.detach().clone()
