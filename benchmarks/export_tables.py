"""The results of benchmarks/exports.py as Markdown."""

from __future__ import annotations

from typing import Any

DTYPES = ("float32", "bfloat16")

Rows = dict[str, dict[str, Any]]


def tables(rows: Rows) -> str:
    """The results as Markdown."""
    parts = [
        "# Measurements of exports",
        "",
        "Written by `python benchmarks/exports.py merges | quantised | onnx | gguf | stranger | stream`.",
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
        "Largest logit difference between the trained model and the merged one, loaded in a new process, both in"
        " float64, with the largest logit in brackets. The model is MiniLM after three epochs on the tasks' sample"
        " rows; for causal_lm it is SmolLM2 after two epochs on 64 rows of GSM8K.",
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
        "LoRA on every matrix; means of the first and last five logged losses; weights as estimated by `plan`. For both"
        " merged models: the largest logit difference from the trained model, whose arithmetic is quantised; the"
        " largest difference from the adapter on the same base, which is the error of merging; and the score.",
        "",
        "| base | loss first, last | test | weights MB | peak MB | s a step | into dequantised | into full |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for key, row in rows.items():
        routes = row["routes"] or {}
        cells = [_route(routes[name], row["metric"]) if name in routes else "" for name in ("dequantised", "full")]
        parts.append(
            f"| {key} | {row['first_loss']:.3f}, {row['last_loss']:.3f} | {row['metric']} {row['test']:.4f} |"
            f" {row['weight_bytes'] / 1e6:.0f} | {row['peak_bytes'] / 1e6:.0f} | {row['step_seconds']:.3f} |"
            f" {' | '.join(cells)} |"
        )
    return parts


def gguf(rows: Rows) -> list[str]:
    parts = [
        "## GGUF", "",
        "SmolLM2 after LoRA on 64 rows of GSM8K, written by llama.cpp's converter. Differences from the trained model:"
        " of logits when transformers reads the file back, and of the log-probabilities of the 32 most likely next"
        " tokens when llama.cpp continues the rows' first halves.", "",
        "| dtype | MB | largest logit difference, read back | llama.cpp: log-probabilities | most likely token |",
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
            rates = ", ".join(f"{name} {value:.0f}" for name, value in speed.items())
            ratio = row["onnx_over_fp32"]
            parts += ["", f"Rows a second on its test rows: {rates}; ONNX over torch in fp32: {ratio:.2f}."]
    return parts


def stranger(rows: Rows) -> list[str]:
    parts = ["## Under plain transformers", ""]
    parts += [
        f"In a virtual environment with torch and transformers only, the merged model of {key} predicted the label of"
        f" `pefttools predict --precision fp32` for {row['same_label']} of {row['rows']} test rows; probabilities"
        f" differ by at most {row['max_probability_difference']:.1e}."
        for key, row in rows.items()
    ]
    return parts


def stream(rows: Rows) -> list[str]:
    parts = [
        "## Files of any size", "", "`pefttools predict` on a merged MiniLM and lines of two to eight words.", "",
        "| lines | predicted in order | peak MB | seconds |", "|---|---|---|---|",
    ]  # fmt: skip
    for row in rows.values():
        peak = row["peak_bytes"] / 1e6
        parts.append(f"| {row['rows']:,} | {row['in_place']:,} | {peak:.0f} | {row['seconds']:.0f} |")
    return parts


def _error(row: dict[str, Any]) -> str:
    """The largest difference of a logit and, in brackets, the largest logit; or the reason of a refusal."""
    if "reason" in row:
        return f"refused: {row['reason']}"
    return f"{row['max_logit_error']:.1e} ({row['largest_logit']:.2g})"


def _route(found: dict[str, float], metric: str) -> str:
    return f"{found['max_logit_error']:.2g}; {found['merge_error']:.1g}; {found[metric]:.4f}"
