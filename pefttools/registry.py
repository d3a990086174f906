"""Choices a recipe can pick by name, found by looking at a folder.

A choice is one file: its stem is its name, its module docstring's first line is its summary, and the one
concrete class in it is what the recipe gets. Names and summaries are read without importing the file, so
listing answers at once. Folders named in `PEFTTOOLS_PLUGINS` (separated like `PATH`) add to ours: a file
`strategies/mine.py` under one of them is the strategy `mine`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pefttools.errors import UserError, unknown
from pefttools.settings import Settings, check

C = TypeVar("C", bound="Choice")


class Choice(Settings):
    """Settings and behaviour of one named thing; state lives elsewhere."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    def as_dict(self) -> dict[str, Any]:
        """The settings with the name first, as a recipe writes them."""
        return {"name": self.name, **self.model_dump(mode="json")}


class Registry(Generic[C]):
    """The choices of one kind: every module of `package` that holds a class derived from `base`."""

    def __init__(self, kind: str, package: str, base: str) -> None:
        self.kind, self.package, self.base = kind, package, base

    def files(self) -> dict[str, Path]:
        """Name -> file, sorted by name."""
        module = importlib.import_module(self.package)
        for root in os.environ.get("PEFTTOOLS_PLUGINS", "").split(os.pathsep):
            folder = str(Path(root, self.package.rpartition(".")[2]).absolute())
            if root and folder not in module.__path__:
                module.__path__.append(folder)
        found = {f.stem: f for root in reversed(list(module.__path__)) for f in Path(root).glob("*.py")}
        return {n: found[n] for n in sorted(found) if n != "base" and self._holds_one(found[n])}

    def names(self) -> list[str]:
        return list(self.files())

    def _holds_one(self, file: Path) -> bool:
        """Whether a class in the file is derived from ours, by name: from `Strategy`, or a `PeftStrategy` between."""
        classes = [node for node in _parsed(file).body if isinstance(node, ast.ClassDef)]
        own = [c for c in classes if not c.name.endswith(self.base)]
        return any(isinstance(b, ast.Name) and b.id.endswith(self.base) for c in own for b in c.bases)

    def summaries(self) -> dict[str, str]:
        """Name -> first line of the module docstring, nothing imported."""
        docs = {name: ast.get_docstring(_parsed(file)) or "" for name, file in self.files().items()}
        return {name: doc.partition("\n")[0].removeprefix(f"{name}: ") for name, doc in docs.items()}

    def get(self, name: str) -> type[C]:
        """The class of that name. Raises UserError when there is none."""
        if name not in self.files():
            raise UserError(unknown(self.kind, name, self.names()))
        module = importlib.import_module(f"{self.package}.{name}")
        base = getattr(importlib.import_module(f"{self.package}.base"), self.base)
        found = [
            c
            for c in vars(module).values()
            if isinstance(c, type)
            and issubclass(c, base)
            and not inspect.isabstract(c)
            and c.__module__ == module.__name__
        ]
        assert len(found) == 1, f"{module.__name__} must hold one concrete {self.base}, found {found}"
        return found[0]

    def parse(self, value: Any, path: str) -> tuple[C | None, list[str]]:
        """From what a recipe says (a name, or a mapping with `name`) to the choice, or the problems."""
        settings = {"name": value} if isinstance(value, str) else value
        if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
            return None, [
                f"{path}: takes a name or a mapping with `name`, got {value!r}. Known: {', '.join(self.names())}"
            ]
        try:
            cls = self.get(settings["name"])
        except UserError as error:
            return None, [f"{path}: {error}"]
        return check(cls, {k: v for k, v in settings.items() if k != "name"}, path)


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))
