"""Combine several optimizers into one, each for its own parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch


class CombinedOptimizer(torch.optim.Optimizer):
    """Steps its parts in sequence. It shares groups and state with them, and its `state_dict` contains the state of
    all."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        self.counts = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()  # loading a state replaces groups and state

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part, count in zip(self.parts, self.counts, strict=True):
            part.param_groups = list(islice(groups, count))
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
