"""The page of the command line: every command with its parameters, from cyclopts' own description of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from generator import values
from generator.markdown import code, escaped, listed, prose, table
from pefttools.cli import app

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.argument import Argument

INTRODUCTION = """# The command line

`pefttools COMMAND --help` prints the same in a terminal. `RECIPE` is the name of a shipped recipe or a path ending in
`.yaml`, and `OVERRIDES` are any number of `KEY=VALUE` with the [keys of a recipe](recipe.md). Most commands take
`--json`, which prints one JSON object on stdout. Exit codes: 0, 2 (a mistake in what you wrote, with a message), 1 (a
bug of ours), 3 (a fault of the machine, such as a full disk), 130 (interrupted; a run can be resumed)."""


def page() -> str:
    """The page as Markdown."""
    return "\n\n".join([INTRODUCTION, *_groups()]) + "\n"


def names() -> list[str]:
    """The commands, in the order of their definition."""
    return [name for name in app if not name.startswith("-")]


def _groups() -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for name in sorted(names(), key=lambda name: _group(name).sort_key):
        groups.setdefault(_group(name).name, []).append(name)
    for title, members in groups.items():
        rows = ([f"[{code(name)}](#command-{name})", _summary(name)] for name in members)
        yield f"## {title}\n\n{table(('command', 'what it does'), rows)}"
        yield from map(_section, members)


def _group(name: str) -> Any:
    """The group of a command, as `pefttools --help` shows it."""
    group = app[name].group
    return group[0] if isinstance(group, tuple) else group


def _summary(name: str) -> str:
    return escaped(_description(app[name]).partition("\n\n")[0])


def _description(command: App) -> str:
    """The docstring of a command without its arguments."""
    return inspect.cleandoc(command.help).partition("\nArgs:")[0].strip()


def _section(name: str) -> str:
    """A command: its usage, what it does, and its parameters."""
    arguments = [one for one in app[name].assemble_argument_collection(parse_docstring=True) if one.show]
    usage = " ".join(["pefttools", name, *filter(None, map(_usage, arguments)), "[OPTIONS]"])
    return "\n\n".join([
        f"(command-{name})=\n### {code(f'pefttools {name}')}",
        f"```text\n{usage}\n```",
        prose(_description(app[name])),
        table(("parameter", "may be", "default", "meaning"), map(_row, arguments)),
    ])  # fmt: skip


def _usage(argument: Argument) -> str:
    """How a parameter stands in the usage line; "" for options that may be left out."""
    if _is_option(argument):
        return f"{argument.name} {argument.name.strip('-').upper()}" if argument.required else ""
    name = f"{_name(argument)}…" if argument.is_var_positional() else _name(argument)
    return name if argument.required else f"[{name}]"


def _row(argument: Argument) -> list[str]:
    default = argument.field_info.default
    has_default = not argument.required and default not in (None, inspect.Parameter.empty, ()) and default is not False
    negatives = [name for name in argument.names if name.startswith("--no-")] if default is True else []
    shown = (
        [_name(argument)] if not _is_option(argument) else [n for n in argument.names if n not in argument.negatives]
    )
    return [
        " ".join(map(code, [*shown, *negatives])),
        _allowed(argument),
        "required" if argument.required else code(values.as_yaml(default)) if has_default else "",
        escaped(argument.parameter.help or ""),
    ]


def _allowed(argument: Argument) -> str:
    """The choices of a parameter, or its type."""
    if choices := argument.get_choices():
        return listed(map(code, choices), "or")
    return "" if argument.is_flag() else values.type_words(argument.hint).removesuffix(" or `null`")


def _name(argument: Argument) -> str:
    return argument.name.strip("-").upper()


def _is_option(argument: Argument) -> bool:
    return not (argument.is_positional_only() or argument.is_var_positional())
