"""merged: a plain transformers folder with the change folded into the weights.

Loads by `AutoModel….from_pretrained(folder)` with tokenizer and label names; nothing of ours is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pefttools.exporters.base import Dtype, Loaded
from pefttools.exporters.merging import MergingExporter
from pefttools.recipe.recipe import Recipe
from pefttools.training.run import Trained

if TYPE_CHECKING:
    from pefttools.exporters.proof import Proof


class Merged(MergingExporter):
    """What the weights are rounded to, and how large a file may be."""

    dtype: Dtype = "float32"
    """`float32` answers like the trained model; `bfloat16` and `float16` take half the room."""
    shard: str = Field(default="5GB", pattern=r"^[1-9]\d*[KMG]B$")
    """The most a file of weights may have; more are written beside it."""

    @property
    def rounds_to(self) -> str:
        return self.dtype

    def library(self, folder: Path, trained: Trained) -> str:
        del folder, trained
        return "transformers"

    def write(self, model: Any, proof: Proof, folder: Path) -> None:
        model.save_pretrained(folder, max_shard_size=self.shard)
        proof.tokenizer.save_pretrained(folder)

    def load(self, folder: Path, recipe: Recipe) -> Loaded:
        import transformers

        auto = getattr(transformers, recipe.task.auto_class)
        model, report = auto.from_pretrained(folder, output_loading_info=True)
        problems = [
            f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, report[kind])))}"
            for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if report[kind]
        ]
        if str(model.dtype) != f"torch.{self.dtype}":
            problems.append(f"its weights are {model.dtype}, and {self.dtype} was asked for")
        return Loaded(model, transformers.AutoTokenizer.from_pretrained(folder), problems)
