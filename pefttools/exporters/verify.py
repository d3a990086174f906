"""The proof: a written artifact, loaded in a fresh process by what its users will load it with, answers the same.

`main` is that process. It tokenises the raw rows with the artifact's own tokenizer, so that a lost token or a changed
setting shows as well as a wrong weight.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import recipe
from pefttools.data.encoding import Encoded, columns_of
from pefttools.data.splitting import Row
from pefttools.evaluate import joined, outputs_of
from pefttools.exporters import exporters
from pefttools.strategies.base import is_quantised

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.tasks.base import Prediction, Task


TIED = "tied embeddings"


def answers(
    model: nn.Module,
    task: Task,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    keep: bool = True,
    padding: bool = True,
) -> tuple[list[Tensor], list[Prediction]]:
    """Logits of every encoded row (of real tokens, where there are some a token), and what is said of every row.

    Args:
        keep: whether to keep the logits; a language model's fill the memory soon.
        padding: whether rows of unlike length are asked together; else each is asked as if it were alone.
    """
    encoded = Encoded(columns_of(rows, task, tokenizer))
    lengths = encoded["length"]
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(0 if padding else length, []).append(i)
    logits: dict[int, Tensor] = {}
    said: dict[int, Prediction] = {}
    for group in groups.values():
        for indices, batch, outputs in outputs_of(model, task, encoded.__getitem__, group, lengths, tokenizer):
            said.update(zip(indices, task.predict(outputs, batch), strict=True))
            if not keep:
                continue
            for i, row in zip(indices, task.logits_of_rows(outputs, batch), strict=True):
                logits[i] = row.to("cpu", copy=True)
    return [logits[i] for i in sorted(logits)], joined(task, rows, encoded, said)


def scores(model: nn.Module, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The task's metrics on these rows."""
    _, said = answers(model, task, rows, tokenizer, keep=False)
    return task.metrics(said, [task.reference(row) for row in rows])


def exact_logits(
    model: nn.Module, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, padding: bool = True
) -> list[Tensor]:
    """`answers`' logits in float64, where nothing that is rounded on the way hides what is looked for.

    Quantised weights compute in fp32: they have nothing narrower to hide.
    """
    if is_quantised(model):
        return answers(model, task, rows, tokenizer, padding=padding)[0]
    with _in_float64(model):
        return answers(model, task, rows, tokenizer, padding=padding)[0]


def gap(logits: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference; infinite where shapes differ or an answer is no number."""
    pairs = zip(logits, others, strict=True)
    found = [float((a - b).abs().max()) if a.shape == b.shape else math.inf for a, b in pairs]
    return max(math.inf if math.isnan(difference) else difference for difference in found)


@contextmanager
def _in_float64(model: nn.Module) -> Iterator[None]:
    """Meanwhile everything floating in `model` is float64, and stays so; narrower types come back as they were."""
    import torch

    former = [(t, t.dtype) for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    for tensor, _ in former:
        tensor.data = tensor.data.to(torch.float64)
    try:
        with _wide():
            yield
    finally:
        for tensor, dtype in former:
            tensor.data = tensor.data.to(dtype)


def _wide() -> AbstractContextManager[Any]:
    """Meanwhile whatever asks torch for fp32, as decoders' norms and softmaxes do, gets float64."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Wide(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            if func is torch.Tensor.float:
                return args[0].double()
            kwargs = {name: _widened(value) for name, value in (kwargs or {}).items()}
            return func(*map(_widened, args), **kwargs)

    return Wide()


def _widened(value: Any) -> Any:
    import torch

    return torch.float64 if value is torch.float32 else value


def said_by(model: Any, tokenizer: Any, names: Sequence[str]) -> dict[str, Any]:
    """What must come back beside weights: the configuration's `names`, special tokens, whether embeddings are tied."""
    config = {name: getattr(model.config, name, None) for name in names}
    specials = {name: [token, tokenizer.convert_tokens_to_ids(token)] for name, token in _specials(tokenizer).items()}
    return json.loads(json.dumps({**config, **specials, TIED: _tied(model)}))


def _specials(tokenizer: Any) -> Mapping[str, str]:
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}


def _tied(model: Any) -> bool | None:
    """Whether the output layer is the table of embeddings; None where there is none to ask."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if output is None:
        return None
    return output.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def answer_file(case_file: Path) -> Path:
    return case_file.with_name("answer.json")


def main(case_file: Path, folder: Path) -> None:
    """Load the artifact, answer the case's rows and write what differs, or what failed."""
    from pefttools.models import prepare_libraries

    prepare_libraries()
    try:
        answer = _compared(case_file, folder)
    except Exception as error:  # whatever a stranger's library makes of a wrong folder
        answer = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    answer_file(case_file).write_text(json.dumps(answer), "utf-8")


def _compared(case_file: Path, folder: Path) -> dict[str, Any]:
    import torch

    case = json.loads(case_file.read_text("utf-8"))
    expected = torch.load(case_file.with_suffix(".pt"), weights_only=True)
    torch.set_num_threads(case["threads"])
    settings = recipe.load(str(folder / "recipe.yaml")).recipe
    exporter, found = exporters.parse(case["exporter"], "exporter")
    assert exporter is not None, found
    loaded = exporter.load(folder, settings)
    model, task, tokenizer, problems = loaded.model.eval(), settings.task, loaded.tokenizer, list(loaded.problems)
    told = said_by(model, tokenizer, case["config"])
    for name, value in case["said"].items():
        if name == TIED and told[name] is None:  # a graph has no weights to ask
            continue
        if told.get(name) != value:
            problems.append(f"the artifact's {name} is {told.get(name)!r}, the trained model's {value!r}")
    logits = exact_logits(model, task, case["rows"], tokenizer)
    # 8 bits round what meets the weights by what stands beside it
    alone = logits if is_quantised(model) else exact_logits(model, task, case["rows"], tokenizer, padding=False)
    inputs = columns_of(case["rows"], task, tokenizer)["input_ids"]
    facts, said = exporter.served(folder, inputs, logits)
    return {
        "max_logit_error": max(gap(each, expected["trained"]) for each in (logits, alone)),
        "loaded_error": max(gap(each, expected["written"]) for each in (logits, alone)),
        "metrics": scores(model, task, case["scored"], tokenizer),
        "facts": facts,
        "problems": [*problems, *said],
    }
