"""The results as a page in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def markdown(results: Mapping[str, Any]) -> str:
    """The page: the machine, correctness, and one line for each training."""
    parts = results["parts"]
    return "\n".join([*_machine(results), "", *_proofs(parts), "", *_timings(parts), ""])


def _machine(results: Mapping[str, Any]) -> Iterator[str]:
    one = results["parts"].get("machine", {}).get("values")
    yield "# pefttools on a GPU"
    yield ""
    yield f"`python benchmarks/gpu{' --smoke' if results['smoke'] else ''}`, {results.get('seconds', 0):.0f} seconds."
    if results["smoke"]:
        yield "Tiny models, to check that the benchmark works; the numbers mean nothing else."
    if one:
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in one["tflops"].items())
        versions = ", ".join(f"{name} {version}" for name, version in one["versions"].items() if version)
        yield f"Device: {one['name'] or one['device']} ({one['device']}); `auto` computes in {one['precision']}."
        yield f"Measured products, 10¹² operations a second: {rates}. {versions}."


def _proofs(parts: Mapping[str, Any]) -> Iterator[str]:
    yield "| part | status | values |"
    yield "|---|---|---|"
    for name, part in parts.items():
        values = part.get("values", {})
        if name != "machine" and "tokens_per_second" not in values and not _is_training(name):
            yield f"| {name} | {part['status']} | {_cell(part.get('message') or _short(values))} |"


def _timings(parts: Mapping[str, Any]) -> Iterator[str]:
    yield "| training | status | tokens a second | peak, MiB | precision |"
    yield "|---|---|---:|---:|---|"
    for name, part in parts.items():
        if not _is_training(name):
            continue
        values = part.get("values")
        if values:
            rate, peak = f"{values['tokens_per_second']:.0f}", f"{values['peak_bytes'] / 2**20:.0f}"
            yield f"| {name} | ok | {rate} | {peak} | {values['precision']} |"
        else:
            yield f"| {name} | {part['status']} | {_cell(part.get('message', ''))} | | |"


def _is_training(name: str) -> bool:
    return name.startswith(("encoder", "decoder"))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(inner)}" for name, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:300]
