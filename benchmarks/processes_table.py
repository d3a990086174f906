"""The table of `processes.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TWO = ("torchrun", "accelerate launch", "sharded")
REAL = ("loss", "perplexity", "pearson", "spearman", "mse", "mae")
"""Metrics that are computed from the model's outputs themselves; all others count predictions."""


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the table in Markdown."""
    yield "# One process against two\n"
    yield "Command: `python benchmarks/processes.py`. Tiny bases with random weights, fp32, no dropout, gloo on a"
    yield "CPU. `shared` is `train.shard=true` by torchrun. Losses: the largest difference between the losses of a"
    yield "step in one process and in two. Metrics: those of validation and test rows in all three; metrics that"
    yield f"count predictions must be equal; {', '.join(REAL)}"
    yield "are compared by their largest relative difference.\n"
    yield "| run | steps | losses: torchrun | accelerate launch | shared | counted metrics equal | real metrics |"
    yield "|---|---|---|---|---|---|---|"
    for name, runs in found["runs"].items():
        yield f"| {name} | {len(runs['one']['losses'])} | {compared(runs)} |"
    yield "\n## Weights of each process\n"
    yield "On a BERT of six blocks of width 256: the bytes in which a process's parameters are stored.\n"
    yield "| run | one process | two by DDP | two that share | share of one |"
    yield "|---|---|---|---|---|"
    for name, runs in found["runs"].items():
        if "sharded" in runs and name.startswith("wide"):
            yield f"| {name} | {of_memory(runs)} |"
    if found["kills"]:
        yield from of_kills(found["kills"])


def compared(runs: Mapping[str, Any]) -> str:
    """The cells of the comparison of one run."""
    one, gaps, equal, real = runs["one"], [], [], 0.0
    for how in TWO:
        if (two := runs.get(how)) is None:  # it has not finished yet
            gaps.append("")
            continue
        gaps.append(f"{max(abs(a - b) for a, b in zip(one['losses'], two['losses'], strict=True)):.1e}")
        for part in ("validation", "test"):
            for name, value in one[part].items():
                other = two[part][name]
                if name in REAL:
                    real = max(real, abs(value - other) / max(abs(value), 1e-12))
                else:
                    equal.append(value == other)
    return f"{' | '.join(gaps)} | {sum(equal)} of {len(equal)} | {real:.1e}"


def of_memory(runs: Mapping[str, Any]) -> str:
    """The cells of the memory of one run."""
    one, ddp, shared = (runs[how] for how in ("one", "torchrun", "sharded"))
    (whole,) = one["weight_bytes"]
    cells = [
        f"{whole:,}", *(", ".join(f"{n:,}" for n in some["weight_bytes"]) for some in (ddp, shared)),
        ", ".join(f"{n / whole:.3f}" for n in shared["weight_bytes"]),
    ]  # fmt: skip
    return " | ".join(cells)


def of_kills(kills: list[dict[str, Any]]) -> Iterator[str]:
    """The lines about processes that were killed."""
    yield "\n## A process that is killed\n"
    yield "Two processes by torchrun; one gets SIGKILL. `others`: exit codes of the other process and of the launcher."
    yield "The run is resumed by the same command with `--resume`; `differs` lists what then differs from a run left"
    yield "alone, of all losses and scores, the weights and the test scores.\n"
    yield "| killed | in a | weights | others | message | resumed | differs |\n|---|---|---|---|---|---|---|"
    for case in kills:
        message = " ".join(case["errors"]).replace("|", "\\|")
        if "killed" not in case:
            yield f"| | {case['place']} | | {case['codes'][0]} | {message} | | |"
            continue
        others = [code for rank, code in case["codes"] if int(rank) != case["killed"]]
        yield (
            f"| process {case['killed']} | {case['place']} | {'shared' if case['shard'] else 'whole'} |"
            f" {', '.join(others)}, {case['launcher']} | {message} | {'yes' if not case['resumed'] else 'NO'} |"
            f" {', '.join(case['wrong']) or 'nothing'} |"
        )
