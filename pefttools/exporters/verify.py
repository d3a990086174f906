"""The check of a written artifact: another process loads it as its users will, and compares its outputs.

`main` runs in that process. It tokenises the raw rows with the artifact's own tokenizer, so that a lost token or a
changed setting is found as well as a wrong weight.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.data.encoding import Encoded, columns_of
from pefttools.data.splitting import Row
from pefttools.exporters import exactness, exporters, writing
from pefttools.exporters.base import Chat
from pefttools.recipe import recipes
from pefttools.strategies.base import is_quantised
from pefttools.training.evaluation import Evaluator, aggregated

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.tasks.base import Prediction, Task


TIED = "tied embeddings"


def logits_and_predictions(
    model: nn.Module,
    task: Task,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    keep_logits: bool = True,
    padding: bool = True,
) -> tuple[list[Tensor], list[Prediction]]:
    """The logits of every encoded row (without those of padding), and the prediction of every row.

    Args:
        keep_logits: whether to return the logits; those of a language model soon fill the memory.
        padding: whether a batch may mix rows of different lengths; if not, no row is padded.
    """
    encoded = Encoded(columns_of(rows, task, tokenizer))
    evaluator = Evaluator(model, task, tokenizer)
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(encoded["length"]):
        groups.setdefault(0 if padding else length, []).append(i)
    logits: dict[int, Tensor] = {}
    predictions: dict[int, Prediction] = {}
    for group in groups.values():
        for indices, batch, outputs in evaluator.outputs(encoded, group):
            predictions.update(zip(indices, task.predict(outputs, batch), strict=True))
            if not keep_logits:
                continue
            for i, row in zip(indices, task.logits_of_rows(outputs, batch), strict=True):
                logits[i] = row.to("cpu", copy=True)
    return [logits[i] for i in sorted(logits)], aggregated(task, rows, encoded, predictions)


def scores(model: nn.Module, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The task's metrics on these rows."""
    _, predictions = logits_and_predictions(model, task, rows, tokenizer, keep_logits=False)
    return task.metrics(predictions, [task.reference(row) for row in rows])


def exact_logits(
    model: nn.Module, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, padding: bool = True
) -> list[Tensor]:
    """The logits of every encoded row, computed in float64."""
    with exactness.in_float64(model):
        return logits_and_predictions(model, task, rows, tokenizer, padding=padding)[0]


def gap(logits: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest absolute difference; infinite where shapes differ or a logit is NaN."""
    pairs = zip(logits, others, strict=True)
    found = [float((a - b).abs().max()) if a.shape == b.shape else math.inf for a, b in pairs]
    return max(math.inf if math.isnan(difference) else difference for difference in found)


def loaded_facts(model: Any, tokenizer: Any, names: Sequence[str]) -> dict[str, Any]:
    """Facts that must survive saving besides the weights: the configuration's `names`, special tokens, tied embeddings.

    The values are those that JSON can represent.
    """
    config = {name: getattr(model.config, name, None) for name in names}
    specials = {name: [token, tokenizer.convert_tokens_to_ids(token)] for name, token in _specials(tokenizer).items()}
    return json.loads(json.dumps({**config, **specials, TIED: _tied(model)}))


def _specials(tokenizer: Any) -> Mapping[str, str]:
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}


def _tied(model: Any) -> bool | None:
    """Whether the output layer and the input embeddings share their weights; None where there is no output layer."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if output is None:
        return None
    return _table(output) == _table(model.get_input_embeddings())


def _table(module: Any) -> tuple[int, int | None]:
    """Identity of a module's weights, and of the trained rows that replace some (peft's `trainable_token_indices`)."""
    adapter = getattr(module, "token_adapter", module)
    trained = getattr(adapter, "trainable_tokens_delta", None)
    return adapter.weight.data_ptr(), None if trained is None else id(trained)


def answer_file(case_file: Path) -> Path:
    return case_file.with_name("answer.json")


def main(case_file: Path, folder: Path) -> None:
    """Load the artifact, run it on the case's rows and write the differences, or the error, to `answer_file`."""
    from pefttools.bases.loading import prepare_libraries

    prepare_libraries()
    try:
        answer = _compared(case_file, folder)
    except Exception as error:  # other libraries raise anything when a folder is wrong
        answer = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    answer_file(case_file).write_text(json.dumps(answer), "utf-8")


def _compared(case_file: Path, folder: Path) -> dict[str, Any]:
    import torch
    from transformers import GenerationConfig

    case = json.loads(case_file.read_text("utf-8"))
    expected = torch.load(case_file.with_suffix(".pt"), weights_only=True)
    torch.set_num_threads(case["threads"])
    settings = recipes.load(str(folder / "recipe.yaml")).recipe
    exporter, found = exporters.parse(case["exporter"], "exporter")
    assert exporter is not None, found
    loaded = exporter.load(folder, settings)
    model, task, tokenizer, problems = loaded.model.eval(), settings.task, loaded.tokenizer, list(loaded.problems)
    actual = loaded_facts(model, tokenizer, case["config"])
    for name, value in case["facts"].items():
        if name == TIED and actual[name] is None:  # an ONNX graph has no output layer to compare
            continue
        if actual.get(name) != value:
            problems.append(f"the artifact's {name} is {actual.get(name)!r}, the trained model's {value!r}")
    written = folder / "generation_config.json"
    generation = GenerationConfig.from_pretrained(folder) if written.is_file() else None
    problems += _lost(case["text_settings"], json.loads(json.dumps(writing.text_settings(tokenizer, generation))))
    chats: list[Chat] = []
    if generation is not None:
        answers = writing.plain_answers(model, task, case["text_rows"], tokenizer, generation)
        problems += writing.differences(case["texts"], answers)
        prompts = task.prompts(case["text_rows"], tokenizer) if answers else []
        sources = map(task.generation_input, case["text_rows"])
        chats = [Chat(*one) for one in zip(sources, prompts, answers, strict=True)]
    logits = exact_logits(model, task, case["rows"], tokenizer)
    # int8 rounds activations by the largest one in the batch, so batches of other rows give other logits
    alone = logits if is_quantised(model) else exact_logits(model, task, case["rows"], tokenizer, padding=False)
    inputs = columns_of(case["rows"], task, tokenizer)["input_ids"]
    facts, serving_problems = exporter.served(folder, inputs, logits, chats)
    return {
        "max_logit_error": max(gap(each, expected["trained"]) for each in (logits, alone)),
        "loaded_error": max(gap(each, expected["written"]) for each in (logits, alone)),
        "metrics": scores(model, task, case["scored"], tokenizer),
        "facts": facts,
        "problems": [*problems, *serving_problems],
    }


def _lost(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """A problem for each chat template or generation setting that the artifact lacks or has changed."""
    if not found and expected:
        return ["the artifact has no generation_config.json"]
    problems = []
    for name, value in expected.items():
        if name == "generation_config":
            problems += [
                f"the artifact's generation_config.{key} is {found[name].get(key)!r}, the trained model's {one!r}"
                for key, one in value.items()
                if found[name].get(key) != one
            ]
        elif found[name] != value:
            problems.append(f"the artifact's {name} is not the one used in training: {found[name]!r}")
    return problems
