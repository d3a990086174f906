"""The part of a model that training never changes: its lowest blocks, and what runs below them.

Autograd decides which: in one forward pass with gradients on, a block whose output needs none depends on nothing that
is trained, be it a weight, a tied table, a virtual token or a hook. That part draws no dropout (`in_eval_mode`). What
its last block returns can be computed once (`forward_to_boundary`) and put in its place later (`substituted`). The
model's own forward still builds masks and positions, so nothing here depends on an architecture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pefttools.nn import module_paths

WRAPPED = "base_model.model."
"""What peft puts before the name of every weight."""


class _Reached(Exception):
    """Ends a forward pass at the boundary."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """The lowest blocks that training never changes; none where there are none."""

    blocks: tuple[nn.Module, ...] = ()
    below: tuple[nn.Module, ...] = ()
    """What else runs before the last of them is done: embeddings, their norm and dropout."""
    forms: tuple[int, ...] = ()
    """How each block answers: 0 with a tensor, n with a tuple of it and n-1 times None. Empty where one answers
    otherwise; then nothing can be put in its place."""
    entry: nn.Module | None = None
    """What makes the vectors that enter the lowest block, where a module does."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> weight or buffer, for all that the last block's output depends on."""

    @cached_property
    def digest(self) -> str:
        """sha256 of the weights, names and number of blocks."""
        seen = hashlib.sha256(f"{len(self.blocks)}".encode())
        for name, tensor in sorted(self.tensors.items()):
            seen.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            seen.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return seen.hexdigest()

    @contextmanager
    def in_eval_mode(self) -> Iterator[None]:
        """Inside, this part is in evaluation mode, whatever `train()` says to the model."""
        parts = (*self.below, *self.blocks)
        for part in parts:
            part.eval()
            vars(part)["train"] = partial(_as_it_is, part)
        try:
            yield
        finally:
            for part in parts:
                del vars(part)["train"]

    def forward_to_boundary(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """What the last of the blocks gives, shape (rows, tokens, width); nothing above it is computed."""
        caught: list[Tensor] = []

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            caught.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        handle = self.blocks[-1].register_forward_hook(stop)
        try:
            model(**inputs)
        except _Reached:
            pass
        finally:
            handle.remove()
        return caught[0]

    @contextmanager
    def substituted(self, hidden: Tensor, tokens: int) -> Iterator[None]:
        """Inside, the blocks compute nothing: each answers `hidden`, whatever it is asked; what is below neither.

        Args:
            tokens: how many a row is taken to have by what lies between.
        """
        assert self.forms, "these blocks cannot be stood in for"
        answers: dict[nn.Module, Any] = {self.entry: hidden[:, :1].expand(-1, tokens, -1)} if self.entry else {}
        for block, form in zip(self.blocks, self.forms, strict=True):
            answers[block] = (hidden, *[None] * (form - 1)) if form else hidden
        former = {module: vars(module).get("forward") for module in answers}
        for module, answer in answers.items():
            vars(module)["forward"] = partial(_answer, answer)
        try:
            yield
        finally:
            for module, forward in former.items():
                if forward is None:
                    del vars(module)["forward"]
                else:
                    vars(module)["forward"] = forward


def frozen_part(model: nn.Module, inputs: Mapping[str, Any]) -> Frozen:
    """The frozen part of a model that is ready to train; an encoder-decoder is taken to have none.

    Args:
        inputs: a small batch to go through the model, in evaluation mode, if its lowest block holds nothing trained.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return Frozen()
    try:
        paths = module_paths.blocks(model)
    except ValueError:
        return Frozen()
    blocks = [model.get_submodule(path) for path in paths]
    if any(p.requires_grad for p in blocks[0].parameters()):
        return Frozen()
    entered, left, entry = _watched(model, blocks, inputs)
    if [block for block, *_ in left] != blocks:  # one list of blocks, each asked once, from the lowest up
        return Frozen()
    number = next((i for i, (_, output, _) in enumerate(left) if _takes_gradient(output)), len(blocks))
    if not number:
        return Frozen()
    parents = _parents(paths[0])
    inside = tuple(f"{path}." for path in paths)
    before = set(entered[: left[number - 1][2]])
    below = {
        path: module
        for path, module in model.named_modules()
        if module in before and path not in parents and not f"{path}.".startswith(inside)
    }
    forms = [_form(output, inputs["input_ids"].shape) for _, output, _ in left[:number]]
    chosen = [form for form in forms if form is not None]
    own = {*below, *paths[:number], *module_paths.below_blocks(model)} - parents
    return Frozen(
        blocks=tuple(blocks[:number]),
        below=tuple(below.values()),
        forms=tuple(chosen) if len(chosen) == number else (),
        entry=entry if entry in below.values() else None,
        tensors=_held_by(model, own, whole=True) | _held_by(model, parents, whole=False),
    )


def _watched(
    model: nn.Module, blocks: list[nn.Module], inputs: Mapping[str, Any]
) -> tuple[list[nn.Module], list[tuple[nn.Module, Any, int]], nn.Module | None]:
    """A forward pass: the modules entered, in order; every block left, its output, how many were entered by then; and
    the outermost module that answered with what the lowest block was given.

    In evaluation mode, so that nothing random is drawn.
    """
    entered: list[nn.Module] = []
    left: list[tuple[nn.Module, Any, int]] = []
    last: list[tuple[nn.Module, Any]] = []
    entry: list[nn.Module] = []

    def enters(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = given[0] if given else named.get("hidden_states")
        entry.extend(module for module, answer in last if answer is first)

    handles = [m.register_forward_pre_hook(lambda module, _: entered.append(module)) for m in model.modules()]
    handles.append(blocks[0].register_forward_pre_hook(enters, with_kwargs=True))
    handles += [m.register_forward_hook(lambda m, _, out: last.append((m, out))) for m in model.modules()]
    handles += [
        m.register_forward_hook(lambda module, _, output: left.append((module, output, len(entered)))) for m in blocks
    ]
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            model(**inputs)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return entered, left, entry[-1] if entry else None


def _form(output: Any, shape: tuple[int, ...]) -> int | None:
    """See `Frozen.forms`; None for any other answer than one vector a token of the input."""
    first, *others = output if isinstance(output, tuple) else (output,)
    if not isinstance(first, Tensor) or first.shape[:-1] != shape or any(other is not None for other in others):
        return None
    return len(output) if isinstance(output, tuple) else 0


def _held_by(model: nn.Module, paths: set[str], whole: bool) -> dict[str, Tensor]:
    """The weights and buffers of these modules, with what is inside them if `whole`, as the base names them."""
    found: dict[str, Tensor] = {}
    for path in paths:
        module = model.get_submodule(path)
        for named in (module.named_parameters, module.named_buffers):
            found |= {name.removeprefix(WRAPPED): t for name, t in named(path, recurse=whole)}
    return found


def _parents(path: str) -> set[str]:
    """The paths of the modules around one, the model's own (empty) among them."""
    parts = path.split(".")
    return {".".join(parts[:i]) for i in range(len(parts))}


def _takes_gradient(output: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(output))


def _as_it_is(module: nn.Module, mode: bool = True) -> nn.Module:
    del mode
    return module


def _answer(answer: Any, *_: Any, **__: Any) -> Any:
    return answer
