"""The peak memory that `pefttools plan` estimates, compared with the peak resident memory of real steps.

    OMP_NUM_THREADS=2 python benchmarks/memory.py [--strategy lora] [--precision bf16] [--objective freelb] [--force]

Every strategy and each of its variants, on MiniLM, with two batch sizes and two lengths. A row of the table needs two
new processes: one for the plan, and one that loads the model, evaluates full rows as a run does before training, takes
steps with pefttools' own loop, and evaluates again; its peak is the kernel's VmHWM. Rows that are already in
benchmarks/results/memory.json are not repeated, so the same command continues after a stop; --force measures again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from pefttools import atomic

RESULTS = Path(__file__).parent / "results"
RECIPE = "question-type-lora"
BATCHES, LENGTHS, STEPS, ROWS, MIB = (8, 32), (32, 128), 4, 64, 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", action="append", help="measure only this strategy; can be repeated")
    parser.add_argument(
        "--precision", action="append", choices=("fp32", "bf16"), help="by default fp32; can be repeated"
    )
    parser.add_argument("--objective", help="with this objective")
    parser.add_argument("--defaults", action="store_true", help="measure default settings only, no variants")
    parser.add_argument("--force", action="store_true", help="repeat existing measurements")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        sys.stdout.write(json.dumps(measured(json.loads(options.worker))))
        return
    file = RESULTS / "memory.json"
    rows: dict[str, Any] = json.loads(file.read_text())["rows"] if file.exists() else {}
    for name, overrides in settings(options):
        if name in rows and not options.force:
            continue
        rows[name] = {"overrides": overrides, **compared(overrides)}
        sys.stderr.write(line(name, rows[name]) + "\n")
        RESULTS.mkdir(exist_ok=True)
        atomic.write_json(file, {"machine": machine(), "rows": dict(sorted(rows.items()))})
    text = report(rows)
    (RESULTS / "memory.md").write_text(text)
    sys.stdout.write(text)


def settings(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """The name and the overrides of each row."""
    from pefttools.strategies import strategies

    objectives = [f"objectives={options.objective}"] if options.objective else []
    for strategy in options.strategy or strategies.names():
        kind = strategies.get(strategy)
        if not kind.trains:
            continue
        variants = {"": {}} if options.defaults else {"": {}, **kind.variants}
        for (variant, values), precision, batch, length in itertools.product(
            variants.items(), options.precision or ["fp32"], BATCHES, LENGTHS
        ):
            chosen = [f"strategy.{key}={json.dumps(value)}" for key, value in values.items()]
            title = f"{strategy}/{variant}" if variant else strategy
            title += f" with {options.objective}" if options.objective else ""
            yield (
                f"{title} {precision} {batch}x{length}",
                [
                    *objectives, f"strategy={strategy}", *chosen, f"train.precision={precision}",
                    f"task.max_length={length}",
                    f"train.batch_size={batch}", f"train.micro_batch_size={batch}", "train.micro_batch_tokens=1000000",
                    "train.trackers=[]",
                ],
            )  # fmt: skip


def compared(overrides: list[str]) -> dict[str, Any]:
    """Planned and measured bytes."""
    plan = json.loads(run_python("-m", "pefttools", "plan", RECIPE, *overrides, "--json"))["bytes"]
    return {"plan": plan, "measured": json.loads(run_python(__file__, "--worker", json.dumps(overrides)))}


def run_python(*arguments: str) -> str:
    """The standard output of a new Python process."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stderr}")
    return done.stdout


def measured(overrides: list[str]) -> dict[str, int]:
    """Peak resident bytes of this process during loading, evaluation and steps."""
    from pefttools.bases import loading
    from pefttools.data.batching import step_multiple
    from pefttools.data.splitting import load_splits
    from pefttools.device import device_type, precision_of
    from pefttools.nn.first_token import last_block
    from pefttools.objectives._composition import composed, need_plain_autograd
    from pefttools.objectives.base import Context
    from pefttools.recipe import recipes
    from pefttools.reporter import SILENT
    from pefttools.training import optimizer_setup, speedups, wrapping
    from pefttools.training.evaluation import Evaluator
    from pefttools.training.loop import Loop
    from pefttools.training.micro_batches import MicroBatches
    from pefttools.training.penalties import Penalties
    from pefttools.training.process import accelerator_for
    from pefttools.training.run import Run

    made = recipes.load(RECIPE, overrides).recipe
    splits = load_splits(made.data, made.task)
    made = made.model_copy(update={"task": (task := made.task.fit(splits))})
    loading.prepare_libraries()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        accelerator = accelerator_for(made, run, 0)
        base = wrapping.load_base(made)  # as `preparation.prepare` does, without tokenizing every row
        model = wrapping.wrap(made, base)
        multiple = step_multiple(made.train.pad_multiple, device_type())
        length = min(task.max_length, base.tokenizer.model_max_length)
        rows = full_rows(task.encode(splits.train[:1], base.tokenizer), length)
        batch = task.collate(rows[: made.train.batch_size], base.tokenizer, multiple)
        made.strategy.start(model, [{name: value for name, value in batch.items() if name != "labels"}] * 2)
        penalties = Penalties.bind(made, base, model)

        evaluator = Evaluator(model, task, base.tokenizer)
        deque(evaluator.outputs(rows, range(ROWS)), maxlen=0)
        optimizer = optimizer_setup.build(model, made.strategy, made.train)
        last = last_block(model, task.inputs_of(batch))
        prepared, optimizer = accelerator.prepare(model, optimizer)
        batches = MicroBatches(made, prepared, model, rows, base.tokenizer, accelerator)
        plain, precision = need_plain_autograd(made.objectives), precision_of(made.train.precision)
        objectives = composed(made.objectives, Context(task, made.strategy, base, model, precision=precision))
        loop = Loop(made, model, optimizer, batches, accelerator, run, dict, bool, SILENT, penalties, objectives)
        model.train()
        with speedups.steps(model, made.train, device_type(), precision, last, plain):
            for _ in range(STEPS):
                loop.step()
            deque(evaluator.outputs(rows, range(ROWS)), maxlen=0)
        return {"peak": peak_bytes()}


def full_rows(encoded: dict[str, list[Any]], length: int) -> Any:
    """A data set of `ROWS` times the first encoded row, whose lists are extended to this length."""
    import datasets

    tokens = len(encoded["input_ids"][0])
    full = {
        name: [values[0][min(i, tokens - 1)] for i in range(length)] if isinstance(values[0], list) else values[0]
        for name, values in encoded.items()
    }
    full["length"] = length
    return datasets.Dataset.from_dict({name: [value] * ROWS for name, value in full.items()})


def peak_bytes() -> int:
    """Peak resident bytes of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def error(row: dict[str, Any]) -> float:
    return row["plan"]["peak"] / row["measured"]["peak"] - 1


def tensor_error(row: dict[str, Any]) -> float:
    """The relative error of the estimate without the part `process`."""
    process = row["plan"]["process"]
    return (row["plan"]["peak"] - process) / (row["measured"]["peak"] - process) - 1


def line(name: str, row: dict[str, Any]) -> str:
    plan, real = row["plan"], row["measured"]
    parts = " | ".join(f"{plan[part] / MIB:,.0f}" for part in plan if part != "peak")
    return (
        f"| {name} | {parts} | {plan['peak'] / MIB:,.0f} | {real['peak'] / MIB:,.0f}"
        f" | {error(row):+.1%} | {tensor_error(row):+.1%} |"
    )


def report(rows: dict[str, Any]) -> str:
    parts = [part for part in next(iter(rows.values()))["plan"] if part != "peak"]
    errors = [abs(error(row)) for row in rows.values()]
    return "\n".join(
        [
            "# Peak memory: planned and measured",
            "",
            f"`OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python {' '.join(sys.argv)}`, {machine()}.",
            f"MiB; MiniLM, recipe {RECIPE}, rows x tokens at once. The last column is the error without `process`.",
            "",
            f"{len(rows)} rows; error at most {max(errors):.1%}, on average {sum(errors) / len(errors):.1%};"
            f" {sum(e > 0.15 for e in errors)} beyond 15%.",
            "",
            f"| row | {' | '.join(parts)} | planned | measured | error | tensors alone |",
            "|---|" + "---:|" * (len(parts) + 4),
            *(line(name, row) for name, row in rows.items()),
            "",
        ]
    )


def machine() -> str:
    versions = " ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    return f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}, {versions}"


if __name__ == "__main__":
    main()
