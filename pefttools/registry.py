"""Registries of the choices that a recipe names (strategies, tasks …), found by listing a package's files.

A choice is one file: its stem is the choice's name, the first line of its docstring the summary, and it defines one
concrete class. Files whose names start with `_` are helpers. Names and summaries are read without importing the file,
so that listing is fast.

You can add folders of your own in `PEFTTOOLS_PLUGINS`, separated as in `PATH`: a file `strategies/mine.py` in one of
them is the strategy `mine`. Problems of a folder or file are reported, and everything else keeps working.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pefttools.errors import UserError, shown, unknown

if TYPE_CHECKING:
    from pefttools.settings import Choice

C = TypeVar("C", bound="Choice")

PLUGINS = "PEFTTOOLS_PLUGINS"
"""The environment variable that lists folders of plug-ins."""


class Registry(Generic[C]):
    """The choices of one kind: every module of `package` that defines a class derived from `base`.

    Args:
        kind: the word for one choice in messages.
        unknown_name: makes the message for an unknown name from it and the known names; `errors.unknown` when None.
    """

    def __init__(
        self, kind: str, package: str, base: str, unknown_name: Callable[[str, Sequence[str]], str] | None = None
    ) -> None:
        self.kind, self.package, self.base = kind, package, base
        self.unknown_name = unknown_name or partial(unknown, kind)
        self.added: dict[str, type[C]] = {}
        """Name -> class that `add` made known in this process."""

    @property
    def base_class(self) -> type[C]:
        """The class that all choices are derived from."""
        return getattr(importlib.import_module(f"{self.package}.base"), self.base)

    def add(self, cls: type[C], name: str) -> None:
        """Make a class known in this process under a name, without a file; a class of that name is replaced.

        Args:
            cls: derived from `base_class`.

        Raises:
            UserError: the class is abstract, or the name is no identifier or a file's.
        """
        if inspect.isabstract(cls):
            raise UserError(f"{self.kind} {name!r}: {self._not_one([cls], [])}")
        self.add_object(cls, name)
        cls.name = name

    def add_object(self, one: Any, name: str) -> None:
        """Make known in this process what does as a class does, such as a function; one of that name is replaced.

        Raises:
            UserError: the name is no identifier or a file's.
        """
        if not name.isidentifier() or name in self.files():
            raise UserError(f"{self.kind} {name!r}: the name must be an identifier that no file has; choose another")
        self.added[name] = one

    def files(self) -> dict[str, Path]:
        """Name -> file, sorted by name."""
        module = importlib.import_module(self.package)
        for root in plugin_roots():
            folder = str(root / self._folder)
            if folder not in module.__path__:
                module.__path__.append(folder)
        found = {f.stem: f for root in reversed(list(module.__path__)) for f in Path(root).glob("*.py")}
        return {
            name: found[name]
            for name in sorted(found)
            if _may_be_choice(found[name]) and self._defines_choice(found[name])
        }

    def names(self) -> list[str]:
        return sorted([*self.files(), *self.added])

    def summaries(self) -> dict[str, str]:
        """Name -> first line of the module docstring, without importing anything."""
        docs = {name: ast.get_docstring(_parsed(file)) or "" for name, file in self.files().items()}
        docs |= {name: inspect.getdoc(cls) or "" for name, cls in self.added.items()}
        return {name: doc.partition("\n")[0].removeprefix(f"{name}: ") for name, doc in docs.items()}

    @property
    def _folder(self) -> str:
        return self.package.rpartition(".")[2]

    def _defines_choice(self, file: Path) -> bool:
        """Whether the file seems to define a class derived from `base`, judged by its source.

        For a plug-in any derived class counts, because it may extend a shipped choice or write its base as
        `module.Base`; only the import shows. A shipped file counts if the name of a base class ends with `base`
        (`Strategy`, `PeftStrategy`).
        """
        is_plugin = _is_plugin(file)
        if is_plugin and _syntax_error(file):
            return False
        classes = [node for node in _parsed(file).body if isinstance(node, ast.ClassDef)]
        if is_plugin:
            return any(one.bases for one in classes)
        own = [one for one in classes if not one.name.endswith(self.base)]
        return any(isinstance(b, ast.Name) and b.id.endswith(self.base) for one in own for b in one.bases)

    def _plugin(self, name: str) -> Path | None:
        """The plug-in file of that name, whether it can be used or not."""
        files = (root / self._folder / f"{name}.py" for root in plugin_roots())
        return next((file for file in files if _may_be_choice(file) and file.is_file()), None)

    def get(self, name: str) -> type[C]:
        """The class of that name. Raises UserError when there is none, or its plug-in has an error."""
        if name in self.added:
            return self.added[name]
        plugin, file = self._plugin(name), self.files().get(name)
        if file is None:
            if plugin:
                reason = _syntax_error(plugin) or f"{plugin}: defines no class derived from {self.base}"
                raise UserError(f"{self.kind} {name!r} cannot be used: {reason}")
            raise UserError(self.unknown_name(name, self.names()))
        plugin = plugin if file == plugin else None  # shipped files take precedence
        base = self.base_class
        try:
            module = importlib.import_module(f"{self.package}.{name}")
        except Exception as error:
            if not plugin:
                raise
            raise UserError(f"{self.kind} {name!r} cannot be imported: {_place(plugin, error)}") from error
        own = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
        own = list(dict.fromkeys(c for c in own if c.__module__ == module.__name__))  # without imported classes
        found = [c for c in own if not inspect.isabstract(c)]
        if plugin and len(found) != 1:
            raise UserError(f"{self.kind} {name!r} cannot be used: {plugin}: {self._not_one(own, found)}")
        assert len(found) == 1, f"{module.__name__} must define one concrete {self.base}, found {found}"
        return found[0]

    def _not_one(self, own: Sequence[type], found: Sequence[type]) -> str:
        """The reason why a plug-in file does not define exactly one usable class."""
        if found:
            return f"defines {', '.join(c.__name__ for c in found)}; a file must define one {self.kind} only"
        missing = [f"{c.__name__} lacks {', '.join(sorted(c.__abstractmethods__))}" for c in own]  # type: ignore[attr-defined]
        return "; ".join(missing) or f"defines no class derived from {self.base}"

    def usable(self) -> tuple[dict[str, type[C]], list[str]]:
        """Name -> class, and one message for every plug-in that cannot be used."""
        found, problems = {}, []
        for name in self.names():
            try:
                found[name] = self.get(name)
            except UserError as error:
                problems += error.problems
        return found, problems

    def parse(self, value: Any, path: str) -> tuple[C | None, list[str]]:
        """The choice for a recipe's value (a name, or a mapping with `name`), or None and the problems."""
        from pefttools.settings import check  # pydantic is slow to import, and listing does not need it

        settings = {"name": value} if isinstance(value, str) else value
        if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
            return None, [
                f"{path}: must be a name or a mapping with `name`, got {shown(value)}. Known: {', '.join(self.names())}"
            ]
        try:
            cls = self.get(settings["name"])
        except UserError as error:
            return None, [f"{path}: {error}"]
        return check(cls, {k: v for k, v in settings.items() if k != "name"}, path)


def plugin_roots() -> list[Path]:
    """The folders listed in `PEFTTOOLS_PLUGINS`, whether they exist or not."""
    return [Path(root).expanduser().absolute() for root in os.environ.get(PLUGINS, "").split(os.pathsep) if root]


def plugin_kinds() -> list[str]:
    """Names of folders that may contain plug-ins: those of our packages that have a registry."""
    packages = Path(__file__).parent.glob("*/__init__.py")
    return sorted(file.parent.name for file in packages if "Registry(" in file.read_text("utf-8"))


def plugin_problems() -> Iterator[str]:
    """One message for every plug-in folder and file that cannot be used, without importing anything."""
    for root in plugin_roots():
        if not root.is_dir():
            yield f"{PLUGINS}: {root} is not a folder"
            continue
        files = [file for kind in plugin_kinds() for file in sorted((root / kind).glob("*.py"))]
        if not files:
            below = ", ".join(f"{kind}/" for kind in plugin_kinds())
            yield f"{PLUGINS}: {root} contains no plug-ins; put them into the subfolder of their kind: {below}"
        for file in files:
            if problem := _syntax_error(file):
                yield problem
            elif (Path(__file__).parent / file.parent.name / file.name).exists():
                yield f"{file}: is ignored, because pefttools itself has a file {file.stem}; rename yours"


def _may_be_choice(file: Path) -> bool:
    return file.stem != "base" and not file.stem.startswith("_")


def _is_plugin(file: Path) -> bool:
    return any(file.is_relative_to(root) for root in plugin_roots())


@cache
def _parsed(file: Path) -> ast.Module:
    """The file's syntax tree. Raises SyntaxError."""
    return ast.parse(file.read_text("utf-8"), str(file))


def _syntax_error(file: Path) -> str | None:
    """The syntax error of a file with its line, or None."""
    try:
        _parsed(file)
    except SyntaxError as error:
        return f"{file} line {error.lineno}: syntax error: {error.msg}"
    except (UnicodeDecodeError, ValueError) as error:
        return f"{file}: is not Python: {error}"
    return None


def _place(file: Path, error: Exception) -> str:
    """The error, with the line of the plug-in's file that caused it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file}{f' line {lines[-1]}' if lines else ''}: {type(error).__name__}: {error}"
