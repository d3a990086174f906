"""A change of matrices as a LoRA: W − W⁰ = Σ σᵢuᵢvᵢᵀ, truncated to the best approximation (Eckart and Young 1936)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttools import imports
from pefttools.bases import targets
from pefttools.errors import UserError
from pefttools.nn import module_paths
from pefttools.strategies._peft_strategy import with_portable_name
from pefttools.training.run import Trained

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.bases.loading import Base

EXTRA = ".extra"
"""End of the path of the embeddings of added tokens (`nn.new_tokens`)."""
ZERO = 1e-7
"""Singular values below this share of the largest one are rounding errors."""


def as_lora(trained: Trained, size: int | float) -> tuple[nn.Module, dict[str, Any]]:
    """A newly loaded base with the trained head and a LoRA that approximates the trained change.

    Args:
        size: the rank of every matrix, or the share of its squared change that its LoRA must keep.

    Returns:
        The model, and facts for the manifest: smallest and largest rank, the share of the squared change in the LoRA,
        and the number of changed parameters that are not in it.

    Raises:
        UserError: no matrix of the blocks was changed.
    """
    imports.import_peft()
    from peft import LoraConfig, get_peft_model

    task, recipe = trained.task, trained.recipe
    whole = task.to_transformers(recipe.strategy.merge(trained.model))
    base = task.load(recipe.base)
    factors, energy = _factors(base.model, whole, size)
    if not factors:
        raise UserError(f"as_lora: {recipe.strategy.name} changed no matrix of the blocks; use --to merged")
    ranks = {path: len(right) for path, (_, right) in factors.items()}
    smallest, largest = min(ranks.values()), max(ranks.values())
    plain, tokens = _with_plain_table(base)
    head = [path for path in base.head if not path.endswith(EXTRA)]
    model: Any = get_peft_model(
        plain,
        LoraConfig(
            task_type=base.task_type,
            r=largest,
            lora_alpha=largest,
            rank_pattern=ranks,
            alpha_pattern=ranks,
            target_modules=list(factors),
            modules_to_save=[*head],  # peft adds to the list
            trainable_token_indices=tokens or None,
            fan_in_fan_out=targets.are_transposed(base, list(factors)),
        ),
    )
    with_portable_name(model, base)
    inner = model.get_base_model()
    _set_weights(inner, factors, head, whole)
    _set_tokens(inner, tokens, whole)
    apart = (*head, *tokens)
    facts = {"ranks": [smallest, largest], "energy": energy, "left_out": _others(whole, inner, factors, apart)}
    return model.eval(), {"as_lora": facts}


def _with_plain_table(base: Base) -> tuple[Any, dict[str, list[int]]]:
    """The base with all tokens in one table, and the table's path with the ids of the tokens that were added."""
    from pefttools.nn import new_tokens

    added = [path.removesuffix(EXTRA) for path in base.head if path.endswith(EXTRA)]
    tokens = {path: base.model.get_submodule(path).ids.tolist() for path in added}  # type: ignore[union-attr]
    return new_tokens.fold(base.model), tokens


def _set_tokens(inner: nn.Module, tokens: Mapping[str, list[int]], whole: Any) -> None:
    """Copy the trained embeddings of added tokens from the merged model."""
    import torch

    with torch.no_grad():
        for path, ids in tokens.items():
            table: Any = inner.get_submodule(path)
            rows = whole.get_input_embeddings().weight[ids]
            table.token_adapter.trainable_tokens_delta["default"].copy_(rows)


def _set_weights(
    inner: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]], head: Sequence[str], whole: nn.Module
) -> None:
    """Copy the factors into the LoRA layers, and the trained head from the merged model."""
    import torch

    with torch.no_grad():
        for path, (left, right) in factors.items():
            layer: Any = inner.get_submodule(path)
            layer.lora_B["default"].weight.copy_(left)
            layer.lora_A["default"].weight.copy_(right)
        for path in head:
            new: Any = inner.get_submodule(path)
            new.modules_to_save["default"].load_state_dict(whole.get_submodule(path).state_dict())


def _factors(before: nn.Module, after: nn.Module, size: int | float) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """Path -> factors (B, A) of every changed matrix; and the share of the squared changes that is in the factors."""
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    inside = total = 0.0
    for path in module_paths.linears(before):
        change = _matrix(after, path) - _matrix(before, path)
        if not change.any():
            continue
        left, right, share = decomposed(change, size)
        factors[path] = (left, right)
        total += float(change.square().sum())
        inside += float(change.square().sum()) * share
    return factors, inside / total if total else 0.0


def decomposed(change: Tensor, size: int | float) -> tuple[Tensor, Tensor, float]:
    """B (out, r) and A (r, in) whose product is nearest to a change (out, in), and the share of its squares in BA."""
    import torch

    u, s, vt = torch.linalg.svd(change.float(), full_matrices=False)
    squares = s.square()
    shares = squares.cumsum(0) / squares.sum()
    real = max(1, int((s > ZERO * s[0]).sum()))
    wanted = size if isinstance(size, int) else int((shares < size - ZERO).sum()) + 1
    rank = min(int(wanted), real)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank], float(shares[rank - 1])


def _matrix(model: nn.Module, path: str) -> Tensor:
    """The weight of a linear layer as (out, in); GPT-2 stores it transposed."""
    import torch

    module: Any = model.get_submodule(path)
    return module.weight.detach() if isinstance(module, torch.nn.Linear) else module.weight.detach().T


def _others(whole: nn.Module, inner: nn.Module, factors: dict[str, Any], head: Sequence[str]) -> int:
    """Number of changed parameters that are neither in the LoRA nor in the head: biases, norms, embeddings."""
    included = {f"{path}.weight" for path in factors}
    outside = tuple(f"{path}." for path in head)
    bare = {name.replace(".base_layer.", "."): p for name, p in inner.named_parameters()}
    return sum(
        parameter.numel()
        for name, parameter in whole.named_parameters()
        if name not in included and not name.startswith(outside) and name in bare and (parameter != bare[name]).any()
    )
