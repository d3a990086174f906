"""How each tensor of an artifact M differs from what it should be, E = B + Δ: the base's B with the adapter's change Δ.

The share c = ⟨M − B, Δ⟩ / ⟨Δ, Δ⟩ tells how much of the change is in M: 1 is right, 0 is none of it, 2 is twice as much.
Rounding to the artifact's dtype is noise that hardly correlates with Δ, so c is exact even where rounding is larger
than the change. What remains after c, ‖M − B − cΔ‖, is compared with the rounding of the dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = {
    "float64": 1e-6, "float32": 1e-6, "float16": 4e-4, "bfloat16": 3e-3, "q8_0": 8e-3, "q6_k": 2.5e-2, "q5": 5e-2,
    "q4": 0.12, "q3": 0.25, "q2": 0.45,
}  # fmt: skip
"""Dtype -> the largest expected ‖rounded − exact‖ / ‖exact‖ of a weight matrix."""
SHARE = 0.02
"""Shares of the change that differ by less are equal."""

Kind = Literal["right", "lacking", "scaled", "other", "changed", "shape", "missing"]


@dataclass(frozen=True)
class Comparison:
    """How one tensor of the artifact differs from what it should be."""

    name: str
    kind: Kind
    """`lacking`: it is the base's tensor, without the adapter's change; `scaled`: `share` times the change is in it;
    `other`: it is neither the base's nor a multiple of the change; `changed`: it differs from the base although the
    adapter does not change it; `shape` and `missing`."""
    share: float | None = None
    """c, where the adapter changes the tensor."""
    error: float = 0.0
    """‖M − E‖ / ‖E‖."""
    adapted: bool = False
    """Whether the adapter changes the tensor."""
    dims: int = 0
    """The number of dimensions of the tensor."""
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """The artifact's and the right shape, where they differ."""


def compared(
    base: Mapping[str, Tensor], right: Mapping[str, Tensor], artifact: Mapping[str, Tensor], dtype: str
) -> Iterator[Comparison]:
    """Compare the artifact's tensors with the right ones.

    Args:
        base: the base's tensors; those that it lacks, such as a head, are absent.
        right: the base's tensors with the adapter's change.
        dtype: a key of `ROUNDING`, in which the artifact is stored.
    """
    for name, wanted in right.items():
        if name not in artifact:
            yield Comparison(name, "missing")
            continue
        found, before = artifact[name], base.get(name)
        if found.shape != wanted.shape:
            yield Comparison(name, "shape", shapes=(tuple(found.shape), tuple(wanted.shape)), dims=wanted.dim())
            continue
        if before is not None and before.shape != wanted.shape:  # tokens were added
            before = None
        yield _compared(name, before, wanted.float(), found.float(), ROUNDING[dtype])


def _compared(name: str, before: Tensor | None, wanted: Tensor, found: Tensor, rounding: float) -> Comparison:
    size = float(wanted.norm())
    error = float((found - wanted).norm()) / size if size else float(found.norm())
    if not math.isfinite(error):
        return Comparison(name, "other", None, math.inf, before is not None, wanted.dim())
    if before is None:
        return Comparison(name, "right" if error <= rounding else "other", None, error, True, wanted.dim())
    before = before.float()
    change = wanted - before
    length = float(change.norm())
    if not length:
        return Comparison(name, "right" if error <= rounding else "changed", None, error, False, wanted.dim())
    share = float(((found - before) * change).sum()) / length**2
    rest = float((found - before - share * change).norm()) / size if size else math.inf
    # the correlation of rounding with the change, by chance
    noise = 4 * rounding * size / length / math.sqrt(wanted.numel())
    kind = _kind(share, rest, rounding, SHARE + noise, length / size if size else math.inf)
    return Comparison(name, kind, share, error, True, wanted.dim())


def _kind(share: float, rest: float, rounding: float, slack: float, change: float) -> Kind:
    """The kind of difference.

    Args:
        rest: what a multiple of the change does not explain, relative to the tensor.
        change: the size of the change, relative to the tensor.
    """
    if rest > 1.5 * rounding + SHARE * change:
        return "other"
    if abs(share - 1) <= slack:
        return "right"
    return "lacking" if abs(share) <= slack else "scaled"
