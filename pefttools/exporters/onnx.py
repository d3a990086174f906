"""onnx: an encoder's graph in ONNX with dynamic batch size and length, with its tokenizer and configuration.

torch exports it, onnx checks it, and onnxruntime runs it in the verification; the folder has optimum's layout. Methods
that can be merged are merged; bottleneck adapters become part of the graph. `pip install "pefttools[onnx]"` installs
onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools import extras
from pefttools.errors import UserError
from pefttools.exporters.base import METRIC, Exporter, Loaded
from pefttools.exporters.merging import merged
from pefttools.recipe.recipe import Recipe
from pefttools.training.run import Trained

if TYPE_CHECKING:
    from torch import nn

    from pefttools.exporters.proof import Proof

FILE = "model.onnx"
NEEDED = extras.EXTRAS["onnx"]
TOLERANCE = 1e-4
"""Largest allowed difference of a logit in fp32 (of a language model: as a share of the largest logit), because
onnxruntime rounds differently from torch."""
ROWS = 3
"""Rows of the example batch that torch traces; not 1, which torch would treat as a constant."""


class Onnx(Exporter):
    """Version of the operators."""

    libraries: ClassVar[tuple[str, ...]] = NEEDED

    opset: int = Field(default=18, ge=18, le=23)
    """Version of the ONNX operator set."""

    def refuse(self, recipe: Recipe) -> None:
        extras.require("--to onnx", NEEDED)
        if recipe.task.auto_class in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
            raise UserError(
                f"--to onnx: works with encoders only, and {recipe.task.name} generates text; use --to merged, or"
                " --to gguf for a decoder. (Optimum's exporter of language models, optimum-onnx 0.1.0, needs"
                " transformers below 4.58.)"
            )
        if not recipe.strategy.mergeable and hasattr(recipe.strategy, "config"):
            raise UserError(f"--to onnx: {recipe.strategy.name} {recipe.strategy.why_not_merged}")

    def prepare(self, trained: Trained, proof: Proof) -> tuple[nn.Module, dict[str, Any]]:
        return merged(trained, proof) if trained.recipe.strategy.mergeable else (trained.model, {})

    def write(self, model: Any, proof: Proof, folder: Path) -> None:
        import onnx
        import torch

        inputs = _inputs(proof)
        names = [name for name, value in _outputs(model(**inputs)).items() if isinstance(value, torch.Tensor)]
        dynamic = tuple(dict.fromkeys(range(value.ndim), torch.export.Dim.DYNAMIC) for value in inputs.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations inside its exporter
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
            try:
                torch.onnx.export(
                    _plain(model, list(inputs), names), tuple(inputs.values()), str(folder / FILE),
                    input_names=list(inputs), output_names=names, opset_version=self.opset, dynamo=True,
                    dynamic_shapes={"values": dynamic}, external_data=_bytes(model) > 2**31 - 2**20, verbose=False,
                )  # fmt: skip
            except torch.onnx.OnnxExporterError as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(f"--to onnx: torch cannot export {type(model).__name__}: {reason}") from error
        onnx.checker.check_model(str(folder / FILE), full_check=True)
        model.config.save_pretrained(folder)
        proof.tokenizer.save_pretrained(folder)

    def load(self, folder: Path, recipe: Recipe) -> Loaded:
        from transformers import AutoConfig, AutoTokenizer

        self.refuse(recipe)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return Loaded(running(folder / FILE, config), tokenizer)

    def tolerance(self, scale: float) -> float:
        return TOLERANCE * scale

    def metric_tolerance(self, rows: int) -> float:
        return max(METRIC, 1 / rows)


def _inputs(proof: Proof) -> dict[str, Any]:
    """The task's batch of the first compared rows."""
    task, tokenizer = proof.trained.task, proof.trained.base.tokenizer
    columns = task.encode(([*proof.rows[:ROWS]] * ROWS)[:ROWS], tokenizer)
    short = {name: list(values)[:ROWS] for name, values in columns.items()}
    return task.inputs_of(task.collate(short, tokenizer, 1))


def _outputs(outputs: Any) -> dict[str, Any]:
    return {name: value for name, value in outputs.items() if name != "loss"}


def _bytes(model: nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters())


def _plain(model: nn.Module, inputs: list[str], names: list[str]) -> nn.Module:
    """A module that takes these inputs by position and returns these outputs as a tuple."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            outputs = self.model(**dict(zip(inputs, values, strict=True)))
            return tuple(outputs[name] for name in names)

    return Plain().eval()


def running(file: Path, config: Any) -> nn.Module:
    """A module that runs the graph on the CPU and returns the outputs of the model it was exported from."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    input_names = [node.name for node in session.get_inputs()]
    names = [node.name for node in session.get_outputs()]

    class Running(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = config
            self.place = torch.nn.Parameter(torch.empty(0), requires_grad=False)  # callers read the device from it

        def forward(self, **inputs: Any) -> Any:
            arrays = {name: inputs[name].numpy() for name in input_names if name in inputs}
            found = session.run(names, arrays)
            return SimpleNamespace(**{name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)})

    return Running()
