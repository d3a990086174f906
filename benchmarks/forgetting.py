"""What a model forgets when it learns one task after another, and what helps: three tasks, one LoRA, by seed.

    python benchmarks/forgetting.py --workers 2     # -> results/forgetting.{md,json,png,svg}; finished runs are kept
    python benchmarks/forgetting.py --collect       # the table of the runs that are finished

Question types come first, then spam, then BBC topics: 6, then 8, then 13 classes in one head. Every run goes on from
the one before it with `train --from`. The first run of a seed is the same for all rows. `alone` trains each task on the
base, as the reference of what the newest task can reach. Nothing was tuned on test rows: settings of penalties are the
given ones, a weaker and a stronger one each.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from objectives import difference
from trials import RESULTS, Trial, add_arguments, run_all

from pefttools import atomic

RECIPES = ("question-type-lora", "spam-lora", "news-topic-lora")
NAMES = ("question types", "spam", "BBC topics")
PLAIN, ALONE = "nothing", "alone"
WAYS: Mapping[str, tuple[str, ...]] = {
    PLAIN: (),
    "l2_sp, alpha 0.1": ("regularizers.l2_sp.alpha=0.1",),
    "l2_sp, alpha 1": ("regularizers.l2_sp.alpha=1",),
    "ewc, weight 400": ("regularizers.ewc.weight=400",),
    "ewc, weight 40000": ("regularizers.ewc.weight=40000",),
    "replay 10%": ("data.replay.share=0.1",),
    "replay 10% and ewc": ("data.replay.share=0.1", "regularizers.ewc.weight=400"),
    "stack": ("start.adapter=stack",),
    "stack and replay 10%": ("start.adapter=stack", "data.replay.share=0.1"),
}
"""Way not to forget -> overrides of every run after the first."""


def stages(arguments: argparse.Namespace) -> Iterator[list[Trial]]:
    """The trials of each of the three stages; those of a stage go on from those of the stage before it."""
    for stage, recipe in enumerate(RECIPES):
        found = []
        for seed in arguments.seeds:
            common = (recipe, f"seed={seed}", "train.trackers=[]", *arguments.set)
            first = _folder(arguments.out, 0, PLAIN, seed)
            if stage == 0:
                found.append(Trial(NAMES[0], PLAIN, seed, common, first))
                continue
            found.append(Trial(NAMES[stage], ALONE, seed, common, _folder(arguments.out, stage, ALONE, seed)))
            for way in arguments.ways:
                source = first if stage == 1 else _folder(arguments.out, 1, way, seed)
                command = (*common, f"start.source={source}", *WAYS[way])
                found.append(Trial(NAMES[stage], way, seed, command, _folder(arguments.out, stage, way, seed)))
        yield found


def _folder(out: Path, stage: int, way: str, seed: int) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in way)
    return out.absolute() / f"{stage + 1}-{name}-{seed}"


def collect(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of finished trials of the last two stages."""
    found = []
    for stage, trials in enumerate(stages(arguments)):
        for trial in trials if stage else ():
            if not (trial.folder / "result.json").is_file() or (result := trial.result) is None:
                continue
            found.append({
                "stage": stage + 1, "way": trial.row, "seed": trial.seed, "newest": result["test"]["accuracy"],
                "seconds": result["train"]["cpu_seconds"], "ledger": _without_paths(result.get("ledger")),
                "digest": result["digest"], "versions": result["versions"],
            })  # fmt: skip
    return found


def _without_paths(ledger: dict[str, Any] | None) -> dict[str, Any] | None:
    return {name: ledger[name] for name in ("metric", "before", "all", "own")} if ledger else None


def table(found: list[dict[str, Any]]) -> str:
    """A row for each way, from the runs of the last stage."""
    lines = [
        "# Forgetting",
        "",
        "`python benchmarks/forgetting.py`: question types, then spam, then BBC topics, with one LoRA on MiniLM"
        " and one head that grows from 6 to 8 to 13 classes. Means over seeds; all figures are points of test"
        " accuracy after the last task. `forgetting` is the mean over the first two tasks of their best accuracy"
        " before, minus the one at the end (Chaudhry et al. 2018), and `backward transfer` that of the accuracy at"
        " the end minus the one right after the task (Lopez-Paz and Ranzato 2017). The model chooses among all 13"
        " classes; `own` is the forgetting if it chooses among a task's own classes alone. `newest` is BBC topics,"
        " and `from nothing` its difference over paired seeds, with a 95% interval; `alone` trains BBC topics on"
        " the base.",
        "",
        "| way | seeds | forgetting | share of nothing's | own | backward transfer | questions | spam | newest |"
        " from nothing | CPU s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    groups: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for one in found:
        if one["stage"] == len(RECIPES):
            groups[one["way"]][one["seed"]] = one
    plain = groups.get(PLAIN, {})
    for way in (*WAYS, ALONE):
        if runs := groups.get(way):
            lines.append(_line(way, runs, plain))
    return "\n".join([*lines, ""])


def _line(way: str, runs: Mapping[int, dict[str, Any]], plain: Mapping[int, dict[str, Any]]) -> str:
    newest = {seed: one["newest"] for seed, one in runs.items()}
    moved = "" if way == PLAIN else difference(newest, {seed: one["newest"] for seed, one in plain.items()})
    seconds = _mean(runs, lambda one: one["seconds"])
    end = f"{100 * statistics.fmean(newest.values()):.1f} | {moved} | {seconds:.0f} |"
    if way == ALONE:
        return f"| {way} | {len(runs)} | | | | | | | {end}"
    forgotten = _mean(runs, lambda one: one["ledger"]["all"]["forgetting"])
    reference = _mean(plain, lambda one: one["ledger"]["all"]["forgetting"]) if plain else 0.0
    share = f"{forgotten / reference:.0%}" if reference and way != PLAIN else ""
    own = _mean(runs, lambda one: one["ledger"]["own"]["forgetting"])
    transfer = _mean(runs, lambda one: one["ledger"]["all"]["backward_transfer"])
    first, second = (_mean(runs, lambda one, i=i: one["ledger"]["all"]["scores"][-1][i]) for i in (0, 1))
    return (
        f"| {way} | {len(runs)} | {100 * forgotten:.1f} | {share} | {100 * own:.1f} | {100 * transfer:+.1f}"
        f" | {100 * first:.1f} | {100 * second:.1f} | {end}"
    )


def _mean(runs: Mapping[int, dict[str, Any]], value: Any) -> float:
    return statistics.fmean(value(one) for one in runs.values())


def draw(found: list[dict[str, Any]], folder: Path) -> None:
    """Write the accuracy on each task's test rows after every run, one panel a task and one line a way."""
    import altair

    from pefttools.bench import vega

    rows = [
        {"way": one["way"], "task": NAMES[i], "after": NAMES[stage], "accuracy": scores[i], "seed": one["seed"]}
        for one in found
        if one["stage"] == len(RECIPES) and one["ledger"]
        for stage, scores in enumerate(one["ledger"]["all"]["scores"])
        for i in range(len(scores))
    ]
    if not rows:
        return
    chart = (
        altair.Chart(altair.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=altair.X("after:N", sort=list(NAMES), title="after training on"),
            y=altair.Y("mean(accuracy):Q", title="test accuracy, mean over seeds"),
            color=altair.Color("way:N", sort=list(WAYS), title="way not to forget"),
            column=altair.Column("task:N", sort=list(NAMES), title="test rows of"),
        )
        .properties(width=210, height=260)
    )
    drawn = vega.svg(vega.compile_chart(chart))
    atomic.write_text(folder / "forgetting.svg", drawn)
    with atomic.new_file(folder / "forgetting.png") as part:
        part.write_bytes(vega.png(drawn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting"), help="where the runs go")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of every run, for a trial")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where table and picture go")
    add_arguments(parser)
    arguments = parser.parse_args()
    for trials in () if arguments.collect else stages(arguments):
        run_all(trials, arguments)
    arguments.ways = list(WAYS)
    found = collect(arguments)
    atomic.write_json(arguments.results / "forgetting.json", found)
    atomic.write_text(arguments.results / "forgetting.md", table(found))
    draw(found, arguments.results)
    print(table(found))


if __name__ == "__main__":
    main()
