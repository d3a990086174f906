"""Folders of choices of your own: those named in `PEFTTOOLS_PLUGINS`, separated like `PATH`.

A file `strategies/mine.py` below one of them is the strategy `mine`. What is wrong with a folder or a file is reported;
everything else goes on working.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

VARIABLE = "PEFTTOOLS_PLUGINS"


def roots() -> list[Path]:
    """The folders that the variable names, whether they exist or not."""
    return [Path(root).expanduser().absolute() for root in os.environ.get(VARIABLE, "").split(os.pathsep) if root]


def kinds() -> list[str]:
    """Folder names that a plug-in folder may have: ours that hold a registry."""
    packages = Path(__file__).parent.glob("*/__init__.py")
    return sorted(file.parent.name for file in packages if "Registry(" in file.read_text("utf-8"))


def problems() -> Iterator[str]:
    """One sentence on every folder and file that cannot be used."""
    for root in roots():
        if not root.is_dir():
            yield f"{VARIABLE}: {root} is no folder"
            continue
        files = [file for kind in kinds() for file in sorted((root / kind).glob("*.py"))]
        if not files:
            below = ", ".join(f"{kind}/" for kind in kinds())
            yield f"{VARIABLE}: {root} holds no plug-ins; they lie in a folder of their kind below it: {below}"
        yield from (problem for file in files if (problem := syntax_error(file)))


@cache
def parsed(file: Path) -> ast.Module:
    """The file's syntax tree, nothing imported. Raises SyntaxError."""
    return ast.parse(file.read_text("utf-8"), str(file))


def syntax_error(file: Path) -> str | None:
    """One sentence on why the file is no Python, with its line; None where it is."""
    try:
        parsed(file)
    except SyntaxError as error:
        return f"{file} line {error.lineno}: syntax error: {error.msg}"
    except (UnicodeDecodeError, ValueError) as error:
        return f"{file}: is not Python: {error}"
    return None
