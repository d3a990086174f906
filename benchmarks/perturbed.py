"""Loss of accuracy of a suite's kept runs on perturbed test rows, by objective, paired over seeds.

    pefttools bench robust --workers 2 --keep-runs
    python benchmarks/perturbed.py runs/bench/robust typos=0.1   # -> results/perturbed.{md,json}; scored runs are kept

The rows of each run are perturbed with the same seed, so all runs of a set and a perturbation score the same rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from objectives import difference

from pefttools import atomic
from pefttools.bases.loading import prepare_libraries
from pefttools.bench import robustness
from pefttools.inference import perturbation
from pefttools.training.run import Run

RESULTS = Path(__file__).parent / "results"
PLAIN = "none"


def scored(folder: Path, perturb: str) -> dict[str, Any]:
    """The scores of one run with and without a perturbation."""
    run = Run.open(folder)
    recipe = run.recipe()
    values = robustness.summary(perturbation.score(run.path, perturbation.parse([perturb]), ()))
    (found,) = values["perturbations"]
    return {
        "data": run.result()["data"]["digest"][:12],
        "recipe": recipe.name,
        "row": ", ".join([*recipe.objectives, *recipe.augmentations]) or PLAIN,
        "seed": recipe.seed,
        "perturbation": perturb,
        "metric": values["metric"],
        "rows": values["rows"],
        "plain": values["score"],
        "perturbed": found["score"],
    }


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "# Objectives and augmentations on perturbed rows",
        "",
        "`python benchmarks/perturbed.py runs/bench/robust typos=0.1`, after `pefttools bench robust --keep-runs`."
        " Means over seeds. `loss` is how much of the score is lost on the perturbed rows. Differences from `none`, of"
        " the score on the rows as they are and of the loss, are in points over paired seeds, with 95% intervals; a"
        " method whose difference of the loss is below 0 loses less.",
        "",
        "| set | perturbation | method | seeds | as they are | from none | perturbed | loss | loss from none |",
        "|---|---|---|---:|---:|---|---:|---:|---|",
    ]
    groups: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for one in found:
        groups[one["recipe"], one["perturbation"], one["row"]][one["seed"]] = one
    for (recipe, perturb, row), runs in sorted(groups.items(), key=lambda item: (*item[0][:2], item[0][2] != PLAIN)):
        lost = {seed: one["plain"] - one["perturbed"] for seed, one in runs.items()}
        reference = groups.get((recipe, perturb, PLAIN), {})
        against = {seed: one["plain"] - one["perturbed"] for seed, one in reference.items()}
        plain, noisy = (statistics.fmean(one[key] for one in runs.values()) for key in ("plain", "perturbed"))
        moved = "" if row == PLAIN else difference(lost, against)
        scores, of_none = ({seed: one["plain"] for seed, one in some.items()} for some in (runs, reference))
        better = "" if row == PLAIN else difference(scores, of_none)
        lines.append(
            f"| {recipe} | {perturb} | {row} | {len(runs)} | {plain:.4f} | {better} | {noisy:.4f}"
            f" | {100 * (plain - noisy):.1f} | {moved} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("perturb", nargs="+")
    arguments = parser.parse_args()
    prepare_libraries()
    file = RESULTS / "perturbed.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    for folder in sorted((arguments.suite / "runs").iterdir()):
        for perturb in arguments.perturb:
            key = f"{folder.name} {perturb}"
            if key not in found and Run(folder).finished:
                found[key] = scored(folder, perturb)
                atomic.write_json(file, found)
                print(found[key], flush=True)
    atomic.write_text(RESULTS / "perturbed.md", table(list(found.values())))
    print(table(list(found.values())))


if __name__ == "__main__":
    main()
