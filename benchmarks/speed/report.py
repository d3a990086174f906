"""The report of all measurements so far, as tables in Markdown."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import accuracy
import bars
import summary
from cases import CASES
from store import Measured

MIB = 2**20


def text(measures: Sequence[Measured], settings: Mapping[str, Any]) -> str:
    """The whole report."""
    in_full = all(m.get("full", False) for m in measures)
    names = ("threads",) if in_full else ("rows", "epochs", "threads")
    about = ", ".join(f"{name} {settings[name]}" for name in names if settings.get(name))
    about += ", a tiny random base, so the numbers are meaningless" if settings.get("smoke") else ""
    parts = [
        "# Speed and memory: pefttools compared with Trainer and peft",
        "",
        f"{commands(measures, settings)}; {machine()}; {about}.",
        "",
        "The contenders of a case take turns, each time in a new process, with the same base, rows, epochs, batch size"
        " and learning rate. Numbers are medians over rounds, with minimum and maximum in brackets; ratios are computed"
        " for each round. `trainer` is transformers' Trainer with its defaults and peft; `trainer_tuned` is the same in"
        " bf16, with batches grouped by length and padded to a multiple of 8. `pipeline` is transformers' pipeline with"
        " batches of 32; `pipeline_tuned` is the same in bf16 on texts sorted by length.",
        "",
    ]
    tables = (rates, fixed, cold, accuracy.table)
    for table in tables if settings.get("smoke") else (bars.table, *tables):
        parts += table(measures)
    return "\n".join(parts)


def commands(measures: Sequence[Measured], settings: Mapping[str, Any]) -> str:
    """The commands that repeat these measurements."""
    found = []
    for full in (False, True):
        cases = [case for case in CASES if any(m["case"] == case and m.get("full", False) == full for m in measures)]
        options = " --accuracy" if full else f" --rows {settings['rows']}" if settings.get("rows") else ""
        seen = {m["contender"] for m in measures if m.get("full", False) == full}
        everyone = {contender for case in cases for contender in CASES[case].contenders}
        if seen != everyone:
            options += f" --contenders {' '.join(sorted(seen))}"
        if cases:
            found.append(f"`python benchmarks/speed{options} --cases {' '.join(cases)}`")
    return ", ".join(found)


def machine() -> str:
    """The processor, system and versions."""
    import torch

    name = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    return f"{name}, {platform.system()} {platform.machine()}, {versions}"


def rates(measures: Sequence[Measured]) -> list[str]:
    """The section on training and predicting."""
    figures = summary.figures(measures)
    if not figures:
        return []
    text = [
        "## Training and predicting",
        "",
        "Training is timed to the end of the last step, after a warm-up: for Trainer from its first step, for pefttools"
        " from the end of its baseline evaluation. `wall` is the time in seconds with loading data and base, tokenising"
        " and other setup. Tokens do not include padding. `over the model` is the peak memory minus the memory after"
        " loading the model. `of the product rate` is the share of this processor's rate of matrix products (formula in"
        " `work.py`). The test score after so little training is for comparison only.",
        "",
        "| case | contender | rows/s | × plain | × tuned | tokens/s | wall | peak MiB | over the model | × plain"
        " | × tuned | of the product rate | test score |",
        "|---|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for figure in figures:
        case, speed, tokens = figure["case"], figure["rows_per_second"], figure["tokens_per_second"]
        plain, *tuned = summary.yardsticks(case)
        faster, smaller = (
            [_spread(figure[name].get(other)) for other in (plain, *tuned[:1], *[""] * (1 - len(tuned)))]
            for name in ("speed_ratio", "memory_ratio")
        )
        cells = [
            case, figure["contender"], _spread(speed, 1), *faster, f"{tokens['median']:,.0f}",
            f"{figure['wall_seconds']['median']:.1f}", f"{figure['peak_bytes']['median'] / MIB:,.0f}",
            f"{figure['bytes_over_model']['median'] / MIB:,.0f}",
            *(cell.partition(" ")[0] for cell in smaller), f"{figure['product_share']['median']:.1%}",
            f"{figure['score']:.4g}",
        ]  # fmt: skip
        text.append(f"| {' | '.join(cells)} |")
    text += ["", "| case | what | rounds | trained parameters of every contender |", "|---|---|---:|---:|"]
    for case in dict.fromkeys(figure["case"] for figure in figures):
        own = [figure for figure in figures if figure["case"] == case]
        number = f"{own[0]['trainable']:,}" if own[0]["trainable"] else ""
        text.append(f"| {case} | {CASES[case].about} | {min(f['rounds'] for f in own)} | {number} |")
    return [*text, ""]


def _spread(values: Mapping[str, float] | None, digits: int = 2) -> str:
    if not values:
        return ""
    middle, least, most = (f"{values[name]:.{digits}f}" for name in ("median", "least", "most"))
    return f"{middle} ({least} to {most})"


def fixed(measures: Sequence[Measured]) -> list[str]:
    """The section on a step with a batch of one shape."""
    made = []
    for name in ("forward", "peft", "pefttools"):
        millis = summary.spread(measures, "fixed", "step", lambda m, name=name: m[f"{name}_ms"])
        forwards = summary.spread(measures, "fixed", "step", lambda m, name=name: m.get(f"{name}_forwards", 1.0))
        if not millis or not forwards:
            return []
        made.append(f"| {name} | {_spread(vars(millis), 1)} | {_spread(vars(forwards))} |")
    return [
        "## A LoRA step on 32 rows of 32 tokens",
        "",
        "The forward is that of the bare base in bf16; peft's step runs under bf16 autocast. A step cannot take less"
        " than 2 forwards.",
        "",
        "| what | ms | bare bf16 forwards |", "|---|---|---|", *made, "",
    ]  # fmt: skip


def cold(measures: Sequence[Measured]) -> list[str]:
    """The section on cold starts."""
    made = []
    for name in CASES["cold"].contenders:
        whole = summary.spread(measures, "cold", name, lambda measured: measured["seconds"])
        rest = summary.spread(measures, "cold", name, lambda m: m["seconds"] - m.get("scoring_seconds", 0.0))
        if whole and rest:
            made.append(f"| {name} | {_spread(vars(whole))} | {_spread(vars(rest))} |")
    if not made:
        return []
    return [
        "## Seconds from a cold start",
        "",
        "Seconds to the end of the first step; for `python`, `import` and `help` to the end of the process. pefttools"
        " first evaluates the baseline; the last column leaves that out.",
        "",
        "| what | seconds | without scoring |", "|---|---|---|", *made, "",
    ]  # fmt: skip
