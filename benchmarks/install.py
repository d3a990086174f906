"""What an installation costs: packages, megabytes and processor seconds of the core, and what each extra adds.

    python benchmarks/install.py                                 # this checkout
    python benchmarks/install.py --source FOLDER --as before     # another checkout's core, to compare with
    python benchmarks/install.py --table                         # write the table again, without measuring

The core is installed into an empty virtual environment with one `pip install -c constraints.txt`, each extra into a
copy of that environment. All packages are downloaded into pip's cache beforehand. torch is the build that pip finds for
constraints.txt's version; a CUDA build is several gigabytes larger than a CPU build. The time is that of the processor,
which other work on the machine hardly changes. Results that exist are not measured again.

    results/install.json  results/install.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "install.json"
TABLE = RESULTS.with_suffix(".md")
CORE = "core"
NOT_COUNTED = ("pefttools", "pip", "setuptools")
"""Packages that are in the environment anyway."""
LIST = """
import importlib.metadata, json, pathlib, sysconfig
versions = {one.name: one.version for one in importlib.metadata.distributions()}
files = [file for file in pathlib.Path(sysconfig.get_path("purelib")).rglob("*") if file.is_file()]
print(json.dumps({"versions": versions, "bytes": sum(file.stat().st_size for file in files)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout to install")
    parser.add_argument("--as", dest="name", default="now", help="the name of its results")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    if not arguments.table:
        measure(arguments.source.resolve(), arguments.name)
    TABLE.write_text(table(json.loads(RESULTS.read_text("utf-8"))), "utf-8")


def measure(source: Path, name: str) -> None:
    """Measure the core of a checkout and, for this one, what each extra adds; what has a result is not repeated."""
    results: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    found = results.setdefault(name, {})
    wanted = [case for case in (CORE, *extras(source)) if case not in found and (case == CORE or source == ROOT)]
    if not wanted:
        return
    with tempfile.TemporaryDirectory() as folder:
        core, pins = Path(folder, CORE), str(source / "constraints.txt")
        pip = "-m", "pip", "-q", "--disable-pip-version-check"
        download = ("download", "-d", str(Path(folder, "wheels")), "-c", pins)
        targets = [str(source) if case == CORE else f"{source}[{case}]" for case in wanted]
        run(sys.executable, "-m", "venv", str(core))
        python = str(core / "bin" / "python")
        run(python, *pip, "install", "-c", pins, "pip", "setuptools")
        run(python, *pip, *download, *targets)
        shutil.rmtree(Path(folder, "wheels"))
        found[CORE] = installed(python, (*pip, "install", "-c", pins, str(source)))
        for case in [one for one in wanted if one != CORE]:
            copy = shutil.copytree(core, Path(folder, case), symlinks=True, copy_function=os.link)
            target = (*pip, "install", "-c", pins, f"{source}[{case}]")
            found[case] = installed(str(copy / "bin" / "python"), target)
            shutil.rmtree(copy)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def extras(source: Path) -> list[str]:
    """The extras of a checkout that users install."""
    project = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))["project"]
    return [name for name in project["optional-dependencies"] if name != "dev"]


def installed(python: str, command: Sequence[str]) -> dict[str, Any]:
    """Install; returns the environment's packages with their versions, its megabytes, and processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(python, *command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    listed = json.loads(run(python, "-c", LIST))
    versions = {name: found for name, found in sorted(listed["versions"].items()) if name.lower() not in NOT_COUNTED}
    return {
        "packages": len(versions), "megabytes": round(listed["bytes"] / 1e6), "cpu_seconds": round(seconds),
        "python": platform.python_version(), "versions": versions,
    }  # fmt: skip


def run(*words: str) -> str:
    """Run a command; returns its output."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    torch = results["now"][CORE]["versions"]["torch"]
    lines = [
        "# What an installation costs", "",
        "`python benchmarks/install.py`: `pip install -c constraints.txt` with all packages in pip's cache, and torch",
        f"{torch}. An extra's line is what it adds to the core.", "",
        "| installed | packages | MB | processor seconds |", "|---|--:|--:|--:|",
    ]  # fmt: skip
    if before := results.get("before"):
        lines.append(f"| before there were extras: everything but the extras of then | {_cells(before[CORE])} |")
    core = results["now"][CORE]
    lines.append(f"| core | {_cells(core)} |")
    for extra, found in results["now"].items():
        if extra != CORE:
            added = {**found, **{name: found[name] - core[name] for name in ("packages", "megabytes")}}
            lines.append(f"| + `{extra}` | {_cells(added)} |")
    return "\n".join(lines) + "\n"


def _cells(found: dict[str, Any]) -> str:
    return f"{found['packages']} | {found['megabytes']} | {found['cpu_seconds']}"


if __name__ == "__main__":
    main()
