"""Choices a recipe can pick by name, found by looking at a folder.

A choice is one file: its stem is its name, its module docstring's first line is its summary, and the one
concrete class in it is what the recipe gets. Names and summaries are read without importing the file, so
listing is fast. Plug-in folders add to ours (`plugins.py`).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pefttools import plugins
from pefttools.errors import UserError, unknown
from pefttools.synonyms import unknown_strategy

if TYPE_CHECKING:
    from pefttools.settings import Choice

C = TypeVar("C", bound="Choice")


class Registry(Generic[C]):
    """The choices of one kind: every module of `package` that holds a class derived from `base`."""

    def __init__(self, kind: str, package: str, base: str) -> None:
        self.kind, self.package, self.base = kind, package, base

    def files(self) -> dict[str, Path]:
        """Name -> file, sorted by name."""
        module = importlib.import_module(self.package)
        for root in plugins.roots():
            folder = str(root / self.package.rpartition(".")[2])
            if folder not in module.__path__:
                module.__path__.append(folder)
        found = {f.stem: f for root in reversed(list(module.__path__)) for f in Path(root).glob("*.py")}
        return {n: found[n] for n in sorted(found) if n != "base" and self._holds_one(found[n])}

    def _plugin(self, name: str) -> Path | None:
        """The plug-in's file of that name, usable or not."""
        kind = self.package.rpartition(".")[2]
        files = (root / kind / f"{name}.py" for root in plugins.roots())
        return next((file for file in files if file.is_file()), None)

    def names(self) -> list[str]:
        return list(self.files())

    def _holds_one(self, file: Path) -> bool:
        """Whether a class in the file is derived from ours, by name: from `Strategy`, or a `PeftStrategy` between."""
        if self._is_plugin(file) and plugins.syntax_error(file):
            return False
        classes = [node for node in plugins.parsed(file).body if isinstance(node, ast.ClassDef)]
        own = [c for c in classes if not c.name.endswith(self.base)]
        return any(isinstance(b, ast.Name) and b.id.endswith(self.base) for c in own for b in c.bases)

    def _is_plugin(self, file: Path) -> bool:
        return any(file.is_relative_to(root) for root in plugins.roots())

    def summaries(self) -> dict[str, str]:
        """Name -> first line of the module docstring, nothing imported."""
        docs = {name: ast.get_docstring(plugins.parsed(file)) or "" for name, file in self.files().items()}
        return {name: doc.partition("\n")[0].removeprefix(f"{name}: ") for name, doc in docs.items()}

    def get(self, name: str) -> type[C]:
        """The class of that name. Raises UserError when there is none, or its plug-in cannot be used."""
        plugin = self._plugin(name)
        if name not in self.files():
            if plugin:
                reason = plugins.syntax_error(plugin) or f"{plugin}: holds no class derived from {self.base}"
                raise UserError(f"{self.kind} {name!r} cannot be used: {reason}")
            tell = unknown_strategy if self.kind == "strategy" else partial(unknown, self.kind)
            raise UserError(tell(name, self.names()))
        base = getattr(importlib.import_module(f"{self.package}.base"), self.base)
        try:
            module = importlib.import_module(f"{self.package}.{name}")
        except Exception as error:
            if not plugin:
                raise
            raise UserError(f"{self.kind} {name!r} cannot be imported: {_place(plugin, error)}") from error
        own = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
        own = [c for c in own if c.__module__ == module.__name__]
        found = [c for c in own if not inspect.isabstract(c)]
        if plugin and len(found) != 1:
            raise UserError(f"{self.kind} {name!r} cannot be used: {plugin}: {self._not_one(own, found)}")
        assert len(found) == 1, f"{module.__name__} must hold one concrete {self.base}, found {found}"
        return found[0]

    def _not_one(self, own: Sequence[type], found: Sequence[type]) -> str:
        """Why a plug-in's file does not hold exactly one class that can be used."""
        if found:
            return f"holds {', '.join(c.__name__ for c in found)}; a file holds one {self.kind}"
        missing = [f"{c.__name__} lacks {', '.join(sorted(c.__abstractmethods__))}" for c in own]  # type: ignore[attr-defined]
        return "; ".join(missing) or f"holds no class derived from {self.base}"

    def usable(self) -> tuple[dict[str, type[C]], list[str]]:
        """The classes by name, and one sentence on every plug-in that has none that can be used."""
        found, problems = {}, []
        for name in self.names():
            try:
                found[name] = self.get(name)
            except UserError as error:
                problems += error.problems
        return found, problems

    def parse(self, value: Any, path: str) -> tuple[C | None, list[str]]:
        """From what a recipe says (a name, or a mapping with `name`) to the choice, or the problems."""
        from pefttools.settings import check  # pydantic is slow to import, and listing needs none of it

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


def _place(file: Path, error: Exception) -> str:
    """The error with the line of the plug-in's file that raised it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file}{f' line {lines[-1]}' if lines else ''}: {type(error).__name__}: {error}"
