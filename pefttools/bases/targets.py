"""Target matrices of a method: all matrices of the blocks, roles or patterns, resolved to full module paths."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from pefttools.errors import UserError, nearest
from pefttools.nn import module_paths
from pefttools.nn.families import BERT, ROLES
from pefttools.nn.shape import Shape

if TYPE_CHECKING:
    from pefttools.bases.loading import Base


def _one_is_a_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Targets = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_one_is_a_list)]
"""`all` matrices of the blocks, roles (`query`, `value`, `down` …), or patterns: the last part of a module's path
(`q_lin`), a glob for the full path, or `re:` and a regular expression for it (peft's)."""

MaybeTargets = Annotated[tuple[str, ...], BeforeValidator(_one_is_a_list)]
"""Like `Targets`, but may be empty."""


def with_roles(base: Base, *roles: str, key: str | None = None) -> list[str]:
    """Full paths of the modules with these roles. Raises UserError when this kind of model's roles are not known.

    Args:
        key: the setting in which matrices can be named instead, where there is one.
    """
    try:
        return module_paths.with_roles(base.model, *roles)
    except ValueError as error:
        advice = f"name the matrices in {key}" if key else "use strategy=lora, which needs no roles"
        raise UserError(f"{key or 'strategy'}: {base.source}: {error}; {advice}") from error


def resolve(base: Base, patterns: tuple[str, ...], key: str = "strategy.targets") -> list[str]:
    """Full paths of the matrices, in the model's order.

    Raises:
        UserError: a pattern matches no matrix; the message lists the names with counts, and the most similar name.
    """
    linears = module_paths.linears(base.model)
    chosen: set[str] = set()
    problems = []
    for pattern in patterns:
        if pattern.startswith("re:"):
            found = [path for path in linears if re.fullmatch(pattern.removeprefix("re:"), path)]
        else:
            found = linears if pattern == "all" else module_paths.matching(linears, [pattern])[pattern]
        if not found and pattern in ROLES:
            found = with_roles(base, pattern, key=key)
        if not found:
            problems.append(f"{key}: {pattern!r} {_elsewhere(base, pattern) or _unknown(base, pattern, linears)}")
        chosen.update(found)
    if problems:
        raise UserError(*problems)
    return [path for path in linears if path in chosen]


def _elsewhere(base: Base, pattern: str) -> str | None:
    """The message for a pattern that matches modules outside the blocks; None where it matches none of them."""
    within = tuple(f"{path}." for path in module_paths.blocks(base.model))
    paths = [
        path
        for path, module in base.model.named_modules()
        if path and not path.startswith(within) and any(True for _ in module.parameters(recurse=False))
    ]
    found = module_paths.matching(paths, [pattern])[pattern]
    if not found:
        return None
    if set(found) <= set(base.head):
        return f"is part of the head ({', '.join(found)}), which every strategy trains completely; leave it out"
    named = ", ".join(found)
    return f"is outside the blocks ({named}); to train it completely besides the strategy, set base.head=[{named}]"


def _unknown(base: Base, pattern: str, linears: list[str]) -> str:
    names = [path.rpartition(".")[2] for path in linears]
    counts = {name: names.count(name) for name in names}
    match = nearest(pattern, [*counts, *ROLES])
    known = ", ".join(f"{name} ({count})" for name, count in counts.items())
    hint = f"; did you mean {match!r}?" if match else "."
    return f"matches no matrix of {base.source}{hint} Matrices: {known}; roles: all, {', '.join(ROLES)}"


def are_transposed(base: Base, paths: list[str]) -> bool:
    """Whether the matrices are stored as (in, out), like GPT-2's `Conv1D`, for peft's `fan_in_fan_out`."""
    import torch

    return bool(paths) and not isinstance(base.model.get_submodule(paths[0]), torch.nn.Linear)


def sides(shape: Shape, patterns: tuple[str, ...]) -> list[tuple[int, int]] | None:
    """(in, out) of every target in a block of a BERT-like encoder; None when a pattern is neither `all` nor a role."""
    known = {role: path for role, (path,) in BERT.roles.items()}
    if not set(patterns) <= {"all", *known}:
        return None
    chosen = known if "all" in patterns else {role: known[role] for role in patterns}
    return [shape.sides(path) for path in chosen.values()]
