"""The proof of an artifact: it is the base with the adapter, or what differs and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pefttools.errors import UserError
from pefttools.proving import models, outputs
from pefttools.proving.causes import Facts, causes
from pefttools.proving.tensors import compared
from pefttools.reporter import SILENT, Reporter
from pefttools.sources import expanded, fetch

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Verdict:
    """What was found about an artifact."""

    is_equal: bool
    dtype: str
    """The artifact's dtype, whose rounding is allowed."""
    max_logit_difference: float
    largest_logit: float
    tensors: int
    wrong_tensors: int
    causes: list[str] = field(default_factory=list)
    """Why it is not equal, the likeliest cause first."""
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON has them: a difference that is infinite, because shapes differ, is None."""
        gap = self.max_logit_difference
        return {**asdict(self), "max_logit_difference": None if math.isinf(gap) else gap}

    def lines(self) -> Iterator[str]:
        """Yield the proof as text."""
        if not self.tensors:
            yield f"{'equal' if self.is_equal else 'not equal'}; only the outputs were compared"
        elif self.is_equal:
            yield f"equal up to the rounding of {self.dtype}: {self.tensors} tensors are right"
        else:
            yield f"not equal: {self.wrong_tensors} of {self.tensors} tensors are wrong"
        for number, cause in enumerate(self.causes, 1):
            yield f"{number}. {cause}"
        gap = self.max_logit_difference
        differ = "the logits have other shapes" if math.isinf(gap) else f"the largest difference of logits is {gap:.3g}"
        yield f"{differ} (the largest logit is {self.largest_logit:.3g})"


def prove(base: str, adapter: Path, artifact: Path, texts: Sequence[str] = (), reporter: Reporter = SILENT) -> Verdict:
    """Compare an artifact with its base and adapter: every tensor here, and the outputs of a process of its own.

    Args:
        base: a source (a folder, `hf:NAME`, `pypi:…`, a GGUF file) of the base that the adapter was trained on.
        adapter: a folder of peft's.
        artifact: a merged model: a folder of transformers, or a GGUF file.
        texts: texts to compare the outputs on; by default a few in English, German, Chinese and Python.

    Raises:
        UserError: one of them cannot be loaded, or the adapter is of a kind that cannot be merged.
    """
    adapter, artifact = expanded(str(adapter)), expanded(str(artifact))
    if not artifact.exists():
        raise UserError(f"MERGED: {artifact} does not exist")
    settings = models.adapter_settings(adapter)
    folder = artifact if artifact.is_dir() else None
    cls, texts = models.model_class(folder, settings), tuple(texts) or outputs.TEXTS
    reporter.note("loading the base with the adapter")
    right = models.load_right(base, adapter, cls, folder)
    sentences, number, wrong, dtype = [], 0, 0, "float32"
    if artifact.suffix != ".onnx":  # a graph's optimizations change its tensors
        reporter.note("comparing the artifact's tensors")
        sentences, number, wrong, dtype = _tensors(right, artifact, cls)
    reporter.note("running the artifact in a process of its own")
    found = outputs.in_own_process(artifact, cls.__name__, texts)
    expected = outputs.outputs(right.model, _tokenizer(adapter, base), texts)
    differing = [text for text, one, two in zip(texts, found.ids, expected.ids, strict=True) if one != two]
    if differing:
        sentences.append(
            f"the artifact's tokenizer gives other tokens for {len(differing)} of {len(texts)} texts, first for"
            f" {differing[0]!r}"
        )
    gap = outputs.difference(found, expected)
    if not sentences and gap > outputs.TOLERANCE[dtype] * max(1.0, expected.largest):
        what = "all tensors are right, but the outputs differ: a setting of the configuration has changed"
        sentences.append(what if number else f"the outputs differ by up to {gap:.3g}")
    warnings = _warnings(base, settings)
    return Verdict(not sentences, dtype, gap, expected.largest, number, wrong, sentences, warnings)


def _tensors(right: models.Right, artifact: Path, cls: Any) -> tuple[list[str], int, int, str]:
    """What is wrong with the artifact's tensors, their number, the number of wrong ones, and their dtype."""
    found, dtype = models.load_artifact(artifact, cls)
    tensors = models.named_tensors(found)
    comparisons = list(compared(right.base, models.named_tensors(right.model), tensors, dtype))
    facts = Facts(
        right.scaling, right.ranks, right.heads, right.without_source, right.rslora, (_tied(found), _tied(right.model))
    )
    wrong = sum(each.kind != "right" for each in comparisons)
    return causes(comparisons, facts), len(comparisons), wrong, dtype


def _tied(model: Any) -> bool | None:
    """Whether output layer and input embeddings are one tensor; None where there is no output layer."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return None if output is None else output.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def _tokenizer(adapter: Path, base: str) -> Any:
    """The adapter's tokenizer if it has one, else the base's."""
    from transformers import AutoTokenizer

    if any((adapter / name).is_file() for name in TOKENIZER):
        return AutoTokenizer.from_pretrained(adapter, trust_remote_code=False)
    folder = fetch(base)
    if folder.suffix == ".gguf":
        return AutoTokenizer.from_pretrained(folder.parent, gguf_file=folder.name, trust_remote_code=False)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _warnings(base: str, settings: dict[str, Any]) -> list[str]:
    named = settings.get("base_model_name_or_path")
    if not named or Path(str(named)).name.rstrip("/") in base:
        return []
    return [f"the adapter names {named} as its base, and BASE is {base}"]
