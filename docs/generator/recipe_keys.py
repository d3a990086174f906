"""The page of every key of a recipe, from the classes of its sections."""

from __future__ import annotations

from collections.abc import Iterator

from generator import values
from generator.markdown import code, listed, prose
from generator.registries import Kind, kinds
from generator.settings_tables import settings_table
from pefttools.recipe.recipe import Recipe
from pefttools.settings import Settings

INTRODUCTION = """# Every key of a recipe

A recipe is a YAML file with these keys. On the command line, write `KEY=VALUE` after the recipe's name:

```
pefttools train question-type-lora train.epochs=6 strategy.rank=16 --out runs/r16
pefttools show question-type-lora --explain     # the values of one recipe, with their origins and meanings
```

Unknown keys and values out of range are refused with the nearest known name. Keys whose last sentence says that they do
not change the trained model are not part of the recipe's digest."""


def page() -> str:
    """The page as Markdown."""
    return "\n\n".join(one for one in [INTRODUCTION, *_sections()] if one) + "\n"


def _sections() -> Iterator[str]:
    own = {name: values.nested(field.annotation) for name, field in Recipe.model_fields.items()}
    chosen = {name: _kind(Recipe, name) for name in own}
    sections = [name for name in own if own[name] or chosen[name]]
    yield "## At the top"
    yield settings_table(Recipe, without=sections)
    for name in sections:
        yield "\n".join([*(f"({values.target(cls)})=" for cls in own[name]), f"## {code(name)}"])
        yield prose(Recipe.model_fields[name].description or "")
        if kind := chosen[name]:
            yield _choice(kind)
        for cls in own[name]:
            yield from _tables(cls, {name: cls})


def _choice(kind: Kind) -> str:
    """The paragraph of a section that names a choice, with the keys that all its choices have."""
    shared = settings_table(kind.base, f"{kind.path}.")
    link = f"[{kind.title}]({kind.name}.md) has each choice with its own keys, which are written {code(kind.keys)}."
    names = f"One of {listed(map(code, kind.registry.names()), 'or')}." if not kind.several else (
        f"Any of {listed(map(code, kind.registry.names()), 'and')}."
    )  # fmt: skip
    return "\n\n".join([f"{names} {link}", *([f"All of them have:\n\n{shared}"] if shared else [])])


def _tables(cls: type[Settings], paths: dict[str, type[Settings]]) -> Iterator[str]:
    """The table of a class, then those of the classes inside it, under the keys that contain them."""
    prefix = next(iter(paths))
    yield prose((cls.__doc__ or "").strip())
    yield settings_table(cls, f"{prefix}." if len(paths) == 1 else "")
    inside: dict[type[Settings], list[str]] = {}
    for name, field in cls.model_fields.items():
        for inner in values.nested(field.annotation):
            inside.setdefault(inner, []).append(f"{prefix}.{name}")
    for inner, keys in inside.items():
        yield f"({values.target(inner)})=\n### {listed(map(code, keys), 'and')}"
        if len(keys) > 1:
            yield f"Each of these has the following keys: write {code(f'{keys[0]}.KEY')} and so on."
        yield from _tables(inner, dict.fromkeys(keys, inner))


def _kind(owner: type[Settings], name: str) -> Kind | None:
    """The registry whose choices a section names; None for other sections."""
    bases = values.choices_within(owner.model_fields[name].annotation)
    return next((kind for kind in kinds() if kind.base in bases), None)
