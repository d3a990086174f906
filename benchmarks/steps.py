"""One training step of every strategy, variant and peft method on tiny models of many architectures, in fp32 and bf16.

    python benchmarks/steps.py                                  # run missing cells; prints a line for each
    python benchmarks/steps.py --architecture bert t5 --method lora "peft vera" --again

Each cell is one `pefttools train` on four rows. It ends in one of three ways: a finished run; a refusal (exit code 2,
one line, and no run folder); or a fault, which is a traceback, a refusal of several lines, or one that leaves files
behind. With faults, the exit code is 1. Results are written to benchmarks/results/steps.json after every architecture,
so that the same command continues after a stop; steps.md is the table.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from pefttools.compatibility import tiny_models

RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("fp32", "bf16")
SPACE = "\u0120"
"""A space in byte-level BPE."""
STEP = "step"
"""The result of a cell that has finished its step."""
LIBRARIES = ("torch", "transformers", "peft")
WORDS = [f"word{i}" for i in range(55)]
SIZES = {
    "hidden_size": 256, "intermediate_size": 512, "dim": 256, "hidden_dim": 512, "n_embd": 256, "d_model": 256,
    "d_ff": 512, "d_kv": 64, "head_dim": 64, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512, "embedding_size": 64,
}  # fmt: skip
"""Larger sizes than those of the support matrix, for which many defaults of peft are too large."""
MORE: Mapping[str, Mapping[str, Any]] = {
    "longformer": {**tiny_models.ARCHITECTURES["bert"].sizes, "attention_window": [8, 8]},
    "falcon": {"vocab_size": 60, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 2, "hidden_size": 256,
               "num_hidden_layers": 2, "num_attention_heads": 4},
}  # fmt: skip
"""Architectures besides those of the support matrix."""
TASKS = {"encoders": ("text_classification",), "decoders": ("text_classification", "causal_lm"),
         "encoder-decoders": ("text_classification", "seq2seq")}  # fmt: skip
ROWS: Mapping[str, Any] = {
    "text_classification": lambda i: {"text": _words(i), "label": ("one", "two")[i % 2]},
    "causal_lm": lambda i: {"prompt": _words(i), "completion": _words(i + 1)},
    "seq2seq": lambda i: {"source": _words(i), "target": _words(i + 1)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", nargs="+", default=[])
    parser.add_argument("--method", nargs="+", default=[], help="methods as in the table, e.g. lora or 'peft vera'")
    parser.add_argument("--again", action="store_true", help="repeat existing cells, too")
    arguments = parser.parse_args()
    file = RESULTS / "steps.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for architecture, task in models():
        if arguments.architecture and architecture not in arguments.architecture:
            continue
        name = f"{architecture} {task}"
        found = results.setdefault("cells", {}).setdefault(name, {})
        chosen = {m: o for m, o in methods().items() if not arguments.method or m in arguments.method}
        wanted = [m for m in chosen if arguments.again or m not in found]
        with tempfile.TemporaryDirectory() as place:
            for method, cell in outcomes(architecture, task, {m: chosen[m] for m in wanted}, Path(place)):
                found[method] = cell
                print(f"{name:32}{method:24}" + "  ".join(f"{p}: {o}" for p, o in cell.items()), flush=True)
        results["versions"] = {library: metadata.version(library) for library in LIBRARIES}
        file.write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "steps.md").write_text(table(results))
    sys.exit(bool(faults(results["cells"])))


def models() -> list[tuple[str, str]]:
    """All pairs of architecture and task for which transformers has a model."""
    import transformers

    from pefttools.tasks import tasks

    pairs = []
    groups = {**{name: a.group for name, a in tiny_models.ARCHITECTURES.items()}, "longformer": "encoders"}
    for name, group in {**groups, "falcon": "decoders"}.items():
        for task in TASKS[group]:
            auto: Any = getattr(transformers, tasks.get(task).auto_class)
            if type(transformers.AutoConfig.for_model(name)) in auto._model_mapping:
                pairs.append((name, task))
    return pairs


def methods() -> dict[str, list[str]]:
    """Name in the table -> overrides: every strategy, its variants, and every method of peft at its defaults."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from pefttools.strategies import strategies

    found: dict[str, list[str]] = {}
    for name in strategies.names():
        for variant, settings in {"": {}, **strategies.get(name).variants}.items():
            more = [f"strategy.{key}={_typed(value)}" for key, value in settings.items()]
            found[f"{name} {variant}".strip()] = [f"strategy={name}", *more]
    for kind in sorted(PeftType):
        virtual = "num_virtual_tokens" in PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__
        more = ["strategy.settings.num_virtual_tokens=4"] if virtual else []
        found[f"peft {kind.value.lower()}"] = ["strategy=peft", f"strategy.type={kind.value}", *more]
    return found


def outcomes(
    architecture: str, task: str, chosen: Mapping[str, list[str]], place: Path
) -> Iterable[tuple[str, dict[str, str]]]:
    """Each method with its outcome in each precision."""
    recipe = write_recipe(architecture, task, place)
    for method, overrides in chosen.items():
        cell = {}
        for precision in PRECISIONS:
            cell[precision] = outcome([str(recipe), *overrides, f"train.precision={precision}"], place / "run")
        yield method, cell


def outcome(words: list[str], out: Path) -> str:
    """The outcome of one training run: `step`, `refused: WHY` or `FAULT: WHAT`; removes its folder."""
    from pefttools import cli

    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr), redirect_stdout(io.StringIO()):
            code = cli.run(["train", *words, "--out", str(out)])
    except Exception as error:
        return f"FAULT: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    finally:
        left, result = out.exists(), out / "result.json"
        steps = json.loads(result.read_text())["train"]["steps"] if result.exists() else None
        shutil.rmtree(out, ignore_errors=True)
    if code == 0:
        return STEP if steps in (0, 1) else f"FAULT: {steps} steps"
    lines = [line for line in stderr.getvalue().splitlines() if line.startswith("error: ")]
    if left or len(lines) != 1:
        return f"FAULT: exit code {code}, {len(lines)} lines{', and a folder is left' if left else ''}: {lines[:2]}"
    return f"refused: {lines[0].removeprefix('pefttools: ').replace(str(out.parent) + '/', '')}"


def write_recipe(architecture: str, task: str, place: Path) -> Path:
    """Write a tiny checkpoint with its tokenizer, rows, and a recipe that takes one step on four rows."""
    import torch
    import transformers

    from pefttools.bases.loading import prepare_libraries
    from pefttools.tasks import tasks

    prepare_libraries()
    sizes: Any = MORE.get(architecture) or tiny_models.ARCHITECTURES[architecture].sizes
    sizes = {**sizes, **{name: size for name, size in SIZES.items() if name in sizes}}
    config = transformers.AutoConfig.for_model(architecture, **sizes)
    torch.manual_seed(0)
    model: Any = getattr(transformers, tasks.get(task).auto_class).from_config(config)
    folder = place / architecture
    (model if task != "text_classification" else model.base_model).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    files = {}
    for split, numbers in {"train": range(4), "validation": range(4, 6), "test": range(6, 8)}.items():
        files[split] = str(place / f"{split}.jsonl")
        rows = (json.dumps(ROWS[task](i)) + "\n" for i in numbers)
        Path(files[split]).write_text("".join(rows), "utf-8")
    values = {
        "base": str(folder), "data": files, "strategy": "lora",
        "task": {"name": task, **({} if task == "text_classification" else {"max_new_tokens": 4})},
        "train": {"epochs": 1, "batch_size": 4, "trackers": [], "log_every": 1},
    }  # fmt: skip
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values), "utf-8")
    return recipe


def tokenizer() -> Any:
    """A byte-level BPE tokenizer, as which transformers loads some tokenizers anyway; its ids fit the tiny sizes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "</s>", "<s>", "<mask>"]
    pieces = [*"word0123456789", SPACE, "wo", "wor", "word", f"{SPACE}word"]
    merges = [("w", "o"), ("wo", "r"), ("wor", "d"), (SPACE, "word")]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*special, *pieces])}, merges, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "mask_token": "<mask>"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=48, model_input_names=inputs, **names)


def _typed(value: Any) -> str:
    """A setting as on the command line: texts as they are, anything else as YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def _words(number: int) -> str:
    return " ".join(WORDS[(number * 7 + i) % len(WORDS)] for i in range(4 + number % 3))


def faults(cells: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[str]:
    return [
        f"{model}, {method}, {precision}: {result}"
        for model, found in cells.items()
        for method, cell in found.items()
        for precision, result in cell.items()
        if result.startswith("FAULT")
    ]


def table(results: Mapping[str, Any]) -> str:
    """The Markdown table: a row for each method, a column for each model, and numbered refusals below."""
    cells = results["cells"]
    rows = list(dict.fromkeys(method for found in cells.values() for method in found))
    numbers: dict[str, int] = {}

    def shown(cell: Mapping[str, str] | None) -> str:
        if cell is None:
            return ""
        short = ["yes" if r == STEP else f"[{numbers.setdefault(r, len(numbers) + 1)}]" for r in cell.values()]
        return short[0] if len(set(short)) == 1 else " / ".join(short)

    lines = [f"| method | {' | '.join(cells)} |", "|---|" + "---|" * len(cells)]
    lines += [f"| {m} | " + " | ".join(shown(found.get(m)) for found in cells.values()) + " |" for m in rows]
    every = [result for found in cells.values() for cell in found.values() for result in cell.values()]
    steps, wrong = every.count(STEP), len(faults(cells))
    head = (
        "# One step of everything\n\nWritten by `python benchmarks/steps.py`: each cell is one `pefttools train` on"
        " four rows; where fp32 and bf16 differ, it is given for both (fp32 / bf16). "
        f"{len(every)} runs: {steps} finished their step, {len(every) - steps - wrong} were refused in one line before"
        f" anything was written, {wrong} had faults. "
        + ", ".join(f"{library} {version}" for library, version in results.get("versions", {}).items())
    )
    notes = [f"{number}. {result}" for result, number in numbers.items()]
    return "\n".join([head + ".", "", *lines, "", *notes]) + "\n"


if __name__ == "__main__":
    main()
