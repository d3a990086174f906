"""The tables, in Markdown, of whatever has been measured."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import accuracy
import bars
import summary
from cases import CASES
from kept import Measured

MIB = 2**20


def text(measures: Sequence[Measured], settings: Mapping[str, Any]) -> str:
    """The whole report."""
    in_full = all(m.get("full", False) for m in measures)
    names = ("threads",) if in_full else ("rows", "epochs", "threads")
    told = ", ".join(f"{name} {settings[name]}" for name in names if settings.get(name))
    told += ", a tiny random base: no figure here means anything" if settings.get("smoke") else ""
    parts = [
        "# Speed and memory: pefttools beside Trainer with peft",
        "",
        f"{commands(measures, settings)}; {machine()}; {told}.",
        "",
        "The contenders of a case take turns, each time in a fresh process, on the same base, rows, epochs, batch and"
        " learning rate. Figures are medians over rounds, in brackets the least and the most; ratios are taken round by"
        " round. `trainer` is transformers' Trainer at its defaults with plain peft, `trainer_tuned` the same in bf16,"
        " grouped by length and padded to a multiple of 8; `pipeline` is transformers' with batches of 32,"
        " `pipeline_tuned` the same in bf16 on texts sorted by length.",
        "",
    ]
    tables = (rates, fixed, cold, accuracy.table)
    for table in tables if settings.get("smoke") else (bars.table, *tables):
        parts += table(measures)
    return "\n".join(parts)


def commands(measures: Sequence[Measured], settings: Mapping[str, Any]) -> str:
    """What measures this again."""
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
    """What was measured on."""
    import torch

    name = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    return f"{name}, {platform.system()} {platform.machine()}, {versions}"


def rates(measures: Sequence[Measured]) -> list[str]:
    """Training and predicting."""
    figures = summary.figures(measures)
    if not figures:
        return []
    text = [
        "## Training and predicting",
        "",
        "Training is timed to the end of the last step, after a warm-up: Trainer's from its first step, pefttools' from"
        " when the untouched model has been scored. `wall` adds data, base, tokenised rows and other setup, in"
        " seconds. Tokens are real ones, without padding. Memory is the peak beyond what was held"
        " when the model had been loaded. The last share is of this processor's own rate of products (`work.py` has the"
        " formula). The score is of test rows after so little training: it is there for comparison.",
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
    """A step on a batch of one shape."""
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
        "The forward is the bare base's in bf16; peft's step is under bf16 autocast. The limit is 2 forwards.",
        "",
        "| what | ms | bare bf16 forwards |", "|---|---|---|", *made, "",
    ]  # fmt: skip


def cold(measures: Sequence[Measured]) -> list[str]:
    """Cold starts."""
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
        "To the end of the first step, of `python`, `import` and `help` to the end. pefttools scores the untouched"
        " model first; the last column leaves that out.",
        "",
        "| what | seconds | without scoring |", "|---|---|---|", *made, "",
    ]  # fmt: skip
