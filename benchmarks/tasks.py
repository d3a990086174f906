"""Every task on real data sets: the baseline, top_layers, bitfit, lora and full.

    python benchmarks/tasks.py --files FOLDER                     # everything: hours on two cores
    python benchmarks/tasks.py --files FOLDER --data stsb --rows lora --seeds 0

FOLDER contains the sets as their authors publish them: banking77/{train,test}.csv, stsb/stsb-en-{train,dev,test}.csv,
snips/{train,valid,test}.{seq.in,seq.out,label}, semeval2010_task8/{train,test}.tsv,
wnut17/{wnut17train.conll,emerging.dev.conll,emerging.test.annotated}, xquad/xquad.{en,zh}.json,
gsm8k/{train,test}.jsonl, tatoeba_en_zh/cmn.txt, and people.conll as benchmarks/chinese_ner.py writes it. Finished
trials are not repeated, and killed ones continue. The table and the results are written to
benchmarks/results/tasks.{md,json}; they contain the finished trials.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trials import RESULTS, Trial, add_arguments, run_all


@dataclass(frozen=True)
class Set:
    """One data set: the recipe, its overrides, and the metric."""

    recipe: str
    overrides: tuple[str, ...]
    metric: str
    rows: tuple[str, ...] = ("top_layers", "bitfit", "lora", "full")
    lower: bool = False

    def command(self, files: Path) -> tuple[str, ...]:
        return (self.recipe, *(override.replace("@", f"{files}/") for override in self.overrides))


def conll(name: str) -> str:
    return f"{{source: '@wnut17/{name}', format: conll}}"


def stsb(part: str) -> str:
    return f"{{source: '@stsb/stsb-en-{part}.csv', header: [text, text_pair, label]}}"


def snips(part: str, **endings: str) -> str:
    others = ", ".join(f"{column}: '@snips/{part}.{ending}'" for column, ending in endings.items())
    return f"{{source: '@snips/{part}.seq.in', format: lines, parallel_files: {{{others}}}}}"


def semeval(part: str) -> str:
    return f"{{source: '@semeval2010_task8/{part}.tsv', header: [label, text], quotes: false}}"


SHORT = "task.max_length=64"
"""Override for short texts, because with another file the task's own default applies."""
SETS = {
    "banking77": Set(
        "banking77-lora", ("data.train=@banking77/train.csv", "data.test=@banking77/test.csv",
                           "data.columns.label=category", SHORT), "accuracy",
        ("top_layers", "bitfit", "lora", "full", "scratch"),
    ),
    "snips-intents": Set(
        "banking77-lora", (*(f"data.{name}={snips(part, label='label')}" for name, part in
                             (("train", "train"), ("validation", "valid"), ("test", "test"))), "train.epochs=1", SHORT),
        "accuracy",
    ),
    "stsb": Set(
        "stsb-lora", (*(f"data.{name}={stsb(part)}" for name, part in
                        (("train", "train"), ("validation", "dev"), ("test", "test"))), "task.max_length=128"),
        "pearson",
    ),
    "semeval2010-8": Set(
        "semeval2010-task8-lora", (*(f"data.{name}={semeval(name)}" for name in ("train", "test")),
                                   "task.max_length=128"), "f1",
    ),
    "snips-slots": Set(
        "wnut17-lora", (*(f"data.{name}={snips(part, tags='seq.out')}" for name, part in
                          (("train", "train"), ("validation", "valid"), ("test", "test"))),
                        "data.columns.tokens=text", "train.epochs=4", SHORT), "f1",
    ),
    "wnut17": Set(
        "wnut17-lora", (*(f"data.{name}={conll(file)}" for name, file in
                          (("train", "wnut17train.conll"), ("validation", "emerging.dev.conll"),
                           ("test", "emerging.test.annotated"))), SHORT), "f1",
    ),
    "xquad-en": Set("xquad-en-lora", ("data.train=@xquad/xquad.en.json", "data.test_share=0.2"), "f1"),
    "people-zh": Set("wnut17-lora", ("data.train=@people.conll", SHORT), "f1", ("lora",)),
    "xquad-zh": Set("xquad-en-lora", ("data.train=@xquad/xquad.zh.json", "data.test_share=0.2"), "f1", ("lora",)),
    "gsm8k": Set(
        "gsm8k-smollm2-lora", ("data.train=@gsm8k/train.jsonl",
                               "data.test={source: '@gsm8k/test.jsonl', last_rows: 100}",
                               "data.columns.prompt=question", "data.columns.completion=answer", "train.epochs=1",
                               "data.train_rows=500", "data.validation_share=0.012", "task.generate_rows=16",
                               "task.max_length=384", "task.max_new_tokens=200", "task.answer_pattern=#### (.+)"),
        "perplexity", ("top_layers-2", "lora", "full"), True,
    ),
    "en-zh": Set(
        "en-es-smollm2-lora", ("data.train={source: '@tatoeba_en_zh/cmn.txt', format: tsv, quotes: false,"
                               " header: [prompt, completion, credit]}", "data.train_rows=500",
                               "data.validation_share=0.004", "data.test_share=0.006", "task.generate_rows=32",
                               "task.max_length=128", "task.max_new_tokens=48",
                               "task.system=Translate the text from English to Chinese."),
        "perplexity", ("top_layers-2", "lora", "full"), True,
    ),
}  # fmt: skip
"""Name -> data set; `@` stands for the folder of files."""
ROWS = {
    "top_layers": ("strategy=top_layers",),
    "top_layers-2": ("strategy=top_layers", "strategy.layers=2"),
    "bitfit": ("strategy=bitfit",),
    "lora": ("strategy=lora",),
    "full": ("strategy=full",),
    "scratch": ("strategy=full", "base.init=scratch"),
}
"""Row -> overrides."""


def trials(arguments: argparse.Namespace) -> Iterator[Trial]:
    for seed in arguments.seeds:
        for data in arguments.data:
            for row in arguments.rows:
                if row in SETS[data].rows:
                    command = (*SETS[data].command(arguments.files), *ROWS[row], f"seed={seed}", "train.trackers=[]")
                    yield Trial(data, row, seed, command, arguments.out / data / f"{row}-{seed}")


def collect(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of finished trials, with file names relative to the folder."""
    found = []
    for trial in trials(arguments):
        if (result := trial.result) is None:
            continue
        shown = " ".join(trial.command).replace(f"{arguments.files}/", "FOLDER/")
        plain = ("before", "validation", "test")
        found.append(
            {
                "data": trial.data, "row": trial.row, "seed": trial.seed, "command": f"pefttools train {shown}",
                "digest": result["digest"], "params": result["params"],
                **{name: numbers(result[name]) for name in plain},
                "majority": numbers(result["before"]["majority"]),
                "rows": result["data"]["rows"], "left_out": result["data"]["left_out"],
                **{key: result["train"][key] for key in ("steps", "epochs", "seconds", "best_step", "precision")},
                "versions": result["versions"],
            }
        )  # fmt: skip
    return found


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def table(found: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown, with a row for each data set and strategy."""
    text = [
        "# Every task on real data sets",
        "",
        "`python benchmarks/tasks.py --files FOLDER`; mean over seeds, with the seeds' values in brackets. The base is"
        " all-MiniLM-L6, for gsm8k and en-zh SmolLM2-135M-Instruct. Weights were selected on validation rows; test rows"
        " were scored once. `baseline` is the base before training, with a random head where the task needs one."
        " Minutes are those of training with its evaluations, for the fastest seed: runs had one thread each and shared"
        " the machine (`--threads 1 --workers 2`), except xquad-en's lora of seed 1, which had two cores alone.",
        "",
        "| data | metric | row | test | compared with full | trained parameters | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for data, kind in SETS.items():
        own = [t for t in found if t["data"] == data]
        if not own:
            continue
        name = f"{kind.metric}{' (lower is better)' if kind.lower else ''}"
        first = own[0]
        for title, value in (
            ("baseline", first["before"].get(kind.metric)), ("majority", first["majority"].get(kind.metric)),
        ):  # fmt: skip
            if value is not None:
                text.append(f"| {data} | {name} | {title} | {value:.4f} | | 0 | |")
        means = {
            row: statistics.mean(t["test"][kind.metric] for t in own if t["row"] == row)
            for row in kind.rows
            if any(t["row"] == row for t in own)
        }
        for row, mean in means.items():
            ts = [t for t in own if t["row"] == row]
            seeds = " ".join(f"{t['test'][kind.metric]:.4f}" for t in ts)
            scale = 1 if kind.lower else 100
            against = f"{scale * (mean - means['full']):+.2f}" if "full" in means and row != "full" else ""
            minutes = min(t["seconds"] for t in ts) / 60
            text.append(
                f"| {data} | {name} | {row} | {mean:.4f} ({seeds}) | {against} | {ts[0]['params']['trainable']:,} |"
                f" {minutes:.1f} |"
            )
    sizes = {t["data"]: t["rows"] for t in found}
    text += ["", "| data | rows for training, validation, test | seeds of lora |", "|---|---|---|"]
    for data, rows in sizes.items():
        seeds = sum(t["data"] == data and t["row"] == "lora" for t in found)
        text.append(f"| {data} | {rows['train']}, {rows['validation']}, {rows['test']} | {seeds} |")
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--data", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"), help="folder for the runs")
    add_arguments(parser)
    arguments = parser.parse_args()
    arguments.files = arguments.files.absolute()
    if not arguments.collect:
        run_all(list(trials(arguments)), arguments)
    arguments.rows, arguments.seeds, arguments.data = list(ROWS), [0, 1, 2], list(SETS)
    found = collect(arguments)
    (RESULTS / "tasks.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "tasks.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
