"""Leave a language model's output layer out of its forward pass, and apply it only to the tokens that have a target.

In a row of a 170-token prompt and a 30-token answer, 85% of the logits are never read, but logits are the largest
tensors of a step: (rows, tokens, vocabulary). With `OutputLayer.run` the model returns the inputs of its output layer
in place of logits. A task selects those of its targets, and computes logits or their loss with `Deferred`.

Models that change logits after the output layer (Gemma 2 caps them, Cohere scales them, BART adds a bias) compute them
as usual: `find` tests whether the model returns the very tensor that its output layer returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pefttools.nn import chunked_loss

LABELS = "labels"
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError)
"""Errors of models that compute with logits after the output layer."""


@dataclass(frozen=True, eq=False)
class OutputLayer:
    """The output layer of a model that returns its logits as they are."""

    module: nn.Module
    shifted: Callable[[Tensor], Tensor] | None = None
    """Makes an encoder-decoder's `decoder_input_ids` of its labels; with labels the model computes a loss itself."""
    is_chunked: bool = True
    """Whether losses are computed in chunks, with their gradients; False if an objective reads logits, too, or needs
    autograd's own functions."""

    def run(self, call: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Any:
        """What `call(**inputs)` returns, but its `logits` are the inputs of the output layer, (rows, tokens, width),
        and its `output_layer` is a `Deferred`."""
        deferred = Deferred(self)
        with deferred.recording():
            outputs = call(**self._without_labels(inputs))
        outputs.output_layer = deferred
        return outputs

    def _without_labels(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.shifted is None or LABELS not in inputs:
            return inputs
        rest = {name: value for name, value in inputs.items() if name != LABELS}
        return {**rest, "decoder_input_ids": self.shifted(inputs[LABELS])}


class Deferred:
    """An output layer that one forward pass left out."""

    def __init__(self, layer: OutputLayer) -> None:
        self.layer = layer
        self.inputs: list[Tensor] = []
        self.autocast: torch.dtype | None = None
        """What the pass computed in, if that was under autocast."""
        self.found: Tensor | None = None
        """Logits that are kept, because the loss and an objective read the same ones."""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A context in which the layer returns its input."""
        own = vars(self.layer.module)
        former = own.get("forward")

        def record(hidden: Tensor) -> Tensor:
            kind = hidden.device.type
            self.autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            self.inputs.append(hidden)
            return hidden

        own["forward"] = record
        try:
            yield
        finally:
            if former is None:
                del own["forward"]
            else:
                own["forward"] = former

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits in fp32 of selected inputs, (tokens, width) -> (tokens, vocabulary).

        If the layer is not chunked, a second call returns the first result, so its inputs must be the same.
        """
        if self.found is not None:
            return self.found
        with self._autocast(hidden):
            found = self.layer.module(hidden).float()
        if not self.layer.is_chunked and torch.is_grad_enabled():
            self.found = found
        return found

    def chunks(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the tokens, and the logits of each."""
        for part in chunked_loss.chunks(hidden, self._num_classes):
            yield part, self.logits(hidden[part])

    def loss(self, hidden: Tensor, classes: Tensor) -> Tensor:
        """The summed cross-entropy of selected inputs, shape ()."""
        module: Any = self.layer.module
        if not self.layer.is_chunked and torch.is_grad_enabled():
            return _cross_entropy(self.logits(hidden), classes)
        if type(module) is nn.Linear:
            return chunked_loss.cross_entropy(hidden, module.weight, module.bias, classes, self.autocast)
        return self._recomputed_loss(hidden, classes)

    def _recomputed_loss(self, hidden: Tensor, classes: Tensor) -> Tensor:
        """The loss in chunks whose logits the backward pass computes again, for any kind of layer (LoRA on it)."""
        from torch.utils.checkpoint import checkpoint

        def of_chunk(part: Tensor, right: Tensor) -> Tensor:
            return _cross_entropy(self.logits(part), right)

        slices = list(chunked_loss.chunks(hidden, self._num_classes))
        if len(slices) == 1 or not torch.is_grad_enabled():
            return sum((of_chunk(hidden[part], classes[part]) for part in slices), hidden.new_zeros(()).float())
        losses: list[Any] = [checkpoint(of_chunk, hidden[part], classes[part], use_reentrant=False) for part in slices]
        return torch.stack(losses).sum()

    @property
    def _num_classes(self) -> int:
        module: Any = self.layer.module
        return module.out_features if hasattr(module, "out_features") else module.weight.shape[0]

    def _autocast(self, hidden: Tensor) -> AbstractContextManager[Any]:
        return torch.autocast(hidden.device.type, self.autocast) if self.autocast else nullcontext()


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, classes, reduction="sum")


def find(model: nn.Module, inputs: Mapping[str, Tensor], is_chunked: bool = True) -> OutputLayer | None:
    """The output layer, if the model computes nothing but `logits` with what it returns; else None.

    This is tested with one pass without the layer.

    Args:
        inputs: a small batch.
    """
    whole: Any = model
    plain: Any = whole.get_base_model() if hasattr(model, "get_base_model") else model
    module = plain.get_output_embeddings() if hasattr(plain, "get_output_embeddings") else None
    if not isinstance(module, nn.Module) or hasattr(module, "_hf_hook"):  # a hook moves weights between devices
        return None
    layer = OutputLayer(module, getattr(plain, "prepare_decoder_input_ids_from_labels", None), is_chunked)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = layer.run(model, inputs)
            found: Deferred = outputs.output_layer
            is_plain = len(found.inputs) == 1 and outputs.logits is found.inputs[0] and bool(found._num_classes)
    except FAILURES:
        return None
    finally:
        model.train(was_training)
    return layer if is_plain else None
