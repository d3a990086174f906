"""The results of benchmarks/exports.py as Markdown."""

from __future__ import annotations

from typing import Any

DTYPES = ("float32", "bfloat16")


def tables(rows: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    parts = [
        "# Exports, measured",
        "",
        "By `python benchmarks/exports.py`.",
        "",
    ]
    found = {k.removeprefix("merge "): v for k, v in rows.items() if k.startswith("merge ")}
    if found:
        parts += [
            "## Merging", "",
            "Largest logit difference between the trained model and the merged one, loaded in a fresh process, both"
            " computing in float64: MiniLM after three epochs on the tasks' sample rows, for causal_lm SmolLM2 after"
            " two on 64 rows of GSM8K. In brackets the largest logit.",
            "", "| task | strategy | float32 | bfloat16 |", "|---|---|---|---|",
        ]  # fmt: skip
        for key, row in found.items():
            task, name = key.split()
            if "reason" in row:
                parts.append(f"| {task} | {name} | {row['reason']} | |")
                continue
            parts.append(f"| {task} | {name} | {' | '.join(_error(row[dtype]) for dtype in DTYPES)} |")
    found = {k.removeprefix("quantised "): v for k, v in rows.items() if k.startswith("quantised ")}
    if found:
        parts += [
            "", "## Quantised bases", "",
            "LoRA on every matrix; means of the first and last five logged losses; weights as `plan` counts them; merge"
            " errors are the largest logit differences from the trained model.", "",
            "| base | loss first, last | test | weights MB | peak MB | s a step | into dequantised | into full |",
            "|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for key, row in found.items():
            metric = row["metric"]
            routes = row["routes"] or {}
            told = [
                f"{routes[n]['max_logit_error']:.2g}, {metric} {routes[n][metric]:.4f}" if n in routes else ""
                for n in ("dequantised", "full")
            ]
            parts.append(
                f"| {key} | {row['first_loss']:.3f}, {row['last_loss']:.3f} | {metric} {row['test']:.4f} |"
                f" {row['weight_bytes'] / 1e6:.0f} | {row['peak_bytes'] / 1e6:.0f} | {row['step_seconds']:.3f} |"
                f" {' | '.join(told)} |"
            )
    found = {k.removeprefix("gguf "): v for k, v in rows.items() if k.startswith("gguf ")}
    if found:
        parts += [
            "", "## GGUF", "",
            "SmolLM2 after LoRA on 64 rows of GSM8K, written by llama.cpp's converter. Differences from the"
            " trained model: of logits, as transformers reads the file back; of the logarithms of the 32 likeliest next"
            " tokens' probabilities, as llama.cpp goes on after the rows' first halves.", "",
            "| dtype | MB | largest logit difference, read back | llama.cpp: log-probabilities | its likeliest token |",
            "|---|---|---|---|---|",
        ]  # fmt: skip
        for key, row in found.items():
            by = row["llama_cpp"]
            parts.append(
                f"| {key} | {row['bytes'] / 1e6:.0f} | {_error(row)} | {by['max_logprob_error']:.1e} | the same in"
                f" {by['same_token']} of {by['rows']} |"
            )
    found = {k.removeprefix("onnx "): v for k, v in rows.items() if k.startswith("onnx ")}
    if found:
        parts += [
            "",
            "## ONNX",
            "",
            "| run | largest logit difference | metric, trained and exported |",
            "|---|---|---|",
        ]
        for key, row in found.items():
            scores = f"{row['trained']:.4f}, {row['exported']:.4f}"
            parts.append(f"| {key} | {row['max_logit_error']:.1e} | {scores} |")
        speed = found.get("question-type-lora", {}).get("rows_per_second")
        if speed:
            told = ", ".join(f"{name} {value:.0f}" for name, value in speed.items())
            ratio = found["question-type-lora"]["onnx_over_fp32"]
            parts += [
                "",
                f"Rows a second on the question types' test rows: {told}; ONNX over torch in fp32: {ratio:.2f}.",
            ]
    for row in (v for k, v in rows.items() if k.startswith("stranger ")):
        parts += [
            "", "## Under plain transformers", "",
            "In a virtual environment of torch and transformers alone the merged question-type model gave"
            f" {row['same_label']} of {row['rows']} test rows the label that `pefttools predict --precision fp32`"
            f" gives; probabilities differ by at most {row['max_probability_difference']:.1e}.",
        ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _error(row: dict[str, Any]) -> str:
    """The largest difference of a logit and, in brackets, the largest logit; or why there is none."""
    return (
        f"refused: {row['reason']}" if "reason" in row else f"{row['max_logit_error']:.1e} ({row['largest_logit']:.2g})"
    )
