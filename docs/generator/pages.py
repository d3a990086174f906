"""All generated pages: their texts, and writing them to the folder of the reference."""

from __future__ import annotations

from pathlib import Path

from generator import choices, commands, python_names, recipe_keys, shipped_files, support
from generator.registries import kinds

FOLDER = Path(__file__).parents[1] / "reference"
BY_HAND = "index.md"
"""The only page of the folder that is not generated."""


def pages() -> dict[str, str]:
    """File name -> Markdown of every generated page, in the order of the contents."""
    return {
        "commands.md": commands.page(),
        "recipe.md": recipe_keys.page(),
        **{f"{kind.name}.md": choices.page(kind) for kind in kinds()},
        "recipes.md": shipped_files.page(FOLDER),
        "support.md": support.page(),
        "python.md": python_names.page(),
    }


def write() -> None:
    """Write the pages that changed, so that Sphinx reads only these again, and remove those that are no longer made."""
    made = pages()
    for name, text in made.items():
        file = FOLDER / name
        if not file.is_file() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")
    for file in FOLDER.glob("*.md"):
        if file.name not in (BY_HAND, *made):
            file.unlink()
