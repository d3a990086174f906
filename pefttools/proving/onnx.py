"""An ONNX graph with the interface of a model, for comparing outputs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pefttools import extras
from pefttools.errors import UserError


class Graph:
    """A graph in onnxruntime; called like a model of transformers, it returns logits."""

    def __init__(self, file: Path) -> None:
        extras.require("--onnx", ["onnxruntime"])
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.inputs = {one.name for one in self.session.get_inputs()}
        self.config = SimpleNamespace(is_encoder_decoder=False, type_vocab_size=2)

    def __call__(self, **inputs: Any) -> Any:
        """The first output as `logits`.

        Raises:
            UserError: the graph needs inputs that a text does not give.
        """
        import torch

        if unknown := sorted(self.inputs - set(inputs)):
            raise UserError(f"--onnx: the graph needs {', '.join(unknown)}, which a text does not give")
        found = self.session.run(None, {name: inputs[name].numpy() for name in self.inputs})
        return SimpleNamespace(logits=torch.from_numpy(found[0]))
