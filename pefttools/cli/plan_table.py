"""A plan as lines and tables: parameters, the peak memory by part, and whether the run fits a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

MIB = 1 << 20
PARTS = {
    "weights": "the base's, the adapter's and the head's",
    "gathered": "whole weights outside of the blocks, and of one block",
    "gradients": "of the trained parameters",
    "optimizer": "the optimizer's state",
    "activations": "of {rows} rows of {length} tokens, beyond the size of the gradients",
    "features": "outputs of the frozen blocks for all rows, computed once",
    "allocator": "gaps in the heap that glibc cannot reuse",
    "process": "the interpreter and the loaded libraries",
}
"""Part of the peak memory -> its description."""


def lines(values: Mapping[str, Any]) -> Iterator[str | Table]:
    """A plan's parameters with their shares, and its peak memory by part."""
    yield f"{values['recipe']}: {values['task']} by {values['strategy']} on {values['base']}"
    yield _parameters(values["params"])
    yield _memory(values)
    for name, value in values["facts"].items():
        yield f"{name.replace('_', ' ')}: {value:.4g}"
    if "fit" in values:
        yield from _fit(values["fit"], values["length"])


def _parameters(params: Mapping[str, int]) -> Table:
    table = Table()
    table.add_column("parameters")
    table.add_column("number", justify="right")
    table.add_column("share", justify="right")
    for name in ("total", "trainable", "adapter", "head"):
        table.add_row(name, f"{params[name]:,}", f"{params[name] / params['total']:.2%}")
    return table


def _memory(values: Mapping[str, Any]) -> Table:
    sizes, table = values["bytes"], Table()
    table.add_column("peak memory")
    table.add_column("MiB", justify="right")
    table.add_column("")
    for name, about in PARTS.items():
        if name in sizes:
            table.add_row(name, f"{sizes[name] / MIB:,.1f}", about.format(**values))
    table.add_section()
    step = f"{values['precision']} on {values['device']}, {values['micro_batches']} micro-batch(es) a step"
    table.add_row("peak", f"{sizes['peak'] / MIB:,.1f}", step)
    return table


def _fit(found: Mapping[str, Any], length: int) -> Iterator[str]:
    """Whether a run fits a device, in which micro-batches, and what to change where it does not."""
    peak, usable = (f"{number / MIB:,.0f} MiB" for number in (found["peak"], found["usable"]))
    yield f"{found['device']}: a run can use {usable}"
    if found["rows"] is None:
        yield f"the run does not fit: with one row in a micro-batch, the peak is {peak}"
    elif found["fits"]:
        yield f"the run fits; so do micro-batches of {found['rows']} rows of {length} tokens, with a peak of {peak}"
    else:
        settings = f"train.micro_batch_size={found['rows']} train.micro_batch_tokens={found['tokens']}"
        yield f"the run fits only if a micro-batch has at most {found['tokens']:,} tokens (peak {peak}); set {settings}"
    for option in found["options"]:
        fits = "fits" if option["fits"] else "does not fit yet"
        yield f"{' '.join(option['overrides'])}: peak {option['peak'] / MIB:,.0f} MiB, {fits}"
    last = found["options"][-1] if found["options"] else None
    if last and last["fits"]:
        yield f"to train it there: {last['command']}"
    elif found["rows"] is None:
        yield "nothing that takes less memory is known besides a smaller base"
