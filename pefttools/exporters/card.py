"""The model card: `README.md` of an artifact, with the metadata the hub reads, by huggingface_hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from pefttools import sources

if TYPE_CHECKING:
    from pefttools.run import Trained

PIPELINES = {
    "text_classification": "text-classification",
    "relation_extraction": "text-classification",
    "regression": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "causal_lm": "text-generation",
    "prompted_classification": "text-generation",
    "seq2seq": "text2text-generation",
    "masked_lm": "fill-mask",
}
"""The hub's name for a task."""


def _library(trained: Trained, manifest: Mapping[str, Any]) -> str:
    """What loads the artifact."""
    if manifest["exporter"] == "adapter":
        by_peft = trained.recipe.strategy.loads_by_peft and not trained.task.new_tokens
        return "peft" if by_peft or "as_lora" in manifest else "pefttools"
    return "transformers" if manifest["exporter"] == "merged" else str(manifest["exporter"])


def write(folder: Path, trained: Trained, result: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Write the card of an artifact that was proven."""
    from huggingface_hub import EvalResult, ModelCardData

    task, source = trained.task, trained.base.source
    score = EvalResult(
        task_type=PIPELINES.get(task.name, task.name),
        dataset_type="private",
        dataset_name=str(trained.recipe.data.train.source if trained.recipe.data.train else "?"),
        dataset_split=manifest["scored_on"],
        metric_type=manifest["metric"],
        metric_value=round(manifest["exported"], 4),
    )
    licence = sources.licence(source, trained.base.folder)
    data = ModelCardData(
        model_name=trained.recipe.name,
        base_model=source.removeprefix("hf:").partition("@")[0] if source.startswith("hf:") else None,
        license=licence.lower() if licence and " " not in licence else "other",
        library_name=_library(trained, manifest),
        pipeline_tag=score.task_type,
        tags=["pefttools", trained.recipe.strategy.name],
        eval_results=[score],
    )
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    template = environment.from_string(Path(__file__).with_name("card.md.jinja").read_text("utf-8"))
    text = template.render(
        data=data.to_yaml(),
        recipe=trained.recipe,
        manifest=manifest,
        result=result,
        licence=licence,
    )
    (folder / "README.md").write_text(text, "utf-8")
