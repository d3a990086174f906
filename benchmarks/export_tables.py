"""The results of benchmarks/exports.py as Markdown."""

from __future__ import annotations

from typing import Any

DTYPES = ("float32", "bfloat16")

Rows = dict[str, dict[str, Any]]


def tables(rows: Rows) -> str:
    """The results as Markdown."""
    parts = [
        "# Exports, measured",
        "",
        "By `python benchmarks/exports.py merges | quantised | onnx | gguf | stranger | stream`.",
    ]
    sections = {
        "merge": merges,
        "quantised": quantised,
        "gguf": gguf,
        "onnx": onnx,
        "stranger": stranger,
        "stream": stream,
    }
    for kind, section in sections.items():
        found = {k.removeprefix(f"{kind} "): v for k, v in rows.items() if k.startswith(f"{kind} ")}
        if found:
            parts += ["", *section(found)]
    return "\n".join(parts) + "\n"


def merges(rows: Rows) -> list[str]:
    parts = [
        "## Merging", "",
        "Largest logit difference between the trained model and the merged one, loaded in a fresh process, both"
        " computing in float64: MiniLM after three epochs on the tasks' sample rows, for causal_lm SmolLM2 after two on"
        " 64 rows of GSM8K. In brackets the largest logit.",
        "", "| task | strategy | float32 | bfloat16 |", "|---|---|---|---|",
    ]  # fmt: skip
    for key, row in sorted(rows.items()):
        task, name = key.split()
        cells = [row["reason"], ""] if "reason" in row else [_error(row[dtype]) for dtype in DTYPES]
        parts.append(f"| {task} | {name} | {' | '.join(cells)} |")
    return parts


def quantised(rows: Rows) -> list[str]:
    parts = [
        "## Quantised bases", "",
        "LoRA on every matrix; means of the first and last five logged losses; weights as `plan` counts them. Of both"
        " routes: the largest logit difference of the merged model from the trained one, whose arithmetic is"
        " quantised; that from the adapter beside the same base, which is what merging costs; its score.",
        "",
        "| base | loss first, last | test | weights MB | peak MB | s a step | into dequantised | into full |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for key, row in rows.items():
        routes = row["routes"] or {}
        told = [_route(routes[name], row["metric"]) if name in routes else "" for name in ("dequantised", "full")]
        parts.append(
            f"| {key} | {row['first_loss']:.3f}, {row['last_loss']:.3f} | {row['metric']} {row['test']:.4f} |"
            f" {row['weight_bytes'] / 1e6:.0f} | {row['peak_bytes'] / 1e6:.0f} | {row['step_seconds']:.3f} |"
            f" {' | '.join(told)} |"
        )
    return parts


def gguf(rows: Rows) -> list[str]:
    parts = [
        "## GGUF", "",
        "SmolLM2 after LoRA on 64 rows of GSM8K, written by llama.cpp's converter. Differences from the trained model:"
        " of logits, as transformers reads the file back; of the logarithms of the 32 likeliest next tokens'"
        " probabilities, as llama.cpp goes on after the rows' first halves.", "",
        "| dtype | MB | largest logit difference, read back | llama.cpp: log-probabilities | its likeliest token |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for key, row in rows.items():
        by = row["llama_cpp"]
        parts.append(
            f"| {key} | {row['bytes'] / 1e6:.0f} | {_error(row)} | {by['max_logprob_error']:.1e} | the same in"
            f" {by['same_token']} of {by['rows']} |"
        )
    return parts


def onnx(rows: Rows) -> list[str]:
    parts = ["## ONNX", "", "| run | largest logit difference | metric, trained and exported |", "|---|---|---|"]
    for key, row in rows.items():
        parts.append(f"| {key} | {row['max_logit_error']:.1e} | {row['trained']:.4f}, {row['exported']:.4f} |")
        if speed := row.get("rows_per_second"):
            told = ", ".join(f"{name} {value:.0f}" for name, value in speed.items())
            ratio = row["onnx_over_fp32"]
            parts += ["", f"Rows a second on its test rows: {told}; ONNX over torch in fp32: {ratio:.2f}."]
    return parts


def stranger(rows: Rows) -> list[str]:
    parts = ["## Under plain transformers", ""]
    parts += [
        f"In a virtual environment of torch and transformers alone the merged model of {key} gave {row['same_label']}"
        f" of {row['rows']} test rows the label that `pefttools predict --precision fp32` gives; probabilities differ"
        f" by at most {row['max_probability_difference']:.1e}."
        for key, row in rows.items()
    ]
    return parts


def stream(rows: Rows) -> list[str]:
    parts = [
        "## Files of any size", "", "`pefttools predict` on a merged MiniLM and lines of two to eight words.", "",
        "| lines | answered in their place | peak MB | seconds |", "|---|---|---|---|",
    ]  # fmt: skip
    for row in rows.values():
        peak = row["peak_bytes"] / 1e6
        parts.append(f"| {row['rows']:,} | {row['in_place']:,} | {peak:.0f} | {row['seconds']:.0f} |")
    return parts


def _error(row: dict[str, Any]) -> str:
    """The largest difference of a logit and, in brackets, the largest logit; or why there is none."""
    if "reason" in row:
        return f"refused: {row['reason']}"
    return f"{row['max_logit_error']:.1e} ({row['largest_logit']:.2g})"


def _route(found: dict[str, float], metric: str) -> str:
    return f"{found['max_logit_error']:.2g}; {found['merge_error']:.1g}; {found[metric]:.4f}"
