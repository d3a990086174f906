"""The proof: a written artifact, loaded in a fresh process by what its users will load it with, answers the same.

`python -m pefttools.exporters.verify CASE FOLDER ANSWER` is that process. It tokenises the raw rows with the
artifact's own tokenizer, so that a lost token or a changed setting shows as well as a wrong weight.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.data.encoding import Encoded, columns_of
from pefttools.data.splitting import Row
from pefttools.evaluate import joined, outputs_of
from pefttools.tasks import tasks

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.tasks.base import Prediction, Task


def answers(
    model: nn.Module, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, keep: bool = True
) -> tuple[list[Tensor], list[Prediction]]:
    """Logits of every encoded row (of real tokens, where there are some a token), and what is said of every row.

    Args:
        keep: whether to keep the logits; a language model's fill the memory soon.
    """
    encoded = Encoded(columns_of(rows, task, tokenizer))
    lengths = encoded["length"]
    logits: dict[int, Tensor] = {}
    said: dict[int, Prediction] = {}
    for indices, batch, outputs in outputs_of(
        model, task, encoded.__getitem__, range(len(lengths)), lengths, tokenizer
    ):
        said.update(zip(indices, task.predict(outputs, batch), strict=True))
        if not keep:
            continue
        real = batch["attention_mask"].bool()
        for i, row, mask in zip(indices, task.logits(outputs, batch), real, strict=True):
            logits[i] = row[mask] if row.ndim > 1 and len(row) == len(mask) else row
    return [logits[i] for i in sorted(logits)], joined(task, rows, encoded, said)


def exact_logits(model: nn.Module, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """`answers`' logits in float64, where what is rounded on the way is no larger than what is looked for."""
    with _in_float64(model):
        logits, _ = answers(model, task, rows, tokenizer)
    return logits


@contextmanager
def _in_float64(model: nn.Module) -> Iterator[None]:
    """Meanwhile everything floating in `model` is float64; narrower types come back as they were."""
    import torch

    former = [(t, t.dtype) for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    for tensor, _ in former:
        tensor.data = tensor.data.to(torch.float64)
    try:
        yield
    finally:
        for tensor, dtype in former:
            tensor.data = tensor.data.to(dtype)


def load(folder: Path, loader: Mapping[str, str]) -> tuple[nn.Module, PreTrainedTokenizerBase, list[str]]:
    """The artifact's model and tokenizer as `loader` says, and what was wrong with the keys."""
    import torch
    import transformers

    problems: list[str] = []
    if loader["kind"] == "pefttools":
        from pefttools.run import load as load_trained

        trained = load_trained(folder)
        return trained.model, transformers.AutoTokenizer.from_pretrained(folder), problems
    auto = getattr(transformers, loader["auto_class"])
    if loader["kind"] == "peft":
        from peft import PeftModel

        values = json.loads(loader["config"])
        values["id2label"] = {int(i): name for i, name in values.get("id2label", {}).items()}
        torch.manual_seed(1)  # a head that was not saved must not come out right by luck
        model = auto.from_pretrained(loader["base"], dtype=torch.float32, **values)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            model = PeftModel.from_pretrained(model, str(folder))
    else:
        model, report = auto.from_pretrained(folder, output_loading_info=True)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[kind]:
                problems.append(f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, report[kind])))}")
    return model, transformers.AutoTokenizer.from_pretrained(folder), problems


def main(case_file: Path, folder: Path, answer_file: Path) -> None:
    """Load the artifact, answer the case's rows and write what differs."""
    import torch

    from pefttools.models import prepare_libraries

    prepare_libraries()
    case = json.loads(case_file.read_text("utf-8"))
    expected: list[Tensor] = torch.load(case_file.with_suffix(".pt"), weights_only=True)
    torch.set_num_threads(case["threads"])
    task, found = tasks.parse(case["task"], "task")
    assert task is not None, found
    model, tokenizer, problems = load(folder, case["loader"])
    model.eval()
    for name, value in case["config"].items():
        if (got := json.loads(json.dumps(getattr(model.config, name, None)))) != value:  # type: ignore[union-attr]
            problems.append(f"the configuration's {name} is {got!r}, the trained model's {value!r}")
    logits = exact_logits(model, task, case["rows"], tokenizer)
    errors = [
        float((a - b).abs().max()) if a.shape == b.shape else float("inf")
        for a, b in zip(logits, expected, strict=True)
    ]
    _, said = answers(model, task, case["scored"], tokenizer, keep=False)
    metrics = task.metrics(said, [task.reference(row) for row in case["scored"]])
    answer: dict[str, Any] = {"max_error": max(errors), "metrics": metrics, "problems": problems}
    answer_file.write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
