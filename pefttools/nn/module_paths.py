"""Find modules by position, role or pattern: in the blocks, above them, below them.

Matching by suffix is ambiguous (`output.dense` also matches `attention.output.dense`, `all-linear` includes the
pooler), so all functions here return full paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pefttools.nn.families import FAMILIES

if TYPE_CHECKING:
    from torch import nn


def blocks(model: nn.Module) -> list[str]:
    """Paths of the transformer's blocks, lowest first; for encoder-decoders the encoder's, then the decoder's.

    For families not in `FAMILIES`: the members of the longest list of modules of one class.

    Raises:
        ValueError: there is no such list.
    """
    import torch

    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len({type(m) for m in module}) == 1
        and any(True for _ in module.parameters())
    }
    if not lists:
        raise ValueError(
            f"{type(model).__name__} has no list of blocks; its children are {[n for n, _ in model.named_children()]}"
        )
    family = FAMILIES.get(_kind(model))
    ends = tuple(f".{stack}" for stack in family.stacks) if family else ()
    stacks = [path for path in lists if f".{path}".endswith(ends)] if ends else []
    return [
        f"{path}.{i}" for path in stacks or [max(lists, key=lambda p: len(lists[p]))] for i in range(len(lists[path]))
    ]


def with_roles(model: nn.Module, *roles: str) -> list[str]:
    """Full paths of the modules that play any of these roles (`families.ROLES`), each once, in the model's order.

    Raises:
        ValueError: the model's family is not in `FAMILIES`; the message lists a block's modules and the known families.
    """
    family = FAMILIES.get(_kind(model))
    within = blocks(model)
    if family is None:
        found = [path.removeprefix(f"{within[-1]}.") for path in linears(model) if path.startswith(f"{within[-1]}.")]
        raise ValueError(
            f"the roles in a {_kind(model)!r} model ({type(model).__name__}) are unknown; its blocks contain"
            f" {', '.join(found)}. Known model types: {', '.join(sorted(FAMILIES))}"
        )
    known = {path for path, _ in model.named_modules()}
    paths = [f"{block}.{part}" for block in within for role in roles for part in family.roles.get(role, ())]
    chosen = {path for path in paths if path in known}
    return [path for path, _ in model.named_modules() if path in chosen]


def norms(model: nn.Module) -> list[str]:
    """Full paths of every normalisation layer (LayerNorm, RMSNorm and the families' own), by the class's name."""
    return [path for path, m in model.named_modules() if type(m).__name__.endswith("Norm") and not [*m.children()]]


def _kind(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def above_blocks(model: nn.Module) -> set[str]:
    """Paths of the modules that come after the last block: norms, poolers, heads."""
    last = blocks(model)[-1]
    names = [path for path, _ in model.named_modules()]
    end = max(i for i, path in enumerate(names) if path == last or path.startswith(last + "."))
    return set(names[end + 1 :]) - below_blocks(model)


def below_blocks(model: nn.Module) -> set[str]:
    """Paths of the modules that feed the blocks: what comes before them, and embeddings and their norms anywhere."""
    import torch

    paths = [path for path, _ in model.named_modules()]
    within = blocks(model)
    family = FAMILIES.get(_kind(model))
    ends = tuple(f".{end}" for end in family.below) if family else ()
    first = {path for path in paths[: paths.index(within[0])] if path}
    tables = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    listed = {path for path in paths if ends and f".{path}".endswith(ends)}
    inside = tuple(f"{path}." for path in within)
    return {path for path in first | tables | listed if not path.startswith(inside)}


def linears(model: nn.Module) -> list[str]:
    """Full paths of every matrix inside the blocks (`nn.Linear`, and the `Conv1D` of GPT-2)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    inside = tuple(f"{path}." for path in blocks(model))
    return [p for p, m in model.named_modules() if p.startswith(inside) and isinstance(m, (torch.nn.Linear, Conv1D))]


def matching(paths: Sequence[str], patterns: Iterable[str]) -> dict[str, list[str]]:
    """Pattern -> the paths it matches: as a glob on the full path, or as the last name in it.

    `query` is the last name; `*.attention.output.dense` and `bert.encoder.layer.[45].*` are globs.
    """
    return {
        pattern: [p for p in paths if fnmatchcase(p, pattern) or p.rpartition(".")[2] == pattern]
        for pattern in patterns
    }


def dropout_settings(config: Any) -> list[str]:
    """Names of the configuration's dropout probabilities (`hidden_dropout_prob`, `resid_pdrop`, …)."""
    words = ("dropout", "pdrop")
    return [
        name
        for name, value in config.to_dict().items()
        if any(w in name for w in words) and isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
