"""Perturbations δ of a batch's input embeddings: what fgm, pgd, freelb and smart share.

A pass with perturbed embeddings gets the tensor x + δ in place of the looked-up embeddings x. No weight changes, so
there is nothing to restore. δ is a constant of the gradient: the loss at x + δ is differentiated with respect to the
weights (those of the embeddings included, if they are trained), but not the way in which δ was found.

Norms and random numbers belong to one row, a sequence of tokens: they depend neither on padding nor on the other rows
of the batch, so micro-batches and processes give the same result as one batch. Each choice of a question counts as a
row, and so does each of several packed rows. δ is 0 at padding. Virtual tokens (prompts, prefixes) are not perturbed;
special tokens are.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pefttools.data.packing import POSITIONS
from pefttools.errors import UserError
from pefttools.objectives.base import Batch, BoundObjective, Context, Forward, Loss, Objective

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class PerturbingObjective(Objective, ABC):
    """An objective that perturbs the input embeddings."""

    reuses_features: ClassVar[bool] = False
    adds_gradients: ClassVar[bool] = True

    def bind(self, context: Context) -> Perturbing:
        from pefttools.nn import input_embeddings

        try:
            input_embeddings.table(context.model)
        except (AttributeError, NotImplementedError) as error:
            raise UserError(self.no_table(context)) from error
        return self.bound(context)

    def no_table(self, context: Context) -> str:
        """The message for a model whose embeddings cannot be replaced."""
        return (
            f"objectives.{self.name}: {type(context.base.model).__name__} does not look up `input_ids` in a table of"
            " embeddings, so they cannot be perturbed; remove the objective"
        )

    @abstractmethod
    def bound(self, context: Context) -> Perturbing:
        """The objective of one run."""


class Perturbing(BoundObjective):
    """A bound objective that perturbs the input embeddings."""

    def __init__(self, settings: PerturbingObjective, context: Context) -> None:
        import torch

        self.context, self.no_table = context, settings.no_table(context)
        self.seed = torch.initial_seed()
        """The recipe's seed: preparing a run sets it on every process, also before a run is resumed."""
        self.step = 0

    def start_step(self) -> None:
        self.step += 1

    def abandon_step(self) -> None:
        self.step -= 1

    def state(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]

    def passes(self, loss: Loss, forward: Forward, batch: Batch) -> Passes:
        """The passes over a micro-batch."""
        return Passes(self, loss, forward, batch)


class Passes:
    """Passes over one micro-batch."""

    def __init__(self, objective: Perturbing, loss: Loss, forward: Forward, batch: Batch) -> None:
        import torch

        from pefttools.nn import input_embeddings

        self.objective, self.loss, self.plain_forward, self.batch = objective, loss, forward, batch
        padding: Any = objective.context.base.tokenizer.pad_token_id
        self.rows = Rows.of(batch, padding)
        with torch.no_grad():
            self.embeddings = input_embeddings.of(objective.context.model, batch["input_ids"])
        self.random_states: Any = None

    def zero(self) -> Tensor:
        """No perturbation, in at least fp32; shape (…, tokens, width)."""
        import torch

        dtype = torch.promote_types(self.embeddings.dtype, torch.float32)
        return torch.zeros_like(self.embeddings, dtype=dtype)

    def random(self, draw: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        """A random perturbation, from the recipe's seed, the step and the row's tokens.

        Args:
            draw: fills a tensor of shape (tokens, width) in place.
        """
        return self.rows.random(self.zero(), (self.objective.seed, self.objective.step), draw)

    def value(self, delta: Tensor) -> Callable[[], Tensor]:
        """A function that computes the loss at x + `delta`, each time with the same dropout masks."""

        def run() -> Tensor:
            self._draw_as_before()
            return self.loss(self.perturbed(delta), self.batch)

        return run

    def _draw_as_before(self) -> None:
        """Set torch's random states to those of the first call."""
        import torch
        from torch.utils import checkpoint

        if self.random_states is None:
            self.random_states = torch.get_rng_state(), checkpoint.get_device_states(self.embeddings)
            return
        cpu, others = self.random_states
        torch.set_rng_state(cpu)
        checkpoint.set_device_states(*others, device_type=self.embeddings.device.type)

    def perturbed(self, delta: Tensor) -> Forward:
        """A forward pass that adds `delta` to the embeddings of the batch's `input_ids`.

        Raises:
            UserError: the model does not look them up.
        """
        from pefttools.nn import input_embeddings

        def run(batch: Batch, embeddings: Tensor | None = None) -> Any:
            model = self.objective.context.model
            plain = input_embeddings.of(model, batch["input_ids"]) if embeddings is None else embeddings
            try:
                return self.plain_forward(batch, plain + delta)
            except input_embeddings.NotLookedUp as error:
                raise UserError(self.objective.no_table) from error

        return run

    def ascended(self, delta: Tensor, gradient: Tensor | None, step: float, epsilon: float) -> Tensor:
        """Π(δ + step · g/‖g‖₂), where Π scales a row's perturbation down to the norm `epsilon`."""
        import torch

        assert gradient is not None, "the loss does not depend on the input embeddings"
        tiny = torch.finfo(delta.dtype).tiny
        with torch.no_grad():
            there = delta + step * self.rows.masked(gradient) / (self.rows.norm(gradient) + tiny)
            return there * (epsilon / (self.rows.norm(there) + tiny)).clamp(max=1.0)


@dataclass(frozen=True)
class Rows:
    """The rows of a batch: which positions are tokens, and to which row each of them belongs."""

    ids: Tensor
    """Token ids, (…, tokens); the dimensions before the last are lines of the batch, or choices of a question."""
    is_token: Tensor
    """False at padding, (…, tokens)."""
    packed: Tensor | None
    """Number of each position's row within its line, (…, tokens); None if each line is one row."""

    @classmethod
    def of(cls, batch: Batch, padding: int | None) -> Rows:
        """The rows of a batch, where padding is known by its id if there is no attention mask."""
        import torch

        ids = batch["input_ids"]
        if POSITIONS in batch:  # every row restarts at 0, and padding is a row that no target depends on
            return cls(ids, torch.ones_like(ids, dtype=torch.bool), (batch[POSITIONS] == 0).cumsum(-1) - 1)
        mask = batch.get("attention_mask", ids != padding)
        return cls(ids, mask.bool(), None)

    def masked(self, values: Tensor) -> Tensor:
        """`values`, (…, tokens, width), with 0 at padding."""
        return values * self.is_token[..., None]

    def norm(self, values: Tensor) -> Tensor:
        """The Euclidean norm of each row's values, (…, tokens, width) -> (…, tokens or 1, 1)."""
        return self._over_rows(self.masked(values).square().sum(-1), "sum").sqrt()[..., None]

    def largest(self, values: Tensor) -> Tensor:
        """The largest absolute value of each row, (…, tokens, width) -> (…, tokens or 1, 1)."""
        return self._over_rows(self.masked(values).abs().amax(-1), "amax")[..., None]

    def num_tokens(self) -> Tensor:
        """Number of tokens of each row, (…, tokens or 1, 1)."""
        return self._over_rows(self.is_token.float(), "sum")[..., None]

    def _over_rows(self, values: Tensor, reduce: str) -> Tensor:
        """Values of tokens, (…, tokens), reduced over each row: (…, 1), or (…, tokens) where rows are packed."""
        import torch

        if self.packed is None:
            return values.sum(-1, keepdim=True) if reduce == "sum" else values.amax(-1, keepdim=True)
        reduced = torch.zeros_like(values).scatter_reduce(-1, self.packed, values, reduce)
        return reduced.gather(-1, self.packed)

    def random(self, zero: Tensor, seeds: tuple[int, ...], draw: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        """A tensor like `zero`, (…, tokens, width), whose values at tokens are drawn row by row.

        A row's generator starts from the seeds and its token ids.
        """
        import torch
        from torch._subclasses.fake_tensor import FakeTensor

        if isinstance(zero, FakeTensor):  # it has no values, and neither have the ids
            return zero
        lines = torch.arange(self.is_token[..., 0].numel(), device=zero.device).view(*self.is_token.shape[:-1], 1)
        number = lines * self.ids.shape[-1] + (0 if self.packed is None else self.packed)
        _, counts = number.expand_as(self.ids)[self.is_token].unique_consecutive(return_counts=True)
        drawn = []
        for ids in self.ids[self.is_token].cpu().split(counts.tolist()):
            digest = hashlib.blake2b(repr((*seeds, ids.tolist())).encode(), digest_size=8).digest()
            generator = torch.Generator(zero.device).manual_seed(int.from_bytes(digest) >> 1)
            drawn.append(draw(zero.new_empty(len(ids), zero.shape[-1]), generator))
        return zero.index_put((self.is_token,), torch.cat(drawn))
