"""The command for bug reports: env."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table

from pefttools.cli import display
from pefttools.cli.base import Json, app
from pefttools.cli.inspect import GROUP
from pefttools.extras import EXTRAS, missing

VARIABLES = (
    "PEFTTOOLS_CACHE", "PEFTTOOLS_PLUGINS", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
    "WORLD_SIZE",
)  # fmt: skip


@app.command(group=GROUP)
def env(*, json: Json = False) -> None:
    """Print what a bug report needs: versions, device, precision, memory, caches, plug-ins.

    Args:
        json: print one JSON object.
    """
    values = environment()
    display.as_json(values) if json else display.parts(_shown(values))


def environment() -> dict[str, Any]:
    """Versions, the device, and settings from the environment."""
    import psutil
    import torch

    from pefttools.device import device_name, device_type, precision_of
    from pefttools.registry import plugin_problems, plugin_roots
    from pefttools.sources.cache import cache_dir
    from pefttools.training.results import versions

    kind = device_type()
    files = [file for file in Path(cache_dir()).rglob("*") if file.is_file()]
    return {
        "versions": versions(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": {
            "type": kind, "name": device_name(kind), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "precision": precision_of("auto"),
            "memory_bytes": psutil.virtual_memory().total, "cuda": torch.version.cuda,
        },
        "extras": {extra: _versions_of(modules) for extra, modules in EXTRAS.items()},
        "cache": {"folder": str(cache_dir()), "bytes": sum(file.stat().st_size for file in files)},
        "plugins": {"folders": [str(root) for root in plugin_roots()], "problems": [*plugin_problems()]},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }  # fmt: skip


def _versions_of(modules: tuple[str, ...]) -> dict[str, str] | None:
    """Package -> version of an extra's modules; None if one is missing."""
    if missing(modules):
        return None
    packages = metadata.packages_distributions()
    return {name: metadata.version(name) for name in (packages[module][0] for module in modules)}


def _shown(values: dict[str, Any]) -> Iterator[Table]:
    device, cache = values["device"], values["cache"]
    table = Table(show_header=False, box=None)
    for name, version in values["versions"].items():
        table.add_row(name, version)
    table.add_row("system", values["system"])
    memory = device["memory_bytes"] / 2**30
    table.add_row("device", f"{device['type']}: {device['name']}, {device['cores']} cores, {memory:.0f} GiB of memory")
    table.add_row("precision", f"{device['precision']} with train.precision=auto; {device['threads']} threads")
    if device["cuda"]:
        table.add_row("CUDA", device["cuda"])
    for extra, versions in values["extras"].items():
        named = "not installed" if versions is None else ", ".join(f"{n} {v}" for n, v in versions.items())
        table.add_row(extra, named)
    table.add_row("cache", f"{cache['folder']}, {cache['bytes'] / 2**20:,.0f} MiB")
    for name, value in values["variables"].items():
        table.add_row(name, value)
    for problem in values["plugins"]["problems"]:
        table.add_row("plug-ins", problem)
    yield table
