"""The page of the Python interface: the public names of pefttools and the types that they use, for Sphinx' autodoc."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator

import pefttools
import pefttools.sklearn
from pefttools.settings import Settings

INTRODUCTION = """# The Python interface

Everything here is a name of the package `pefttools`; [from Python](../python.md) shows how the names work together.
Mistakes raise `pefttools.UserError` with the message of the command line."""


def page() -> str:
    """The page as Markdown, with directives of autodoc."""
    return "\n\n".join([INTRODUCTION, *_sections()]) + "\n"


def names() -> list[str]:
    """Every public name, with its module."""
    return [*(f"pefttools.{name}" for name in pefttools.__all__), *_of_sklearn()]


def _of_sklearn() -> list[str]:
    return [f"pefttools.sklearn.{name}" for name in pefttools.sklearn.__all__]


def _sections() -> Iterator[str]:
    public = {f"pefttools.{name}": getattr(pefttools, name) for name in pefttools.__all__}
    classes = {name: value for name, value in public.items() if inspect.isclass(value)}
    errors = {name: value for name, value in classes.items() if issubclass(value, BaseException)}
    yield "## Functions"
    yield from (_directive("autofunction", name) for name, value in public.items() if inspect.isfunction(value))
    yield "## Classes"
    yield from (_class(name, value) for name, value in classes.items() if name not in errors)
    yield "## What methods of callbacks and functions get or return"
    yield from (_class(name, value) for name, value in types_of(list(public.values())).items())
    yield "## Errors"
    yield from (_class(name, value) for name, value in errors.items())
    yield "## scikit-learn"
    yield from (_class(name, getattr(pefttools.sklearn, name.rpartition(".")[2])) for name in _of_sklearn())


def _class(name: str, cls: type) -> str:
    """The directive of a class with its own members, not those that other libraries give it."""
    members = [one for one, value in vars(cls).items() if not one.startswith("_") and _is_ours(value)]
    return _directive("autoclass", name, f":members: {', '.join(members)}" if members else "")


def _is_ours(member: object) -> bool:
    inner = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
    return getattr(inner, "__module__", "").startswith("pefttools.") if callable(inner) else False


def _directive(kind: str, name: str, option: str = "") -> str:
    options = f"\n   {option}" if option else ""
    return f"```{{eval-rst}}\n.. {kind}:: {name}{options}\n```"


def types_of(values: list[object]) -> dict[str, type]:
    """Full name -> class of ours that the signatures of functions and methods name, besides the public ones."""
    found: dict[str, type] = {}
    pending = list(values)
    while pending:
        value = pending.pop(0)
        functions = [value] if inspect.isfunction(value) else [f for f in vars(value).values() if inspect.isfunction(f)]
        for function in functions:
            for annotation in _annotations(function):
                for cls in [annotation, *typing.get_args(annotation)]:
                    if _is_our_class(cls) and cls not in [*values, *found.values()]:
                        found[f"{cls.__module__}.{cls.__qualname__}"] = cls
                        pending.append(cls)
    return found


def _is_our_class(value: object) -> bool:
    """Whether it is a class of ours that another page does not describe."""
    return inspect.isclass(value) and value.__module__.startswith("pefttools.") and not issubclass(value, Settings)


def _annotations(function: object) -> list[object]:
    try:
        return list(typing.get_type_hints(function).values())
    except NameError:  # it names a type that only type checkers import
        return []
