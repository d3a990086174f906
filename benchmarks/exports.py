"""Measurements of exports: every mergeable strategy and every exporter, on small real models.

    python benchmarks/exports.py merges       # strategies x {classification, tagging, causal LM}, float32 and bfloat16
    python benchmarks/exports.py quantised    # QLoRA on MiniLM and SmolLM2: loss, memory, both merge routes
    python benchmarks/exports.py onnx         # every task of encoders; speed of a run and of its ONNX file
    python benchmarks/exports.py gguf         # SmolLM2 in every dtype, read by transformers and by llama.cpp
    python benchmarks/exports.py stranger     # a merged model under plain transformers, without pefttools
    python benchmarks/exports.py stream       # `predict` on files of ten thousand and a million lines: memory, order

Every result is saved in OUT at once, so the same command continues after a stop; OUT/exports.md is the table. SmolLM2
is trained on GSM8K, a file with `question` and `answer` in FILES/gsm8k.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from export_runs import answering, command, exported, picked, picked_or_reason, small, trained
from export_tables import DTYPES, tables

ROOT = Path(__file__).resolve().parents[1]
MERGED_TASKS = ("text_classification", "token_classification", "causal_lm")

MORE = {("causal_lm", "top_layers"): ["strategy.layers=2"]}
"""Overrides where a strategy's default is impossible: a language model has no new head that could be trained alone."""

ENCODERS = (
    "text_classification", "regression", "token_classification", "relation_extraction", "question_answering",
    "multiple_choice", "masked_lm",
)  # fmt: skip
ROUNDS = 5
"""Number of timed rounds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["merges", "quantised", "onnx", "gguf", "stranger", "stream", "table"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--files", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--only", nargs="*", help="only these strategies")
    arguments = parser.parse_args()
    file = arguments.out / "exports.json"
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    made = {
        "merges": merges, "quantised": quantised, "onnx": onnx, "gguf": gguf, "stranger": stranger, "stream": stream,
        "table": table,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        for key, measure in made[arguments.what](Path(scratch), arguments):
            if key not in rows:
                print(key, flush=True)
                rows[key] = measure()
                print("   ", json.dumps(rows[key]), flush=True)
                file.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    (arguments.out / "exports.md").write_text(tables(rows), "utf-8")


Rows = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def merges(scratch: Path, arguments: argparse.Namespace) -> Rows:
    """Every mergeable strategy with default settings after a few steps on sample rows; SmolLM2 on 64 rows of GSM8K."""
    from pefttools.errors import UserError
    from pefttools.strategies import strategies

    names = [name for name in strategies.names() if strategies.get(name)().mergeable]
    for task in MERGED_TASKS:
        for name in arguments.only or names:
            if name == "frozen":
                continue

            def measure(task: str = task, name: str = name, files: Path = arguments.files) -> dict[str, Any]:
                words = [f"strategy={name}", *MORE.get((task, name), ())]
                try:
                    run = trained(scratch, task, *words) if task != "causal_lm" else answering(scratch, files, *words)
                except UserError as error:
                    return {"reason": error.problems[0]}
                found = {dtype: picked_or_reason(run, dtype) for dtype in DTYPES}
                shutil.rmtree(run)
                return found

            yield f"merge {task} {name}", measure


def quantised(scratch: Path, arguments: argparse.Namespace) -> Rows:
    """The same LoRA on each base in fp32 and quantised: losses, memory, and the error of merging."""
    recipes = {"MiniLM": "question-type-lora", "SmolLM2": "gsm8k-smollm2-lora"}
    for model, recipe in recipes.items():
        for kind in ("null", "nf4", "fp4", "int8"):

            def measure(recipe: str = recipe, kind: str = kind) -> dict[str, Any]:
                words = [recipe, f"base.quantize={kind}", *small(recipe, arguments.files)]
                run = scratch / f"{recipe}-{kind}"
                result = json.loads(command("train", *words, "--out", str(run), "--json"))
                losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
                seen = [line["loss"] for line in losses if "loss" in line]
                planned = json.loads(command("plan", *words, "--json"))
                merged = exported(run, "merged")
                shutil.rmtree(run)
                return {
                    "first_loss": statistics.fmean(seen[:5]), "last_loss": statistics.fmean(seen[-5:]),
                    "test": result["test"][merged["metric"]], "metric": merged["metric"],
                    "weight_bytes": planned["bytes"]["weights"], "peak_bytes": result["train"]["peak_bytes"],
                    "step_seconds": result["train"]["step_seconds"] / result["train"]["steps"],
                    "routes": merged.get("routes"), "route": merged.get("route"), **picked(merged),
                }  # fmt: skip

            yield f"quantised {model} {kind.replace('null', 'fp32')}", measure


def stream(scratch: Path, arguments: argparse.Namespace) -> Rows:
    """Peak memory of `predict` on a merged folder by number of lines, and whether predictions keep the lines' order."""
    del arguments
    for number in (10_000, 1_000_000):

        def measure(number: int = number) -> dict[str, Any]:
            run = trained(scratch, "text_classification")
            exported(run, "merged")
            inputs, outputs = scratch / "inputs.jsonl", scratch / "outputs.jsonl"
            with inputs.open("w") as file:
                file.writelines(json.dumps({"text": f"{i} {'apple ' * (1 + i % 7)}"}) + "\n" for i in range(number))
            words = [sys.executable, "-m", "pefttools", "predict", str(run / "export/merged"), str(inputs)]
            started = time.perf_counter()
            with outputs.open("w") as file:
                process = subprocess.Popen(words, stdout=file)
                _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            assert status == 0, status
            with outputs.open() as file:
                in_place = sum(json.loads(line)["text"].split()[0] == str(i) for i, line in enumerate(file))
            return {"rows": number, "in_place": in_place, "peak_bytes": 1024 * usage.ru_maxrss, "seconds": seconds}

        yield f"stream {number}", measure


def table(scratch: Path, arguments: argparse.Namespace) -> Rows:
    """No measurement; only the tables of existing results are written."""
    del scratch, arguments
    return iter(())


def onnx(scratch: Path, arguments: argparse.Namespace) -> Rows:
    """Every task of encoders, and the speed of the question-type model and its ONNX file."""
    del arguments
    for task in ENCODERS:
        yield f"onnx {task}", lambda task=task: picked(exported(trained(scratch, task), "onnx"))
    yield "onnx question-type-lora", lambda: _timed(scratch)


def gguf(scratch: Path, arguments: argparse.Namespace) -> Rows:
    """A merged SmolLM2 in every dtype of GGUF."""
    for dtype in ("float32", "bfloat16", "float16", "q8_0"):

        def measure(dtype: str = dtype) -> dict[str, Any]:
            run = scratch / "smollm2"
            if not run.is_dir():
                answering(scratch, arguments.files).rename(run)
            manifest = exported(run, "gguf", f"dtype={dtype}")
            size = (run / "export" / "gguf" / "model.gguf").stat().st_size
            return {**picked(manifest), "llama_cpp": manifest["llama_cpp"], "bytes": size}

        yield f"gguf {dtype}", measure


def _timed(scratch: Path) -> dict[str, Any]:
    """Rows a second of the run in bf16 and fp32 and of its ONNX file, on test rows; medians over alternating rounds."""
    from pefttools.data.splitting import load_splits
    from pefttools.inference.predictor import load_predictor

    run = scratch / "question-type"
    command("train", "question-type-lora", "--out", str(run), "--json")
    manifest = exported(run, "onnx")
    predictors = {
        "torch bf16": load_predictor(run, "bf16"), "torch fp32": load_predictor(run, "fp32"),
        "onnxruntime fp32": load_predictor(run / "export" / "onnx", "fp32"),
    }  # fmt: skip
    recipe = predictors["torch fp32"].recipe
    rows = [recipe.task.read_unlabeled(row) for row in load_splits(recipe.data, recipe.task).test]
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(ROUNDS + 1):  # the first warms up
        for name, predictor in predictors.items():
            started = time.perf_counter()
            predictor.predict(rows)
            seconds[name].append(time.perf_counter() - started)
    speed = {name: len(rows) / statistics.median(values[1:]) for name, values in seconds.items()}
    ratios = [torch / other for torch, other in zip(*(seconds[n][1:] for n in list(predictors)[1:]), strict=True)]
    return {**picked(manifest), "rows_per_second": speed, "onnx_over_fp32": statistics.median(ratios)}


ASK = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
try:
    import pefttools
    raise SystemExit("pefttools is here")
except ImportError:
    pass
folder, rows = sys.argv[1], json.load(open(sys.argv[2]))
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in rows]
print(json.dumps([row.softmax(-1).tolist() for row in logits]))
"""


def stranger(scratch: Path, arguments: argparse.Namespace) -> Rows:
    """Predictions on test rows by plain transformers in a new virtual environment, compared with those of pefttools."""
    del arguments

    def measure() -> dict[str, Any]:
        from pefttools.data.splitting import load_splits
        from pefttools.inference.prediction import predict_rows
        from pefttools.training.run import Run

        run = scratch / "question-type"
        command("train", "question-type-lora", "--out", str(run), "--json")
        exported(run, "merged")
        recipe = Run(run).recipe()
        texts = [row["text"] for row in load_splits(recipe.data, recipe.task).test]
        (scratch / "rows.json").write_text(json.dumps(texts), "utf-8")
        (scratch / "ask.py").write_text(ASK, "utf-8")
        python = scratch / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", str(scratch / "venv")], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
        for package in ("torch", "transformers"):
            subprocess.run([*pip, package], check=True, capture_output=True)
        done = subprocess.run(
            [str(python), str(scratch / "ask.py"), str(run / "export/merged"), str(scratch / "rows.json")],
            check=True, capture_output=True, text=True, cwd=scratch, env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip
        theirs = json.loads(done.stdout.splitlines()[-1])
        ours = [
            list(a["probabilities"].values()) for a in predict_rows(run, [{"text": t} for t in texts], precision="fp32")
        ]
        gaps = [max(abs(a - b) for a, b in zip(x, y, strict=True)) for x, y in zip(ours, theirs, strict=True)]
        same = [x.index(max(x)) == y.index(max(y)) for x, y in zip(ours, theirs, strict=True)]
        return {"rows": len(texts), "same_label": sum(same), "max_probability_difference": max(gaps)}

    yield "stranger question-type-lora", measure


if __name__ == "__main__":
    main()
