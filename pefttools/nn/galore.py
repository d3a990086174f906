"""GaLore: AdamW on gradients projected to a low rank (Zhao et al. 2024, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.adamw import adamw


class GaLoreAdamW(AdamW):
    """AdamW; in groups with a `rank`, whose parameters are 2-D, moments are in the projected space.

    For W (m, n) and its gradient G: P = the top `rank` singular vectors of G on its shorter side, recomputed every
    `every` steps; R = PᵀG (or GP); W ← W - η·`scale`·P·Adam(R). Weight decay is decoupled and full.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.counts: dict[Tensor, int] = {}
        """Parameter -> its number of steps, as in its state."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.counts = {}  # a state was loaded

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        everything = self.param_groups
        for group in everything:
            if "rank" in group:
                self._projected(group)
        self.param_groups = [group for group in everything if "rank" not in group]
        try:
            return super().step(closure)  # type: ignore[arg-type]
        finally:
            self.param_groups = everything

    def _projected(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        lists: dict[str, list[Tensor]] = {n: [] for n in ("moves", "gradients", "exp_avg", "exp_avg_sq", "step")}
        for p in parameters:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.counts[p] = 0
            if p not in self.counts:  # after a resumption; reading it in every step would wait for the device
                self.counts[p] = int(state["step"])
            if self.counts[p] % group["every"] == 0:
                state["projection"] = _top(p.grad, group["rank"])
            self.counts[p] += 1
            small = _down(p.grad, state["projection"])
            if "exp_avg" not in state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(small), torch.zeros_like(small)
            lists["moves"].append(torch.zeros_like(small))
            lists["gradients"].append(small)
            for name in ("exp_avg", "exp_avg_sq", "step"):
                lists[name].append(state[name])
        beta1, beta2 = group["betas"]
        adamw(
            lists["moves"], lists["gradients"], lists["exp_avg"], lists["exp_avg_sq"], [], lists["step"],
            fused=True, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=0.0, eps=group["eps"],
            maximize=False,
        )  # fmt: skip
        for p, move in zip(parameters, lists["moves"], strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(_up(move, self.state[p]["projection"], p.shape), alpha=group["scale"])


def _top(gradient: Tensor, rank: int) -> Tensor:
    """(side, rank): the top singular vectors of the shorter side."""
    u, _, vt = torch.linalg.svd(gradient.float(), full_matrices=False)
    return u[:, :rank].contiguous() if len(gradient) <= gradient.shape[1] else vt[:rank].T.contiguous()


def _down(gradient: Tensor, projection: Tensor) -> Tensor:
    left = len(gradient) <= gradient.shape[1]
    return projection.T @ gradient if left else gradient @ projection


def _up(small: Tensor, projection: Tensor, shape: torch.Size) -> Tensor:
    return projection @ small if shape[0] <= shape[1] else small @ projection.T
