"""The page of the recipes and suites that come with pefttools."""

from __future__ import annotations

import os
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from generator.markdown import code, escaped, table
from pefttools.recipe import recipes, shipped

INTRODUCTION = """# Recipes and suites that come with pefttools

`pefttools train NAME` trains a recipe, `pefttools show NAME` prints it with all its values, and
`pefttools show NAME > mine.yaml` makes it yours. With rows of your own it keeps its method:
`pefttools train NAME data.train=FILE`."""


def page(folder: Path) -> str:
    """The page as Markdown.

    Args:
        folder: where the page will be, for links to the files.
    """
    suites = "`pefttools bench NAME` compares methods."
    parts = [INTRODUCTION, "## Recipes", *_recipes(folder), "## Suites", suites, _suites(folder)]
    return "\n\n".join(parts) + "\n"


def _recipes(folder: Path) -> list[str]:
    """A heading and a table for each task."""
    of_task: dict[str, list[list[str]]] = {}
    for name, file in shipped.files("recipes").items():
        recipe = recipes.load(name).recipe
        score, *remarks = comments(file)[1:]
        source = recipe.base.source
        base = source.partition("/")[0] if source.startswith("pypi:") else source
        what = f"{escaped(recipe.description)}. {escaped(' '.join(remarks))}"
        method = f"{code(recipe.strategy.name)} on {code(base)}"
        of_task.setdefault(recipe.task.name, []).append([link(name, file, folder), what, method, escaped(score)])
    return [
        f"### {code(task)}\n\n{table(('recipe', 'what it trains', 'method and base', 'score'), rows)}"
        for task, rows in sorted(of_task.items())
    ]


def _suites(folder: Path) -> str:
    rows = []
    for name, file in shipped.files("suites").items():
        values: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
        compared = "; ".join(f"{axis}: {', '.join(map(str, found))}" for axis, found in values["axes"].items())
        what = f"{escaped(values['description'])}. {escaped(' '.join(comments(file)[1:]))}"
        seeds = ", ".join(map(str, values["seeds"]))
        rows.append([link(name, file, folder), what, code(values["recipe"]), escaped(compared), seeds])
    return table(("suite", "what it compares", "recipe", "methods and data", "seeds"), rows)


def comments(file: Path) -> list[str]:
    """The comment at the top of a file, line by line: its command, then the score of a recipe, then remarks."""
    lines = takewhile(lambda line: line.startswith("# "), file.read_text("utf-8").splitlines())
    return [line.removeprefix("# ") for line in lines]


def link(name: str, file: Path, folder: Path) -> str:
    """A link to a file from a page in a folder."""
    return f"[{code(name)}]({Path(os.path.relpath(file, folder)).as_posix()})"
