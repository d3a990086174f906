"""What `advise` costs: test regret of its recommendation against the best method found, LoRA's defaults, and full.

    python benchmarks/advice.py --files FOLDER              # hours; the same command continues
    python benchmarks/advice.py --sets spam --budgets 8m    # fewer
    python benchmarks/advice.py --collect                   # the table of what has finished

FOLDER contains the sets that benchmarks/tasks.py names. For each set and budget `advise` runs alone with its threads;
then every run that it finished, and default LoRA and full fine-tuning with seeds 0 to 2 on the same rows and steps, are
scored on the test rows. A method's score is its mean over seeds; regret is the best of the methods with two seeds or
more, in any of the set's races, minus the recommended one. Writes results/advice.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tasks import SETS as FILE_SETS
from trials import RESULTS

from pefttools import atomic
from pefttools.bench.suite import words
from pefttools.inference.scoring import evaluate_run
from pefttools.recipe import recipes

SHIPPED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "question-type": ("question-type-lora", ()),
    "spam": ("spam-lora", ()),
    "movie-sentiment": ("sentiment-lora", ()),
    "news-topic": ("news-topic-lora", ("task.max_length=128",)),
    "tweet-entities": ("ner-tweets-lora", ()),
}
"""Name -> recipe and overrides."""
FROM_FILES = ("banking77", "stsb", "semeval2010-8", "wnut17", "snips-intents")
REFERENCES, SEEDS = ("lora", "full"), (0, 1, 2)
Runs = dict[str, list[float]]
"""Method with its learning rate -> test scores, by seed."""


def advised(name: str, budget: str, arguments: argparse.Namespace) -> Path:
    """Run `advise` on a set unless it has finished; returns its folder."""
    out = arguments.out / name / budget
    if (out / "advice.json").is_file() or arguments.collect:
        return out
    recipe, overrides = SHIPPED[name] if name in SHIPPED else _of_files(name, arguments.files)
    resolved = recipes.load(recipe, overrides).recipe
    sections = {
        "data": resolved.data.model_dump(mode="json", exclude_defaults=True),
        "task": resolved.task.as_dict(),
        "base": resolved.base.model_dump(mode="json", exclude_defaults=True),
    }
    rows = str(resolved.data.train.source)
    command = [
        "advise", "--base", resolved.base.source, "--task", resolved.task.name, "--data", rows,
        "--budget", budget, "--out", str(out), *words(sections),
    ]  # fmt: skip
    _run(command, arguments.threads, out.parent / f"{budget}.log")
    return out


def _of_files(name: str, files: Path) -> tuple[str, tuple[str, ...]]:
    recipe, *overrides = FILE_SETS[name].command(files)
    return recipe, tuple(word for word in overrides if not word.startswith("train."))


def _run(command: list[str], threads: int, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, "-m", "pefttools", *command], env=environment, stdout=file, stderr=file, check=True
        )


def tested(out: Path, arguments: argparse.Namespace) -> Runs:
    """The test scores of all finished runs of a race and of the references, computed once."""
    file = out / "tested.json"
    if file.is_file() or arguments.collect:
        return json.loads(file.read_text()) if file.is_file() else {}
    found: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted((out / "trials").glob("[!.]*.json")):
        record, folder = json.loads(path.read_text()), out / "runs" / path.stem
        if record["status"] == "done" and (folder / "result.json").is_file():
            strategy = yaml.safe_load((folder / "recipe.yaml").read_text())["strategy"]
            score = evaluate_run(folder, split="test")[record["metric"]]
            found[_label(strategy, record["learning_rate"])][record["seed"]] = score
    for name in REFERENCES:
        start = recipes.load(str(out / "start.yaml"), [f"strategy={name}"]).recipe
        label = _label(start.strategy.as_dict(), start.train.learning_rate)
        for seed in SEEDS:
            if seed not in found[label]:
                run = out / "references" / f"{name}-{seed}"
                command = ["train", str(out / "start.yaml"), f"strategy={name}", f"seed={seed}", "train.trackers=[]"]
                _run([*command, "--out", str(run), "--resume"], arguments.threads, run.with_suffix(".log"))
                result = json.loads((run / "result.json").read_text())
                found[label][seed] = result["test"][start.task.primary]
    atomic.write_json(file, {label: [*scores.values()] for label, scores in found.items()})
    return json.loads(file.read_text())


def _label(strategy: Mapping[str, Any], rate: float | None) -> str:
    assert rate is not None, "a loaded recipe has its strategy's rate"
    name, layers = strategy["name"], strategy.get("layers")
    return f"{name}{f' {layers} layers' if layers else ''}, lr {rate:.3g}"


def row(name: str, budget: str, out: Path, runs: Runs, of_set: Mapping[str, float]) -> dict[str, Any]:
    """A line of the table: scores as means over seeds, regrets in points."""
    advice = json.loads((out / "advice.json").read_text())
    chosen = advice["recommended"]
    means = {label: statistics.fmean(scores) for label, scores in runs.items()}
    label = _label(chosen["strategy"], chosen["learning_rate"])
    defaults = {
        one: _label(start.strategy.as_dict(), start.train.learning_rate)
        for one in REFERENCES
        for start in [recipes.load(str(out / "start.yaml"), [f"strategy={one}"]).recipe]
    }
    best = max(of_set, key=lambda one: of_set[one])
    return {
        "set": name, "budget": budget, "metric": advice["metric"], "rows": advice["rows"], "recommended": label,
        "score": means[label], "best": best, "best_score": of_set[best],
        "regret": 100 * (max(of_set[best], means[label]) - means[label]),
        **{f"against_{one}": 100 * (means[label] - means[defaults[one]]) for one in REFERENCES},
        "lora_regret": 100 * (max(of_set[best], means[defaults["lora"]]) - means[defaults["lora"]]),
        "full_regret": 100 * (max(of_set[best], means[defaults["full"]]) - means[defaults["full"]]),
        "spent_seconds": advice["spent_seconds"], "verdict": advice["verdict"], "versions": advice["versions"],
    }  # fmt: skip


def table(rows: list[dict[str, Any]], threads: int) -> str:
    text = [
        "# What the advice costs",
        "",
        f"`python benchmarks/advice.py --files FOLDER --threads {threads}`; test scores are means over seeds, regrets"
        " are in points, against the best of the methods with at least two seeds in any race on the set.",
        "",
        "| set | budget | recommended | test | best found | test | regret | of always LoRA | of always full |",
        "|---|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for one in rows:
        text.append(
            f"| {one['set']} | {one['budget']} | {one['recommended']} | {one['score']:.4f} | {one['best']} |"
            f" {one['best_score']:.4f} | {one['regret']:.2f} | {one['lora_regret']:.2f} | {one['full_regret']:.2f} |"
        )
    for budget in dict.fromkeys(one["budget"] for one in rows):
        these = [one for one in rows if one["budget"] == budget]
        means = [statistics.fmean(one[key] for one in these) for key in ("regret", "lora_regret", "full_regret")]
        cells = " | ".join(f"{mean:.2f}" for mean in means)
        text.append(f"| mean of {len(these)} | {budget} | | | | | {cells} |")
    return "\n".join([*text, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*SHIPPED, *FROM_FILES]
    parser.add_argument("--files", type=Path, help="folder of the sets that are no recipes' own")
    parser.add_argument("--sets", nargs="+", choices=names, default=names)
    parser.add_argument("--budgets", nargs="+", default=["8m", "20m"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/advice"))
    parser.add_argument("--collect", action="store_true", help="run nothing; write the table of what has finished")
    arguments = parser.parse_args()
    done: dict[str, dict[str, tuple[Path, Runs]]] = {}
    for name in arguments.sets:
        for budget in arguments.budgets:
            out = advised(name, budget, arguments)
            if runs := tested(out, arguments):
                done.setdefault(name, {})[budget] = out, runs
                print(f"{name} {budget}: done", flush=True)
    rows = []
    for name, races in done.items():
        of_set: Runs = defaultdict(list)
        for _, runs in races.values():
            for label, scores in runs.items():
                of_set[label] = scores if len(scores) > len(of_set[label]) else of_set[label]
        means = {label: statistics.fmean(scores) for label, scores in of_set.items() if len(scores) > 1}
        rows += [row(name, budget, out, runs, means) for budget, (out, runs) in races.items()]
    (RESULTS / "advice.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "advice.md").write_text(table(rows, arguments.threads))
    print(table(rows, arguments.threads))


if __name__ == "__main__":
    main()
