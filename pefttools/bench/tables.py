"""The table of a suite as Markdown, for a README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = (
    "tier", "method", "test", "95% interval", "trained", "adapter", "head", "learning rate", "seconds", "tokens/s",
    "peak MB", "file MB", "merges", "moved", "rank", "forgot",
)  # fmt: skip
RIGHT = COLUMNS[4:12]


def markdown(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown: every problem with its table, verdict, and smallest detectable difference."""
    text = [
        f"# {summary['suite']}",
        "",
        summary["description"] + ".",
        "",
        f"`{summary['command']}`: {summary['trials']['done']} of {summary['trials']['all']} trials,"
        f" {summary['learning_rates']} learning rates a method chosen on validation rows, then"
        f" {len(summary['seeds'])} seeds. " + _machine(summary),
        "",
        *LEGEND,
        "",
    ]
    for pool in summary["pools"]:
        text += [*_pool(pool), ""]
    for problem in summary["problems"]:
        text += [*_problem(problem), ""]
    return "\n".join(text)


LEGEND = (
    "Methods in one tier do not differ significantly from its best (paired bootstrap over test rows, with the variance"
    " over seeds, Holm-corrected, 5%). The interval of a score holds for new rows and new seeds. `trained`, `adapter`"
    " and `head` are numbers of parameters. `seconds` is the time of training with evaluations on validation rows"
    " (on a CPU the processor time of a thread, so that trials side by side do not slow each other down), `peak MB` the"
    " peak memory of the whole process. `moved` is ‖W−W₀‖ of the blocks divided by ‖W₀‖, in percent;"
    " `rank` is the changes' mean effective rank; `forgot` is the increase of the loss a token on the retention text.",
)


def _machine(summary: Mapping[str, Any]) -> str:
    hardware = summary["hardware"]
    return f"Measured on {hardware['device']}, {hardware['threads']} threads a trial." if hardware else ""


def _pool(pool: Mapping[str, Any]) -> list[str]:
    sets, lines = pool["sets"], [f"## All sets{': ' * bool(pool['name'])}{pool['name']}", "", pool_facts(pool), ""]
    columns = ("tier", "method", "mean", "from the best", *sets, "trained", "seconds", "forgot")
    lines += ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    for row in pool["methods"]:
        gap = "" if row["gap_low"] is None else f" ({100 * row['gap_low']:+.1f} to {100 * row['gap_high']:+.1f})"
        texts = [
            str(row["tier"]), row["method"], f"{row['mean']:.4f}", f"{100 * row['gap']:+.1f}{gap}",
            *(f"{row['by_set'][name]:.4f}" for name in sets), f"{row['trainable']:,}", _seconds(row["seconds"]),
            "" if row["forgetting"] is None else f"{row['forgetting']:+.3f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(texts) + " |")
    return [*lines, "", f"**{pool['verdict']}.**"]


def pool_facts(pool: Mapping[str, Any]) -> str:
    """What was pooled, and how small a difference can be seen."""
    sentences = [
        f"The mean of {', '.join(pool['metrics'])} over {len(pool['sets'])} sets, each counting alike; differences from"
        " the best mean in points, with 95% intervals that hold for new sets like these, new rows and new seeds."
    ]
    if pool["smallest_difference"] is not None:
        on_new, on_these = points(pool["smallest_difference"]), points(pool["smallest_on_these"])
        sentences.append(
            f"The smallest difference that can be detected (with probability 0.8): {on_new} for new sets, {on_these} on"
            " these sets."
        )
    sentences += [f"Left out: {name} {reason}." for name, reason in pool["left_out"].items()]
    return " ".join(sentences)


def points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _problem(problem: Mapping[str, Any]) -> list[str]:
    lines = [f"## {problem['name'] or 'all'}", ""]
    if problem["metric"]:
        sizes = problem["rows"]
        facts = [
            f"{problem['metric']} on {sizes[problem['measured_on']]} {problem['measured_on']} rows,"
            f" {sizes['train']} to train on, {sizes['validation']} to validate"
        ]
        facts += [f"{n} {problem[n]:.4f}" for n in ("majority", "before") if problem[n] is not None]
        lines += ["; ".join(facts) + ".", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |"]
    lines += ["|" + "|".join("---:" if column in RIGHT else "---" for column in COLUMNS) + "|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in problem["methods"]]
    lines += ["", f"**{problem['verdict']}.**" + _shown(problem)]
    return lines


def _shown(problem: Mapping[str, Any]) -> str:
    least = problem["smallest_difference"]
    if least is None:
        return ""
    unit = f"{100 * least:.1f} points" if 0 <= (problem["before"] or 0) <= 1 else f"{least:.3g}"
    coarse = " This is more than the margin, so methods of one tier may differ by more." if problem["is_coarse"] else ""
    return f" The smallest difference that these rows and seeds can detect (with probability 0.8): {unit}.{coarse}"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A method's cells, in the order of `COLUMNS`."""
    if "mean" not in row:
        return ["", row["method"], f"{row['status']}: {row['reason']}".rstrip(": "), *[""] * (len(COLUMNS) - 3)]
    seen = "" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
    forgot = row["forgetting"]
    note = " (some trials failed)" if row["reason"] else ""
    return [
        str(row["tier"] or ""), row["method"] + note, f"{row['mean']:.4f}", seen,
        *(f"{row['params'][name]:,}" for name in ("trainable", "adapter", "head")), f"{row['learning_rate']:.2g}",
        _seconds(row["seconds"]), f"{row['tokens_per_second']:,.0f}", f"{row['peak_bytes'] / 2**20:,.0f}",
        f"{row['adapter_bytes'] / 2**20:.2f}", "yes" if row["merges"] else "no",
        "" if row["moved"] is None else f"{100 * row['moved']:.2f}",
        "" if row["effective_rank"] is None else f"{row['effective_rank']:.0f}",
        "" if forgot is None else f"{forgot['after'] - forgot['before']:+.3f}",
    ]  # fmt: skip


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
