"""Which matrices a method changes: all of the blocks, by role, or by pattern; resolved to full paths at once."""

from __future__ import annotations

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
"""`all` matrices of the blocks, roles (`query`, `value`, `down` …), or patterns: a module's last name (`q_lin`) or a
glob on its full path."""

MaybeTargets = Annotated[tuple[str, ...], BeforeValidator(_one_is_a_list)]
"""The same, or none."""


def playing(base: Base, *roles: str, key: str | None = None) -> list[str]:
    """Full paths of the modules of these roles. Raises UserError when the roles of this kind of model are not known.

    Args:
        key: the setting in which matrices can be named instead, where there is one.
    """
    try:
        return module_paths.playing(base.model, *roles)
    except ValueError as error:
        cure = f"name the matrices in {key}" if key else "use strategy=lora, which needs no roles"
        raise UserError(f"{key or 'strategy'}: {base.source}: {error}; {cure}") from error


def resolve(base: Base, patterns: tuple[str, ...], key: str = "strategy.targets") -> list[str]:
    """Full paths of the matrices, in the model's order.

    Raises:
        UserError: a pattern matches none; the message lists the names, their counts, and the nearest one.
    """
    linears = module_paths.linears(base.model)
    chosen: set[str] = set()
    problems = []
    for pattern in patterns:
        found = linears if pattern == "all" else module_paths.matching(linears, [pattern])[pattern]
        if not found and pattern in ROLES:
            found = playing(base, pattern, key=key)
        if not found:
            problems.append(f"{key}: {pattern!r} {_elsewhere(base, pattern) or _unknown(base, pattern, linears)}")
        chosen.update(found)
    if problems:
        raise UserError(*problems)
    return [path for path in linears if path in chosen]


def _elsewhere(base: Base, pattern: str) -> str | None:
    """What a pattern is that names modules outside the blocks, and what trains them; None where it names none."""
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
        return f"is part of the head ({', '.join(found)}), which every strategy trains whole; leave it out"
    named = ", ".join(found)
    return f"is outside the blocks ({named}); base.head=[{named}] trains it whole besides the strategy"


def _unknown(base: Base, pattern: str, linears: list[str]) -> str:
    names = [path.rpartition(".")[2] for path in linears]
    counts = {name: names.count(name) for name in names}
    match = nearest(pattern, [*counts, *ROLES])
    known = ", ".join(f"{name} ({count})" for name, count in counts.items())
    hint = f"; did you mean {match!r}?" if match else "."
    return f"matches no matrix of {base.source}{hint} There are: {known}; or by role: all, {', '.join(ROLES)}"


def are_transposed(base: Base, paths: list[str]) -> bool:
    """Whether the matrices are stored (in, out), as GPT-2's `Conv1D` does; peft wants to know."""
    import torch

    return bool(paths) and not isinstance(base.model.get_submodule(paths[0]), torch.nn.Linear)


def sides(shape: Shape, patterns: tuple[str, ...]) -> list[tuple[int, int]] | None:
    """(in, out) of every target in a block of a BERT-like encoder; None when a pattern is neither `all` nor a role."""
    known = {role: path for role, (path,) in BERT.roles.items()}
    if not set(patterns) <= {"all", *known}:
        return None
    chosen = known if "all" in patterns else {role: known[role] for role in patterns}
    return [shape.sides(path) for path in chosen.values()]
