"""The frozen part of a model: its lowest blocks that training does not change, and the modules below them.

Autograd determines this part: in a forward pass with gradients enabled, a block whose output requires no gradient
depends on nothing that is trained, be it a weight, a tied table, a virtual token or a hook. The frozen part uses no
dropout (`in_eval_mode`). The output of its last block can be computed once (`forward_to_boundary`) and substituted
later (`substituted`). The model's own forward still builds masks and positions, so this works for any architecture.
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
"""peft's prefix of all parameter names."""


class _BoundaryReached(Exception):
    """Stops a forward pass at the boundary."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """The lowest blocks, which training does not change; may be empty."""

    blocks: tuple[nn.Module, ...] = ()
    below: tuple[nn.Module, ...] = ()
    """Other modules that run before the last of these blocks ends: embeddings, their norm and dropout."""
    forms: tuple[int, ...] = ()
    """The form of each block's output: 0 for a tensor, n for a tuple of a tensor and n-1 times None. Empty if a block's
    output has another form; then outputs cannot be substituted."""
    entry: nn.Module | None = None
    """The module whose output is the lowest block's input, if there is one."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> weight or buffer that the last block's output depends on."""

    @cached_property
    def digest(self) -> str:
        """The sha256 of the weights, names and number of blocks."""
        hasher = hashlib.sha256(f"{len(self.blocks)}".encode())
        for name, tensor in sorted(self.tensors.items()):
            hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return hasher.hexdigest()

    @contextmanager
    def in_eval_mode(self) -> Iterator[None]:
        """A context in which this part stays in evaluation mode, even if `train()` is called on the model."""
        parts = (*self.below, *self.blocks)
        for part in parts:
            part.eval()
            vars(part)["train"] = partial(_ignore_train, part)
        try:
            yield
        finally:
            for part in parts:
                del vars(part)["train"]

    def forward_to_boundary(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The output of the last frozen block, shape (rows, tokens, width); nothing above it is computed."""
        outputs: list[Tensor] = []

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)
            raise _BoundaryReached

        handle = self.blocks[-1].register_forward_hook(stop)
        try:
            model(**inputs)
        except _BoundaryReached:
            pass
        finally:
            handle.remove()
        return outputs[0]

    @contextmanager
    def substituted(self, hidden: Tensor, tokens: int) -> Iterator[None]:
        """A context in which the blocks and the modules below them compute nothing: each block returns `hidden`.

        Args:
            tokens: number of tokens per row for the code between the substituted modules.
        """
        assert self.forms, "the outputs of these blocks cannot be substituted"
        results: dict[nn.Module, Any] = {self.entry: hidden[:, :1].expand(-1, tokens, -1)} if self.entry else {}
        for block, form in zip(self.blocks, self.forms, strict=True):
            results[block] = (hidden, *[None] * (form - 1)) if form else hidden
        former = {module: vars(module).get("forward") for module in results}
        for module, result in results.items():
            vars(module)["forward"] = partial(_return_fixed, result)
        try:
            yield
        finally:
            for module, forward in former.items():
                if forward is None:
                    del vars(module)["forward"]
                else:
                    vars(module)["forward"] = forward


def frozen_part(model: nn.Module, inputs: Mapping[str, Any]) -> Frozen:
    """The frozen part of a model that is ready to train; empty for encoder-decoders.

    Args:
        inputs: a small batch for a forward pass in evaluation mode, which runs only if the lowest block is frozen.
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
    entered, left, entry = _traced(model, blocks, inputs)
    if [block for block, *_ in left] != blocks:  # a single list of blocks, each called once in order
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
        tensors=_tensors_of(model, own, whole=True) | _tensors_of(model, parents, whole=False),
    )


def _traced(
    model: nn.Module, blocks: list[nn.Module], inputs: Mapping[str, Any]
) -> tuple[list[nn.Module], list[tuple[nn.Module, Any, int]], nn.Module | None]:
    """Trace a forward pass: the called modules in order; for each block (block, output, number of modules called before
    its end); and the outermost module whose output is the lowest block's input.

    The pass runs in evaluation mode, so that nothing is random.
    """
    entered: list[nn.Module] = []
    left: list[tuple[nn.Module, Any, int]] = []
    last: list[tuple[nn.Module, Any]] = []
    entry: list[nn.Module] = []

    def enters(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = args[0] if args else kwargs.get("hidden_states")
        entry.extend(module for module, result in last if result is first)

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
    """The form of an output, see `Frozen.forms`; None unless it has one vector per input token."""
    first, *others = output if isinstance(output, tuple) else (output,)
    if not isinstance(first, Tensor) or first.shape[:-1] != shape or any(other is not None for other in others):
        return None
    return len(output) if isinstance(output, tuple) else 0


def _tensors_of(model: nn.Module, paths: set[str], whole: bool) -> dict[str, Tensor]:
    """The weights and buffers of the modules by the base model's names, with those of submodules if `whole`."""
    found: dict[str, Tensor] = {}
    for path in paths:
        module = model.get_submodule(path)
        for collection in (module.named_parameters, module.named_buffers):
            found |= {name.removeprefix(WRAPPED): t for name, t in collection(path, recurse=whole)}
    return found


def _parents(path: str) -> set[str]:
    """The paths of a module's parents, including the model itself (the empty path)."""
    parts = path.split(".")
    return {".".join(parts[:i]) for i in range(len(parts))}


def _takes_gradient(output: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(output))


def _ignore_train(module: nn.Module, mode: bool = True) -> nn.Module:
    del mode
    return module


def _return_fixed(result: Any, *_: Any, **__: Any) -> Any:
    return result
