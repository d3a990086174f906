"""One process against two: every task, weights shared by the processes, and processes that are killed.

    python benchmarks/processes.py             # what is not done yet -> benchmarks/results/processes.{md,json}
    python benchmarks/processes.py --only sharded
    python benchmarks/processes.py table       # only write the table

Every task and every strategy that can be sharded trains on a tiny base with random weights, in fp32, without dropout:
in one process, in two by torchrun, in two by `accelerate launch`, and in two that share the weights (`train.shard`).
All runs of a launch follow each other in the same processes. Then a process of two is killed in a step, in a save and
in an evaluation, the run is resumed, and compared with a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import golden
from fault_injection.undisturbed import outcome
from processes_table import RESULTS, table

from pefttools import atomic, cli, signals

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
LAUNCHERS: Mapping[str, list[str]] = {
    "one": [sys.executable],
    "torchrun": TORCHRUN,
    "accelerate launch": [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    ],
    "sharded": TORCHRUN,
}  # fmt: skip
"""How the runs of a column are started."""
STRATEGIES: Mapping[str, tuple[str, ...]] = {
    "lora": (),
    "lora, dora": ("strategy.dora=true",),
    "lora, micro-batches of 2": ("train.micro_batch_size=2", "train.batch_size=7"),
    "lora, l1, l2, l2_sp": ("regularizers=[l1,l2,l2_sp]",),
    "lora, class_weights, focal, label_smoothing": ("objectives=[class_weights,focal,label_smoothing]",),
    "adapter": ("strategy=adapter",),
    "adapter, houlsby": ("strategy=adapter", "strategy.variant=houlsby"),
    "bitfit": ("strategy=bitfit",),
    "full": ("strategy=full", "train.learning_rate=0.001"),
    "full, gradient checkpointing": ("strategy=full", "train.learning_rate=0.001", "train.gradient_checkpointing=true"),
    "top_layers": ("strategy=top_layers", "strategy.layers=1"),
    "layer_norm": ("strategy=layer_norm",),
    "ia3": ("strategy=ia3",),
}
"""Name of a row -> overrides."""
WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
"""The base whose weights are measured."""
KILLS = {
    "false": [(place, rank) for place in ("step", "save", "evaluation") for rank in ("0", "1")],
    "true": [("save", "1")],
}
"""`train.shard` -> where a process is killed, and which one."""
KILLED = ("train.epochs=6", "train.checkpoint_steps=2")


def main() -> None:
    if sys.argv[1:2] == ["inside"]:  # in a launch that this script has started
        return inside(Path(sys.argv[2]))
    if sys.argv[1:2] == ["dying"]:
        return dying(sys.argv[2], sys.argv[3], sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("table",))
    parser.add_argument("--only", choices=(*LAUNCHERS, "kills"))
    parser.add_argument("--out", type=Path, default=Path("runs/processes"))
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    if arguments.what is None:
        cases = dict(tiny_cases(out))
        for how in LAUNCHERS if arguments.only is None else [arguments.only]:
            if how in LAUNCHERS:
                compare(out, how, cases)
        if arguments.only in (None, "kills"):
            atomic.write_json(out / "kills.json", list(kills(out, cases["strategy lora"][0])))
    atomic.write_json(RESULTS / "processes.json", collected(out))
    atomic.write_text(RESULTS / "processes.md", "\n".join(table(collected(out))) + "\n")
    return None


def tiny_cases(out: Path) -> Iterator[tuple[str, list[str]]]:
    """Name -> recipe and overrides, for every task and every strategy that can be sharded."""
    from pefttools.tasks import tasks

    common = ["base.dropout=0"]
    for name in tasks.names():
        task = tasks.get(name)
        rows = [dict(sample) for sample in task.samples] * 4
        architecture = golden.ARCHITECTURES.get(task.auto_class, "bert")
        recipe = out / "recipes" / f"{architecture}-{name}" / "recipe.yaml"
        if not recipe.exists():
            golden.write_recipe(out / "recipes", architecture, name, rows, {"max_length": 32, **task.sample_settings})
        yield f"task {name}", [str(recipe), *common]
    place, rows = out / "recipes" / "rows", [golden.row(i) for i in range(60)]
    recipe = place / "bert-text_classification" / "recipe.yaml"
    if not recipe.exists():
        golden.write_recipe(place, "bert", "text_classification", rows, {"max_length": 32})
    for name, overrides in STRATEGIES.items():
        yield f"strategy {name}", [str(recipe), *common, *overrides]
    wide = place / "wide" / "bert-text_classification" / "recipe.yaml"
    if not wide.exists():
        golden.SIZES = {**golden.SIZES, "bert": WIDE}
        golden.write_recipe(place / "wide", "bert", "text_classification", rows, {"max_length": 32})
    for name in ("lora", "adapter", "bitfit", "full"):
        yield f"wide {name}", [str(wide), *common, *STRATEGIES[name], "train.epochs=1"]


def compare(out: Path, how: str, cases: Mapping[str, list[str]]) -> None:
    """Train all cases that are not finished, in one launch."""
    more = ["train.shard=true"] if how == "sharded" else []
    orders = {name: [*words, *more, "--out", str(out / how / name)] for name, words in cases.items()}
    waiting = {name: words for name, words in orders.items() if not (out / how / name / "result.json").exists()}
    for name in waiting:
        shutil.rmtree(out / how / name, ignore_errors=True)
    atomic.write_json(out / "orders.json", list(waiting.values()))
    print(f"{how}: {len(waiting)} runs", flush=True)
    launched([*LAUNCHERS[how], __file__, "inside", str(out / "orders.json")], check=True)


def launched(command: list[str], check: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    found = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if check and found.returncode:
        raise SystemExit(f"{' '.join(command)}\n{found.stderr[-3000:]}")
    return found


def inside(orders: Path) -> None:
    """Train in a process of a launch, run by run."""
    for words in json.loads(orders.read_text("utf-8")):
        if code := cli.run(["train", *words]):
            sys.exit(code)


def kills(out: Path, recipe: str) -> Iterator[dict[str, Any]]:
    """Kill a process of two, resume, and compare; then resume in one process, which is refused."""
    for shard, cases in KILLS.items():
        words = [recipe, *KILLED, f"train.shard={shard}"]
        whole = out / "kills" / f"alone-{shard}"
        if not (whole / "result.json").exists():
            launched([*TORCHRUN, "-m", "pefttools", "train", *words, "--out", str(whole)], check=True)
        for place, rank in cases:
            yield killed(out / "kills" / "killed", whole, words, rank, place) | {"shard": shard == "true"}
    unequal = out / "kills" / "unequal"
    shutil.rmtree(unequal, ignore_errors=True)
    launched([*TORCHRUN, __file__, "dying", "1", "step", "train", recipe, *KILLED, "--out", str(unequal)])
    found = launched([sys.executable, "-m", "pefttools", "train", recipe, *KILLED, "--out", str(unequal), "--resume"])
    yield {"place": "resumed in one process", "codes": [found.returncode], "errors": errors(found.stderr)}


def killed(run: Path, whole: Path, words: list[str], rank: str, place: str) -> dict[str, Any]:
    """Kill a process in a place, and resume the run."""
    shutil.rmtree(run, ignore_errors=True)
    command = ["train", *words, "--out", str(run)]
    found = launched([*TORCHRUN, __file__, "dying", rank, place, *command])
    codes = re.findall(r"rank +: (\d).*\n +exitcode +: (-?\d+)", found.stderr)
    again = launched([*TORCHRUN, "-m", "pefttools", *command, "--resume"])
    wrong = [key for key, value in outcome(whole).items() if outcome(run)[key] != value] if not again.returncode else []
    case = {
        "place": place, "killed": int(rank), "codes": sorted(codes), "launcher": found.returncode,
        "errors": errors(found.stderr), "resumed": again.returncode, "wrong": wrong,
    }  # fmt: skip
    print(case, flush=True)
    return case


def errors(text: str) -> list[str]:
    """What pefttools reported, without paths of this machine."""
    return [re.sub(r"/\S+/(?=kills/)", "", line) for line in text.splitlines() if line.startswith("error:")]


def dying(rank: str, place: str, words: list[str]) -> None:
    """Run a command; process `rank` kills itself in a place, after two checkpoints or so."""
    from pefttools.training import evaluation, loop, state_files

    owner, name, number = {
        "step": (loop.Loop, "step", 6),
        "save": (state_files, "save", 3 if rank == "1" else 4),
        "evaluation": (evaluation.Evaluator, "outputs", 4),
    }[place]
    plain, calls = getattr(owner, name), iter(range(1, sys.maxsize))

    def dies(*values: Any, **named: Any) -> Any:
        if next(calls) == number and os.environ["RANK"] == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*values, **named)

    setattr(owner, name, dies)
    signals.install()
    sys.exit(cli.run(words))


def collected(out: Path) -> dict[str, Any]:
    """The losses, scores and bytes of all finished runs, and the kills."""
    found: dict[str, Any] = {"runs": {}, "kills": []}
    for how in LAUNCHERS:
        for result_file in sorted((out / how).glob("*/result.json")):
            run, result = result_file.parent, json.loads(result_file.read_text("utf-8"))
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
            found["runs"].setdefault(run.name, {})[how] = {
                "losses": [line["loss"] for line in lines if "loss" in line],
                "validation": numbers(result["validation"]), "test": numbers(result["test"] or {}),
                "weight_bytes": result["train"]["weight_bytes"],
            }  # fmt: skip
    if (out / "kills.json").exists():
        found["kills"] = json.loads((out / "kills.json").read_text("utf-8"))
    return found


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


if __name__ == "__main__":
    main()
