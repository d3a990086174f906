"""Effects of objectives that need more than a suite: distilled students, and rare classes. Five seeds, paired.

    python benchmarks/objectives.py --files FOLDER          # FOLDER has the sets that benchmarks/tasks.py names
    python benchmarks/objectives.py --data spam --seeds 0   # fewer
    python benchmarks/objectives.py --collect               # the table of what has finished

Students keep blocks 1, 3 and 5 of MiniLM's six, or 15 of SmolLM2's 30 for the sums of GSM8K, and are trained in full:
plain, with the soft labels of a run that trained the whole model in full (`distillation`), and in TinyBERT's two
stages, first its hidden states and attention, then its soft labels (`two stages`, which was chosen on validation rows
of question types with seed 0 from three variants: stages 0.906, both losses at once 0.886, soft labels with α 0.9 and
T 4 0.875, plain 0.875). Rare classes: 400 rows of spam, and 800 questions of which 5% ask for a thing and 95% for a
description, tested on other questions, half of each. Each trial is one `pefttools train`. Trials that the committed
table has are not repeated. Suites: `robust` has the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy import stats
from tasks import SETS
from trials import RESULTS, Trial, add_arguments, run_all

from pefttools.data.splitting import load_splits
from pefttools.recipe import recipes

MINI = ("base.layers=[1,3,5]", "strategy=full")
SMOL = (f"base.layers={[*range(0, 28, 2), 29]}", "strategy=full", "train.learning_rate=1e-4")
SUMS = ("data.test={source: '@gsm8k/test.jsonl', last_rows: 200}", "train.epochs=2", "task.generate_rows=1",
        "train.batch_size=8")  # fmt: skip
STUDENTS = {
    "question-type": (MINI, "question-type-lora"),
    "banking77": (MINI, SETS["banking77"].recipe, *SETS["banking77"].overrides),
    "gsm8k": (SMOL, SETS["gsm8k"].recipe, *SETS["gsm8k"].overrides, *SUMS),
}
"""Set -> the overrides of its students, and the recipe with its overrides."""
RARE = {
    "spam": ("spam-lora", ("data.train_rows=400",)),
    "things 95/5": ("question-type-lora", ("data.train=@rare.jsonl", "data.test=@rare-test.jsonl")),
}
OBJECTIVES = {
    "plain": (),
    "class_weights": ("objectives=class_weights",),
    "effective number": ("objectives.class_weights.by=effective_number",),
    "focal": ("objectives=focal",),
}
"""Row -> overrides, for rare classes."""
HALF = {"question-type": 270, "banking77": 705}
"""About half of a student's steps, in which `two stages` matches layers before it learns the soft labels."""
METRIC = {**dict.fromkeys(STUDENTS, "accuracy"), "gsm8k": "perplexity", **dict.fromkeys(RARE, "f1")}
FREQUENT, SCARCE, ROWS, SHARE, TESTED = "DESC", "ENTY", 800, 0.05, 300
COMMITTED = RESULTS / "objectives.json"


def trials(arguments: argparse.Namespace) -> Iterator[Trial]:
    """The trials of all experiments; teachers come well before the students that need them."""
    for data in arguments.data:
        if data in STUDENTS:
            student, *found = STUDENTS[data]
            words = (*(word.replace("@", f"{arguments.files}/") for word in found), "train.trackers=[]")
            teacher = arguments.out / data / "teacher-0"
            yield Trial(data, "teacher", 0, (*words, "strategy=full", "seed=0"), teacher)
            soft = f"objectives.distillation.teacher={teacher.absolute()}"
            layers = (
                "objectives=[distillation,layer_matching]",
                f"objectives.layer_matching.teacher={teacher.absolute()}",
                "objectives.layer_matching.task_weight=0",
                f"objectives.layer_matching.steps={HALF.get(data)}",
            )
            for row, more in (("plain", ()), ("two stages", (*layers, soft)), ("distillation", (soft,))):
                for seed in arguments.seeds if row != "two stages" or data in HALF else ():
                    command = (*words, *student, *more, f"seed={seed}")
                    yield Trial(data, row, seed, command, arguments.out / data / f"{row}-{seed}")
            continue
        recipe, common = RARE[data]
        shown = [word.replace("@", f"{arguments.out.absolute()}/") for word in common]
        for row, overrides in OBJECTIVES.items():
            for seed in arguments.seeds:
                command = (recipe, *shown, *overrides, f"seed={seed}", "train.trackers=[]")
                yield Trial(data, row, seed, command, arguments.out / data / f"{row}-{seed}")


def write_rare(folder: Path) -> None:
    """Write the questions of which 5% are of the scarce class, and test rows of which half are, of other questions."""
    recipe = recipes.load("question-type-lora").recipe
    rows = [row for rows in load_splits(recipe.data, recipe.task).named().values() for row in rows]
    number = round(ROWS * SHARE)
    scarce = [row for row in rows if row["label"] == SCARCE][: number + TESTED]
    frequent = [row for row in rows if row["label"] == FREQUENT][: ROWS - number + TESTED]
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in (
        ("rare", (*scarce[:number], *frequent[: ROWS - number])),
        ("rare-test", (*scarce[number:], *frequent[ROWS - number :])),
    ):
        texts = [json.dumps({"text": row["text"], "label": row["label"]}) for row in chosen]
        (folder / f"{name}.jsonl").write_text("".join(f"{text}\n" for text in texts), "utf-8")


def committed() -> dict[tuple[str, str, int], dict[str, Any]]:
    """The results in the repository, by set, row and seed."""
    lines = json.loads(COMMITTED.read_text()) if COMMITTED.is_file() else []
    return {(line["data"], line["row"], line["seed"]): line for line in lines}


def missing(planned: list[Trial]) -> list[Trial]:
    """The trials that are not in the repository, with the teachers that they need."""
    done = committed()
    left = [trial for trial in planned if (trial.data, trial.row, trial.seed) not in done]
    taught = {trial.data for trial in left if trial.row not in ("plain", "teacher")}
    return [trial for trial in planned if trial in left or (trial.row == "teacher" and trial.data in taught)]


def collect(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of finished trials and, for the others, those in the repository."""
    found, done = [], committed()
    for trial in trials(arguments):
        if (known := done.get((trial.data, trial.row, trial.seed))) is not None:
            found.append(known)
        elif (result := trial.result) is not None:
            found.append(
                {
                    "data": trial.data, "row": trial.row, "seed": trial.seed, "metric": METRIC[trial.data],
                    "score": result["test"][METRIC[trial.data]],
                    "rows": result["data"]["rows"], "params": result["params"], "versions": result["versions"],
                }
            )  # fmt: skip
    return found


def difference(scores: dict[int, float], plain: dict[int, float], unit: float = 0.01) -> str:
    """The mean difference of the seeds that both have, in these units, with Student's 95% interval."""
    moved = [(scores[seed] - plain[seed]) / unit for seed in scores if seed in plain]
    if len(moved) < 2:
        return ""
    half = stats.t.ppf(0.975, len(moved) - 1) * statistics.stdev(moved) / math.sqrt(len(moved))
    mean = statistics.fmean(moved)
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "# Effects of objectives",
        "",
        "`python benchmarks/objectives.py --files FOLDER`; test scores as means over seeds, differences from `plain` in"
        " points (of perplexity: as they are) over paired seeds, with 95% intervals.",
        "",
        "| set | row | metric | seeds | score | from plain |",
        "|---|---|---|---:|---:|---|",
    ]
    groups: dict[tuple[str, str], dict[int, float]] = {}
    for one in found:
        groups.setdefault((one["data"], one["row"]), {})[one["seed"]] = one["score"]
    for (data, row), scores in groups.items():
        against = (
            ""
            if row in ("plain", "teacher")
            else difference(scores, groups.get((data, "plain"), {}), 1.0 if METRIC[data] == "perplexity" else 0.01)
        )
        mean = statistics.fmean(scores.values())
        lines.append(f"| {data} | {row} | {METRIC[data]} | {len(scores)} | {mean:.4f} | {against} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, default=Path())
    parser.add_argument("--data", nargs="+", choices=list(METRIC), default=list(METRIC))
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"), help="where the runs go")
    add_arguments(parser)
    parser.set_defaults(seeds=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    if not (arguments.out / "rare-test.jsonl").is_file():
        write_rare(arguments.out)
    if not arguments.collect:
        run_all(missing(list(trials(arguments))), arguments)
    arguments.data, arguments.seeds = list(METRIC), [0, 1, 2, 3, 4]
    found = collect(arguments)
    COMMITTED.write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "objectives.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
