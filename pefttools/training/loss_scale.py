"""Backward passes, with loss scaling where steps compute in fp16.

Micikevicius et al. (2018), Mixed Precision Training: the smallest number of fp16 is 6e-8, so small gradients would
become 0. Therefore every backward pass begins with the loss multiplied by a scale, and the gradients are divided by it
before penalties are added and the norm is clipped. If the scale is too large, gradients overflow. Then the step
computes the same rows again with half the scale, until its gradients are finite; the weights have not changed yet. So
every step updates the weights, and a run has the steps, rows and schedule that it has in other precisions. After 2,000
steps without overflow the scale is doubled.

Whether gradients are finite is read from the device once a step. Other precisions read nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pefttools.nn.sharding import whole

if TYPE_CHECKING:
    from accelerate import Accelerator

LOWEST = 1.0
"""A scale at which gradients do not overflow by scaling: if they still do, the loss itself is not finite."""


class Backward:
    """The backward passes of a run on Accelerate, and the norm of their gradients."""

    def __init__(self, accelerator: Accelerator, optimizer: Any, parameters: Sequence[nn.Parameter]) -> None:
        self.accelerator, self.parameters = accelerator, parameters
        self.scaler = accelerator.scaler
        """None unless steps compute in fp16."""
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        """The optimizer without Accelerate's wrapper, by which the scaler knows it."""

    def add(self, share: Tensor) -> None:
        """Add the gradients of a process's share of the loss to `.grad`."""
        self.accelerator.backward(share * self.accelerator.num_processes)  # DDP averages; we sum

    def of(self, loss: Tensor, tensor: Tensor) -> Tensor:
        """The gradient of a loss with respect to one tensor; no `.grad` changes."""
        if self.scaler is None:
            return torch.autograd.grad(loss, tensor)[0]
        scale = self.scaler.scale(torch.ones_like(loss))
        return torch.autograd.grad(loss * scale, tensor)[0] / scale

    def unscale(self) -> bool:
        """Divide the gradients by the scale.

        Returns:
            False if they overflowed: the scale is lower now, and the passes must be computed again.
        """
        if self.scaler is None:
            return True
        self.scaler.unscale_(self.optimizer)
        if nn.utils.clip_grad_norm_(self.parameters, math.inf).isfinite():
            return True
        scale = self.scaler.get_scale()
        if scale <= LOWEST:  # the loss itself is not finite, so `loss_checks` ends the run
            return True
        self.scaler.update(scale * self.scaler.get_backoff_factor())
        return False

    def clip(self, max_norm: float | None) -> Tensor:
        """Scale the gradients down to this norm; returns their norm before."""
        largest = max_norm or math.inf
        if self.scaler is None:
            return whole(torch.as_tensor(self.accelerator.clip_grad_norm_([*self.parameters], largest)))
        return nn.utils.clip_grad_norm_(self.parameters, largest)  # Accelerate's would divide by the scale once more
