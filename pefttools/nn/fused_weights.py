"""The weights of a block that is one autograd function: which are trained, and their copies in bf16."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import nn

from pefttools.nn.joint_linear import JointLinear

DTYPE = torch.bfloat16


class FusedWeights:
    """Base of the blocks; a subclass has `products`, and calls `set_weights`."""

    products: tuple[JointLinear, JointLinear, JointLinear, JointLinear]

    def set_weights(self, norms: Iterable[nn.Parameter]) -> None:
        """Take note of all parameters: those of the products in order, then those of the norms."""
        self.parameters = [*chain.from_iterable(product.parameters for product in self.products), *norms]
        self.trained = [p for p in self.parameters if p.requires_grad]
        copies = [pair for product in self.products for pair in product.copies]
        self.copies, self.originals = [copy for copy, _ in copies], [original for _, original in copies]

    def refresh(self) -> None:
        """Copy the weights again, which the last step has changed."""
        if not self.copies:
            return
        torch._foreach_copy_(self.copies, [original.data for original in self.originals])
        scaled = [pair for product in self.products for pair in product.scaled()]
        if scaled:
            ups, factors = zip(*scaled, strict=True)
            torch._foreach_mul_(ups, factors)

    def versions(self) -> list[int]:
        """Numbers that change when a trained parameter does."""
        return [parameter._version for parameter in self.trained]

    def refuse_changed(self, versions: Sequence[int]) -> None:
        """Raises RuntimeError when the parameters have changed since `versions` was called."""
        if versions != self.versions():
            raise RuntimeError("the weights of a block have changed between its forward and its backward pass")

    @staticmethod
    def trains(product: JointLinear) -> bool:
        return any(p.requires_grad for p in product.parameters)

    def release(self) -> None:
        """Give the modules weights of their own again."""
        for product in self.products:
            product.release()
