"""merged: a plain transformers folder with the trained change merged into the weights.

`AutoModel….from_pretrained(folder)` loads it, with tokenizer and label names; users do not need pefttools.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pefttools.bases import folders
from pefttools.bases.loading import PLAIN_WEIGHTS
from pefttools.errors import UserError
from pefttools.exporters.base import Dtype, Loaded
from pefttools.exporters.merging import MergingExporter
from pefttools.recipe.recipe import Recipe
from pefttools.training.run import Trained

if TYPE_CHECKING:
    from pefttools.exporters.proof import Proof


class Merged(MergingExporter):
    """Data type of the weights and size limit of a file."""

    dtype: Dtype = "float32"
    """`float32` gives the trained model's logits; `bfloat16` and `float16` need half the disk space."""
    shard: str = Field(default="5GB", pattern=r"^[1-9]\d*[KMG]B$")
    """Upper limit of the size of a weight file; larger models are split into several files."""

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

        if problem := folders.blocks_beyond(folder, str(folder)):
            raise UserError(problem)
        auto = getattr(transformers, recipe.task.auto_class)
        model, report = auto.from_pretrained(folder, output_loading_info=True, **PLAIN_WEIGHTS)
        problems = [
            f"{kind.replace('_', ' ')}: {_some(sorted(map(str, report[kind])))}"
            for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if report[kind]
        ]
        if str(model.dtype) != f"torch.{self.dtype}":
            problems.append(f"its weights are {model.dtype} instead of {self.dtype}")
        return Loaded(model, transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False), problems)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
