"""Messages of the command line in the words of Python: arguments of `fit`, and no files that it wrote itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pefttools.errors import UserError

WORDS = (
    (re.compile(r"set data\.columns\.(\w+)=([^\s.,;]+)"), r"pass columns={'\1': '\2'}"),
    (re.compile(r"set data\.columns\.(\w+)"), r"pass columns={'\1': NAME}"),
    (re.compile(r"\badd --(overwrite|resume)\b"), r"pass \1=True"),
    (re.compile(r"^--out:"), "out:"),
    (re.compile(r"\bset data\.(\w+)=(\w+)"), r"pass overrides={'data.\1': '\2'}"),
)
"""What the command line says -> what a program writes."""


@contextmanager
def in_python(folder: Path) -> Iterator[None]:
    """Inside, a UserError gets messages for a program.

    Args:
        folder: of the files with rows that were in memory, whose paths mean nothing to the caller.
    """
    try:
        yield
    except UserError as error:
        raise UserError(*(_said(problem, folder) for problem in error.problems)) from error.__cause__


def _said(problem: str, folder: Path) -> str:
    found = re.sub(rf"{re.escape(str(folder.absolute()))}/(\w+)-[0-9a-f]{{12}}\.\w+", "the table", problem)
    found = re.sub(r"^data\.(train|validation|test): the table:? ", r"\1: the table ", found)
    for pattern, words in WORDS:
        found = pattern.sub(words, found)
    return found
