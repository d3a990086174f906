"""adapter: the trained parameters and the head, without the base.

Where the strategy `loads_by_peft`, the folder is in peft's format and `PeftModel.from_pretrained` loads it, into a base
with as many embeddings as there are tokens. Otherwise it contains the trained tensors and `pefttools.load` loads it.
With `as_lora`, the weight change of any mergeable method becomes a LoRA in peft's format, truncated to a rank or to a
share of the squared change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from pefttools.bases import loading, quantized, vocabulary
from pefttools.errors import UserError
from pefttools.exporters import vllm_layout
from pefttools.exporters.base import Chat, Exporter, Loaded, adds_tokens
from pefttools.exporters.merging import refuse_unmergeable
from pefttools.recipe.recipe import Recipe
from pefttools.strategies._peft_strategy import load_peft, save_peft
from pefttools.strategies.base import CONFIG
from pefttools.training.run import Trained, load

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.exporters.proof import Proof

WHOLE = 1 - 1e-6
"""Share of the squared change from which on a LoRA holds all of it; variants such as DoRA change more than BA."""


class Adapter(Exporter):
    """Format: as trained, or as a LoRA."""

    needs_base: ClassVar[bool] = True

    as_lora: int | float | None = None
    """Rank of the LoRA (`8`), or the share of each matrix's squared change that it must keep (`0.95`)."""

    @field_validator("as_lora")
    @classmethod
    def _rank_or_share(cls, value: float | None) -> float | None:
        if value is not None and (value < 1 if isinstance(value, int) else not 0 < value <= 1):
            raise ValueError("must be a rank (a whole number from 1) or a share of the squared change (up to 1.0)")
        return value

    def refuse(self, recipe: Recipe) -> None:
        if recipe.base.layers and recipe.strategy.loads_by_peft:
            raise UserError(
                "adapter: the run's base keeps only some blocks (base.layers), which peft cannot load; use --to merged"
            )
        if self.as_lora is None:
            return
        refuse_unmergeable("adapter as_lora", recipe)
        if recipe.base.quantize:
            raise UserError(
                "as_lora: the run's base is quantised, so what it trained is an adapter already; leave as_lora out"
            )

    @property
    def approximates(self) -> bool:
        return self.as_lora is not None

    def prepare(self, trained: Trained, proof: Proof) -> tuple[nn.Module, dict[str, Any]]:
        if self.as_lora is None:
            if trained.base.source_sha256:
                raise UserError(
                    "adapter: the run's adapter stands on earlier ones that are merged into its base (`previous` in its"
                    " folder), and does nothing useful on the base alone; use --to merged, or as_lora=RANK, which holds"
                    " the changes of all of them"
                )
            return self._with_tokens(trained) or super().prepare(trained, proof)
        from pefttools.exporters.as_lora import as_lora

        return as_lora(trained, self.as_lora)

    def _with_tokens(self, trained: Trained) -> tuple[nn.Module, dict[str, Any]] | None:
        """The run's LoRA with the embeddings of added tokens in peft's format (`trainable_token_indices`); None for a
        run without added tokens, or one that also changed what a LoRA does not hold."""
        from pefttools.exporters.as_lora import EXTRA, as_lora

        recipe, rank = trained.recipe, getattr(trained.recipe.strategy, "rank", None)
        adds = any(path.endswith(EXTRA) for path in trained.base.head)
        if not adds or recipe.strategy.name != "lora" or not isinstance(rank, int) or recipe.base.quantize:
            return None
        model, facts = as_lora(load(trained.path), rank)
        is_whole = not facts["as_lora"]["left_out"] and facts["as_lora"]["energy"] >= WHOLE
        return (model, {"in_peft_format": True}) if is_whole else None

    def library(self, folder: Path, trained: Trained) -> str:
        by_peft = (folder / CONFIG).is_file() and (trained.recipe.strategy.loads_by_peft or self.as_lora is not None)
        return "peft" if by_peft and not adds_tokens(folder) else "pefttools"

    @classmethod
    def sentences(cls, manifest: Mapping[str, Any]) -> Iterator[str]:
        if about := manifest.get("as_lora"):
            ranks = "-".join(str(rank) for rank in dict.fromkeys(about["ranks"]))
            yield (
                f"written as a LoRA of rank {ranks} with {about['energy']:.4f} of the matrices' squared change;"
                f" {about['left_out']:,} other changed parameters are not in it"
            )
        if found := manifest.get("vllm"):
            yield vllm_layout.sentence(found)

    def served(
        self, folder: Path, inputs: Sequence[Sequence[int]], logits: Sequence[Tensor], chats: Sequence[Chat] = ()
    ) -> tuple[dict[str, Any], list[str]]:
        del inputs, logits, chats
        if not (folder / vllm_layout.WEIGHTS).is_file():
            return {}, []
        task = json.loads((folder / CONFIG).read_text("utf-8")).get("task_type")
        return ({"vllm": vllm_layout.layout(folder)} if task == "CAUSAL_LM" else {}), []

    def write(self, model: Any, proof: Proof, folder: Path) -> None:
        if self.as_lora is None and model is proof.trained.model:
            proof.trained.recipe.strategy.save(model, folder)
        else:
            save_peft(model, folder)
        proof.tokenizer.save_pretrained(folder)

    def load(self, folder: Path, recipe: Recipe) -> Loaded:
        import torch
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if self.as_lora is None and not (recipe.strategy.loads_by_peft and not adds_tokens(folder)):
            return Loaded(load(folder).model, tokenizer)
        auto, kind = getattr(transformers, recipe.task.auto_class), recipe.base.quantize
        place, sha256 = loading.locate(recipe.base)
        manifest = folder / "manifest.json"
        expected = json.loads(manifest.read_text("utf-8"))["base"]["sha256"] if manifest.is_file() else sha256
        if sha256 != expected:
            raise UserError(
                f"{folder}: the base {recipe.base.source} has changed: its sha256 is {sha256}, the run's was {expected}"
            )
        values = json.loads(json.dumps(recipe.task.config_values()))
        values["id2label"] = {int(i): name for i, name in values.get("id2label", {}).items()}
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False, **values)
        vocabulary.mend_padding_id(config, tokenizer)
        packed = {"quantization_config": quantized.configuration(kind, auto, config)} if kind else {}
        torch.manual_seed(1)  # a head missing from the folder must not get the run's own initial values
        model = auto.from_pretrained(place, config=config, dtype=torch.float32, **loading.PLAIN_WEIGHTS, **packed)
        quantized.mend(model)
        vocabulary.agree(model, tokenizer, recipe.base.source, recipe.task.own_head)
        if (number := self.num_embeddings(folder)) > vocabulary.num_rows(model):
            model.resize_token_embeddings(number, mean_resizing=False)
        return Loaded(load_peft(model, folder), tokenizer)

    def num_embeddings(self, folder: Path) -> int:
        file = folder / CONFIG
        added = json.loads(file.read_text("utf-8")).get("trainable_token_indices") if file.is_file() else None
        tables = added.values() if isinstance(added, dict) else [added or []]  # peft takes a table by name, or one list
        return max((number + 1 for ids in tables for number in ids), default=0)
